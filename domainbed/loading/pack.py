"""A pack: many images in one file, decoded or as their files' bytes, memory-mapped.

The file begins with the images, one after the other; behind them lies an index in NumPy's npz form, and at the end the
index's length and MAGIC. It is written aside and renamed, so that what has the name is whole.
"""

import io
import mmap
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from domainbed.files import atomic_write
from domainbed.loading.decode import BadImageError, decode, read_file

MAGIC = b"dbpack01"
_FOOTER = struct.Struct("<Q8s")


class Pack:
    """The images of a pack, by number: `pack[3]` is uint8 [height, width, 3].

    Args:
        path: the pack.
        files: what it was made from, for messages.

    Attributes:
        fingerprint: of the files that it was made from.
        is_decoded: whether it holds pixels, or files' bytes that are decoded as they are read.
        n_bytes: how large the images are, as they lie there.

    Raises:
        ValueError: on construction, the file is no whole pack.
    """

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        self.path = path
        self._files = files
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that may be written
        end = len(self._map) - _FOOTER.size
        length, magic = _FOOTER.unpack_from(self._map, end) if end >= 0 else (0, b"")
        if magic != MAGIC or length > end:
            raise ValueError(f"{path} is no whole pack")
        with np.load(io.BytesIO(self._map[end - length : end])) as index:
            self.fingerprint = str(index["fingerprint"])
            self.is_decoded = bool(index["is_decoded"])
            self._offsets: np.ndarray = index["offsets"]
            self._shapes: np.ndarray = index["shapes"]
        self.n_bytes = int(self._offsets[-1])
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8, count=self.n_bytes) if self.n_bytes else _NOTHING

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, i: int) -> torch.Tensor:
        """Raises BadImageError where the file was broken."""
        data = self._bytes[self._offsets[i] : self._offsets[i + 1]]
        if not self.is_decoded:
            return torch.from_numpy(decode(data.numpy().tobytes(), self._files[i]))
        if not len(data):
            raise BadImageError(f"{self._files[i]} was a broken image when {self.path} was made of it")
        return data.view(*self._shapes[i].tolist(), 3)

    def to(self, device: torch.device) -> "Pack":
        """The same images on a device; only of a decoded pack."""
        moved = object.__new__(Pack)
        moved.__dict__ = {**self.__dict__, "_bytes": self._bytes.to(device)}
        return moved

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self.path, self._files)  # another process maps the file itself


_NOTHING = torch.empty(0, dtype=torch.uint8)


def write_pack(path: Path, files: Sequence[str], fingerprint: str, is_decoded: bool, threads: int, bar: tqdm) -> None:
    """Make a pack of `files`, whole or not at all; a broken image takes no bytes in it.

    Args:
        threads: how many decode at once (Pillow lets go of Python's lock as it decodes).
        bar: is told of each image.

    Raises:
        UsageError: a file can't be read.
        OSError: the pack can't be written.
    """
    shapes = np.zeros((len(files), 2), dtype=np.int32)
    offsets = np.zeros(len(files) + 1, dtype=np.int64)
    with atomic_write(path) as pack:
        for i, (shapes[i], data) in enumerate(_read_all(files, is_decoded, threads)):
            offsets[i + 1] = offsets[i] + pack.write(data)
            bar.update()
        index = io.BytesIO()
        np.savez(index, fingerprint=fingerprint, is_decoded=is_decoded, offsets=offsets, shapes=shapes)
        pack.write(index.getbuffer())
        pack.write(_FOOTER.pack(index.getbuffer().nbytes, MAGIC))


def _read_all(
    files: Sequence[str], is_decoded: bool, threads: int
) -> Iterator[tuple[tuple[int, int], bytes | memoryview]]:
    """Each file's (height, width) and pixels, or (0, 0) and its bytes, in order; of a broken one no pixels."""

    def read(file: str) -> tuple[tuple[int, int], bytes | memoryview]:
        data = read_file(Path(file))
        if not is_decoded:
            return (0, 0), data
        try:
            pixels = decode(data, file)
        except BadImageError:
            return (0, 0), b""
        return (pixels.shape[0], pixels.shape[1]), pixels.data

    waiting = iter(files)
    with ThreadPoolExecutor(threads) as pool:
        underway = deque(pool.submit(read, file) for file in islice(waiting, 4 * threads))
        while underway:  # some ahead of the writer, not all of them: they would fill the memory
            yield underway.popleft().result()
            underway.extend(pool.submit(read, file) for file in islice(waiting, 1))
