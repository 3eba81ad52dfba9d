"""A pack: many images in one memory-mapped file, decoded or as the original files' bytes.

The images are stored one after the other and followed by an index in NumPy's .npz format (a zip archive may be preceded
by other data). The file is written under a temporary name and renamed, so a pack is always complete.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from domainbed.files import atomic_write
from domainbed.loading.decode import BadImageError, decode, read_file


class Pack:
    """The images of a pack, by index: `pack[3]` is uint8 [height, width, 3].

    Args:
        path: the pack.
        files: the files it was built from, for messages.

    Attributes:
        fingerprint: the `fingerprint` of these files when the pack was built.
        is_decoded: whether it stores pixels, or the files' bytes, which are decoded on access.
        n_bytes: the size of the stored images.

    Raises:
        OSError, ValueError, KeyError, zipfile.BadZipFile: the file does not exist or is not a complete pack.
    """

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        self.path = path
        self._files = files
        with open(path, "rb") as file:
            with NpzFile(file) as index:
                self.fingerprint = str(index["fingerprint"])
                self.is_decoded = bool(index["is_decoded"])
                self._offsets: np.ndarray = index["offsets"]
                self._shapes: np.ndarray = index["shapes"]
            self.n_bytes = int(self._offsets[-1])
            # Mode "c" (copy on write), because torch requires writable memory. An empty file cannot be mapped.
            images = np.memmap(file, mode="c", shape=self.n_bytes) if self.n_bytes else np.empty(0, np.uint8)
        self._bytes = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, i: int) -> torch.Tensor:
        """Return image i. Raises BadImageError if its file was broken."""
        data = self._bytes[self._offsets[i] : self._offsets[i + 1]]
        if not self.is_decoded:
            return torch.from_numpy(decode(data.numpy().tobytes(), self._files[i]))
        if not len(data):
            raise BadImageError(f"{self._files[i]} was already broken when {self.path} was built")
        return data.view(*self._shapes[i].tolist(), 3)

    def to(self, device: torch.device) -> "Pack":
        """Return the same images on a device; only for decoded packs."""
        moved = object.__new__(Pack)
        moved.__dict__ = {**self.__dict__, "_bytes": self._bytes.to(device)}
        return moved

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self.path, self._files)  # another process maps the file itself


def write_pack(
    path: Path,
    files: Sequence[str],
    fingerprint: str,
    is_decoded: bool,
    threads: int,
    after_image: Callable[[], object],
) -> None:
    """Write a pack of `files`. A broken image takes no space in a decoded pack.

    Args:
        is_decoded: store pixels rather than the files' bytes.
        threads: the number of images to decode in parallel (Pillow releases the GIL while decoding).
        after_image: called after each image; if it raises an exception, no pack is written.

    Raises:
        UsageError: a file cannot be read.
        OSError: the pack cannot be written.
    """
    shapes = np.zeros((len(files), 2), dtype=np.int32)
    offsets = np.zeros(len(files) + 1, dtype=np.int64)
    with atomic_write(path) as pack:
        for i, (shapes[i], data) in enumerate(_read_all(files, is_decoded, threads)):
            offsets[i + 1] = offsets[i] + pack.write(data)
            after_image()
        np.savez(pack, fingerprint=fingerprint, is_decoded=is_decoded, offsets=offsets, shapes=shapes)


def _read_all(
    files: Sequence[str], is_decoded: bool, threads: int
) -> Iterator[tuple[tuple[int, int], bytes | memoryview]]:
    """Yield (height, width) and pixels of each file in order, no pixels for a broken image; or (0, 0) and its bytes."""

    def read(file: str) -> tuple[tuple[int, int], bytes | memoryview]:
        data = read_file(Path(file))
        if not is_decoded:
            return (0, 0), data
        try:
            pixels = decode(data, file)
        except BadImageError:
            return (0, 0), b""
        return (pixels.shape[0], pixels.shape[1]), pixels.data

    remaining = iter(files)
    with ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(read, file) for file in islice(remaining, 4 * threads))
        try:
            while pending:  # only a few images ahead of the writer, to bound the memory
                yield pending.popleft().result()
                pending.extend(pool.submit(read, file) for file in islice(remaining, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the reader stopped early
