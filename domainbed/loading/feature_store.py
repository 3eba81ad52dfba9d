"""The store of features that a frozen network extracts from images: one file per environment, network and view.

A file is computed in chunks, by all jobs that need it, on one or several machines, and assembled when the last chunk is
complete. A killed job loses the chunk that it was computing.
"""

import errno
import glob
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.files import ABSENT, atomic_write, file_lock, folder_size, open_regular, read_regular
from domainbed.terminal import ProgressBar

CHUNK_IMAGES = 128
MAX_STEM = 100  # bytes
UNUSED = 7 * 86_400.0  # seconds after which a file that no job has opened may be deleted
POLL = 0.5  # seconds between looks at chunks that other jobs are computing
BLOCK = 1 << 24  # bytes per read of a checksum

# (start, stop) -> features of the images start, …, stop - 1: float [stop - start, n_features]
Extract = Callable[[int, int], np.ndarray]

_verified: set[tuple[str, int, int]] = set()  # path, size and modification time of files with a correct checksum


@dataclass(frozen=True)
class FeatureFile:
    """The features of the images of one environment: raw numbers [n_images, n_features], and their CRC-32.

    Attributes:
        folder: the folder of the store.
        stem: the readable part of the file's name.
        key: everything that determines the features; its hash is part of the file's name.
        n_images, n_features: the shape.
        dtype: "float32" or "float16".
    """

    folder: Path
    stem: str
    key: tuple[str, ...]
    n_images: int
    n_features: int
    dtype: str

    @property
    def path(self) -> Path:
        words = (*self.key, str(self.n_images), str(self.n_features), self.dtype)
        return (
            self.folder / f"{self._short_stem}-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:16]}.features"
        )

    @property
    def _short_stem(self) -> str:
        """The stem; a long one is cut, so that file systems accept the names of chunks, and followed by its hash."""
        if len(self.stem.encode()) <= MAX_STEM:
            return self.stem
        digest = hashlib.sha256(self.stem.encode()).hexdigest()[:8]
        return f"{self.stem.encode()[:MAX_STEM].decode(errors='ignore')}-{digest}"

    def unused_versions(self) -> dict[Path, int]:
        """Return the sizes of files of the same stem with another key that no job has opened for UNUSED seconds.

        They are the features of former images or weights. Those that were unused for longest come first.
        """
        pattern = f"{glob.escape(self._short_stem)}-{'[0-9a-f]' * 16}.features"
        found = {}
        for path in self.folder.glob(pattern):
            with suppress(FileNotFoundError):  # another job may delete it meanwhile
                found[path] = path.stat()
        found.pop(self.path, None)
        by_age = sorted(found.items(), key=lambda item: item[1].st_atime)
        return {path: stat.st_size for path, stat in by_age if stat.st_atime < time.time() - UNUSED}

    @property
    def n_bytes(self) -> int:
        return self.n_images * self.n_features * np.dtype(self.dtype).itemsize

    def open(self) -> np.ndarray | None:
        """Return the features [n_images, n_features], memory-mapped; None if they are missing or damaged.

        Raises:
            OSError: the file exists but cannot be read at the moment, which does not make it damaged.
        """
        try:
            with open_regular(self.path) as file:
                stat = os.fstat(file.fileno())
                identity = (str(self.path), stat.st_size, stat.st_mtime_ns)
                if stat.st_size != self.n_bytes + 4 or not (
                    identity in _verified or _has_valid_checksum(file, self.n_bytes)
                ):
                    return None
                _verified.add(identity)
                with suppress(OSError):  # another user's file
                    os.utime(self.path, ns=(time.time_ns(), stat.st_mtime_ns))  # for `unused_versions`
                # Mode "c" (copy on write), because torch requires writable memory.
                return np.memmap(file, self.dtype, mode="c", shape=(self.n_images, self.n_features))
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            return None

    def chunk_path(self, index: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{index}")

    def n_chunks(self) -> int:
        return -(-self.n_images // CHUNK_IMAGES)

    def read_chunk(self, index: int) -> bytes | None:
        """Return a chunk of the file, or None if it is missing or damaged."""
        n = min(CHUNK_IMAGES, self.n_images - index * CHUNK_IMAGES)
        size = n * self.n_features * np.dtype(self.dtype).itemsize
        try:
            content = read_regular(self.chunk_path(index), size + 4)
        except OSError as error:
            if error.errno not in (*ABSENT, errno.EFBIG):
                raise
            return None
        is_valid = len(content) == size + 4 and _checksum(content[:size]) == content[size:]
        return content[:size] if is_valid else None


def feature_folder(cache: str | None) -> Path:
    """Return the folder of the store: in `--cache` or, by default, in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "domainbed")
    return Path(cache or default) / "features"


def fill(
    files: Sequence[FeatureFile],
    extractors: Sequence[Extract],
    limit_gb: float,
    check_stop: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    """Return the features of each file, after computing those that are missing.

    Args:
        files: the files of one store.
        extractors: for each file, the function that computes it.
        limit_gb: the maximum size of the store in GiB, including other files.
        check_stop: called before each image; an exception that it raises ends the computation, which a later call
            continues.

    Raises:
        UsageError: the files do not fit.
        OSError: a file cannot be written.
    """
    missing = []
    for file, extract in zip(files, extractors, strict=True):
        check_stop()  # large files have large checksums
        if file.open() is None:
            missing.append((file, extract))
    if missing:
        folder = files[0].folder
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(files, [file for file, _ in missing], limit_gb)
        n_images = sum(file.n_images for file, _ in missing)
        with ProgressBar(total=n_images, desc="extracting features", unit="image") as bar:
            for file, extract in missing:
                _compute(file, extract, bar, check_stop)
    opened = [file.open() for file in files]
    for file, features in zip(files, opened, strict=True):
        if features is None:
            raise UsageError(f"{file.path} disappeared or was damaged while it was being used; run the job again")
    return [features for features in opened if features is not None]


def _compute(file: FeatureFile, extract: Extract, bar: tqdm, check_stop: Callable[[], None]) -> None:
    """Compute the chunks of a file that no other job is computing, until all are complete, and assemble them."""
    lock_path = file.path.with_name(f"{file.path.name}.lock")
    message = f"waiting for another job to assemble {file.path}"
    with file_lock(lock_path, message, check_stop):
        if file.open() is None:
            file.path.unlink(missing_ok=True)  # damaged
    remaining = set(range(file.n_chunks()))
    has_printed = False
    while remaining:
        n_before = len(remaining)
        for index in sorted(remaining):
            check_stop()
            if file.read_chunk(index) is not None or file.path.exists() or _compute_chunk(file, index, extract):
                remaining.discard(index)
                bar.update(min(CHUNK_IMAGES, file.n_images - index * CHUNK_IMAGES))
        if len(remaining) == n_before:  # other jobs are computing all of them
            if not has_printed:
                print(f"waiting for other jobs to extract features of {file.stem}", flush=True)
                has_printed = True
            time.sleep(POLL)
    with file_lock(lock_path, message, check_stop):
        if file.open() is None:
            _assemble(file)
        for path in file.folder.glob(f"{glob.escape(file.path.name)}.*"):  # chunks, their locks, partial files
            if path != lock_path:
                path.unlink(missing_ok=True)


def _compute_chunk(file: FeatureFile, index: int, extract: Extract) -> bool:
    """Compute a chunk and return True, or return False if another job is computing it."""
    path = file.chunk_path(index)
    try:
        with FileLock(path.with_name(f"{path.name}.lock"), timeout=0):
            if file.path.exists():  # since this job looked; its chunks are deleted
                return True
            if file.read_chunk(index) is None:
                start = index * CHUNK_IMAGES
                features = extract(start, min(start + CHUNK_IMAGES, file.n_images))
                content = np.ascontiguousarray(features, dtype=file.dtype).tobytes()
                with atomic_write(path) as output:
                    output.write(content + _checksum(content))
    except Timeout:
        return False
    return True


def _assemble(file: FeatureFile) -> None:
    """Write the file from its chunks. The caller holds its lock."""
    crc = 0
    with atomic_write(file.path) as output:
        for index in range(file.n_chunks()):
            content = file.read_chunk(index)
            if content is None:
                raise UsageError(f"{file.chunk_path(index)} disappeared or was damaged; run the job again")
            crc = zlib.crc32(content, crc)
            output.write(content)
        output.write(crc.to_bytes(4, "big"))


def _make_room(files: Sequence[FeatureFile], missing: Sequence[FeatureFile], limit_gb: float) -> None:
    """Raise UsageError if the missing files do not fit, even after deleting unused versions of them.

    What exists of them already is part of what they need.
    """
    folder, limit = files[0].folder, limit_gb * 2**30
    used = folder_size(folder, leave_out=tuple(file.path.name for file in missing))
    needed = sum(file.n_bytes for file in missing)
    in_use = {file.path for file in files}
    outdated = {path: size for file in missing for path, size in file.unused_versions().items() if path not in in_use}
    if used - sum(outdated.values()) + needed > limit:
        raise UsageError(
            f"{needed / 2**30:.2f} GiB of features do not fit in {folder}, which contains {used / 2**30:.2f} GiB; "
            f"increase --cache_gb (now {limit_gb:g}) or delete files there"
        )
    for path, size in outdated.items():
        if used + needed <= limit:
            break
        path.unlink(missing_ok=True)
        used -= size


def _has_valid_checksum(file: BinaryIO, n_bytes: int) -> bool:
    """Return whether the first `n_bytes` of a file are followed by their checksum."""
    crc = 0
    while n_bytes:
        if not (block := file.read(min(n_bytes, BLOCK))):
            return False
        crc, n_bytes = zlib.crc32(block, crc), n_bytes - len(block)
    return file.read() == crc.to_bytes(4, "big")


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "big")
