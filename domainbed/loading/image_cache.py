"""The optional cache of photos (`--cache`): one pack per environment, built once and shared by all jobs."""

import glob
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import joblib
from PIL import Image
from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.files import file_lock, folder_size, open_regular
from domainbed.loading.pack import Pack, write_pack
from domainbed.terminal import ProgressBar

CACHE_LOCK_FILE = ".lock"
FILES_PER_TASK = 500
INDEX_BYTES = 24  # upper bound of an image's size in a pack's index


def open_cached(
    directory: Path,
    limit_gb: float,
    environments: Mapping[str, Sequence[str]],
    check_stop: Callable[[], object] = lambda: None,
) -> list[Pack] | None:
    """Return the packs of a dataset's environments, after building those that are missing or outdated.

    Packs store pixels if all of them fit within the limit, else the files' bytes. If several jobs need the same packs,
    one builds them and the others wait.

    Args:
        directory: the cache's folder, created if it does not exist.
        limit_gb: the maximum size of this folder in GiB, including packs of other datasets.
        environments: name -> paths of the image files. A pack's file name starts with the environment's name.
        check_stop: called many times per second, also by other threads. An exception that it raises stops the work;
            complete packs are kept.

    Returns:
        One pack per environment; None, after printing why, if they do not fit or the folder cannot be written.

    Raises:
        UsageError: an image file cannot be read.
    """
    entries = [_CacheEntry(directory, name, files, check_stop) for name, files in environments.items()]
    if packs := _open_all(entries):
        return packs
    try:
        directory.mkdir(parents=True, exist_ok=True)
        message = f"waiting for another job to fill the cache {directory}"
        with file_lock(directory / CACHE_LOCK_FILE, message, check_stop):
            _build(directory, limit_gb, [entry for entry in entries if not entry.open()], check_stop)
            packs = _open_all(entries)
    except OSError as error:
        tqdm.write(f"cannot write to the cache {directory} ({error}); reading images from their files")
        return None
    if packs is None:
        tqdm.write(f"the images do not fit in the cache {directory} (--cache_gb {limit_gb:g}); reading them from files")
    return packs


class _CacheEntry:
    """The pack of an environment, whether or not it exists yet."""

    def __init__(self, directory: Path, name: str, files: Sequence[str], check_stop: Callable[[], object]) -> None:
        self.files = files
        self.fingerprint = fingerprint(files, check_stop)
        # The same name in another folder, or another selection of the same files, has a pack of its own.
        self.stem = f"{name}-{_short_hash(os.path.dirname(files[0]))}"
        self.path = directory / f"{self.stem}-{_short_hash(*files)}.pack"

    def open(self) -> Pack | None:
        """Return the pack if it exists and its files have not changed."""
        with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
            pack = Pack(self.path, self.files)
            if pack.fingerprint == self.fingerprint:
                return pack
        return None


def _open_all(entries: Sequence[_CacheEntry]) -> list[Pack] | None:
    packs = [pack for entry in entries if (pack := entry.open())]
    return packs if len(packs) == len(entries) else None


def _build(directory: Path, limit_gb: float, missing: Sequence[_CacheEntry], check_stop: Callable[[], object]) -> None:
    """Build missing packs if there is room for all of them. The caller holds the lock."""
    if not missing:
        return  # another job built them
    for unfinished in directory.glob("*.part"):  # left by a killed job: only the lock's owner writes
        unfinished.unlink()
    for entry in missing:
        entry.path.unlink(missing_ok=True)  # outdated
    files = [file for entry in missing for file in entry.files]
    index_size = INDEX_BYTES * (len(files) + 100 * len(missing))

    def fits(size: int) -> bool:
        return index_size + size <= limit_gb * 2**30 - folder_size(directory)

    encoded_size = _sum_sizes(os.path.getsize, files, check_stop)
    if not fits(encoded_size):
        for entry in missing:  # make room by deleting other selections of the same files
            for other in directory.glob(f"{glob.escape(entry.stem)}-*.pack"):
                other.unlink()
        if not fits(encoded_size):
            return  # nor do the pixels, whose number is only in the files: every job would open all of them
    is_decoded = fits(_sum_sizes(_decoded_bytes, files, check_stop))
    with ProgressBar(total=len(files), desc=f"filling {directory}", unit="image") as bar:

        def after_image() -> None:
            bar.update()
            check_stop()

        for entry in missing:
            write_pack(entry.path, entry.files, entry.fingerprint, is_decoded, joblib.cpu_count(), after_image)


def fingerprint(files: Sequence[str], check_stop: Callable[[], object] = lambda: None, folder: str = "") -> str:
    """Return a hash of the files' names, sizes and modification times. (Threads would make this five times slower.)

    Args:
        files: the files.
        check_stop: called before each file.
        folder: where all of them are, if their names are to be relative to it.

    Raises:
        UsageError: a file does not exist.
    """
    digest = hashlib.sha256()
    for file in files:
        check_stop()
        try:
            status = os.stat(file)
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from error
        digest.update(
            f"{file[len(folder) :]}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def _sum_sizes(size_of: Callable[[str], int], files: Sequence[str], check_stop: Callable[[], object]) -> int:
    """Return the total size of all files, computed by threads in chunks (one task per file would be slower)."""

    def sum_chunk(chunk: Sequence[str]) -> int:
        total = 0
        for file in chunk:
            check_stop()
            total += size_of(file)
        return total

    chunks = [files[i : i + FILES_PER_TASK] for i in range(0, len(files), FILES_PER_TASK)]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        return sum(pool.map(sum_chunk, chunks))


def _decoded_bytes(file: str) -> int:
    """Return the size of an image's pixels according to its header; 0 for a broken image."""
    with suppress(Exception), open_regular(file) as data, Image.open(data) as image:
        return 3 * image.width * image.height
    return 0


def _short_hash(*words: str) -> str:
    return hashlib.md5("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:8]
