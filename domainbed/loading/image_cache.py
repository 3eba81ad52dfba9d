"""The optional cache of photographs: a pack for each environment, made once and shared by all jobs."""

import glob
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import joblib
from PIL import Image
from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.files import file_lock
from domainbed.loading.pack import Pack, write_pack

LOCK_FILE = ".lock"
SLICE = 500  # files that a thread looks at in one go
INDEX_BYTES = 24  # that an image takes in a pack's index, at most


def open_cached(directory: Path, limit_gb: float, environments: Mapping[str, Sequence[str]]) -> list[Pack] | None:
    """The packs of a dataset's environments, made first where they are missing or their files have changed.

    They hold pixels, if all of these fit, else the files' bytes. Of several jobs that want them at once, one makes them
    and the others wait.

    Args:
        directory: of the cache; made where it is not there.
        limit_gb: the most that the directory may hold, in GiB, packs of other datasets included.
        environments: name -> paths of its image files. The name begins the pack's.

    Returns:
        A pack an environment; None, with a message, where there is no room for them, or the directory can't be used.

    Raises:
        UsageError: an image can't be read.
    """
    wanted = [_Wanted(directory, name, files) for name, files in environments.items()]
    if packs := _opened(wanted):
        return packs
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with file_lock(directory / LOCK_FILE, f"waiting for another job to fill the cache {directory}"):
            _fill(directory, limit_gb, [one for one in wanted if not one.open()])
            packs = _opened(wanted)
    except OSError as error:
        tqdm.write(f"the cache {directory} can't be filled ({error}): images are read from their files")
        return None
    if packs is None:
        tqdm.write(f"the cache {directory} has no room under --cache_gb {limit_gb:g}: images are read from their files")
    return packs


class _Wanted:
    """An environment's pack, there or not yet."""

    def __init__(self, directory: Path, name: str, files: Sequence[str]) -> None:
        self.files = files
        self.fingerprint = fingerprint(files)
        # The same name in another folder has another pack, and so has another list of its files.
        self.stem = f"{name}-{_short_hash(os.path.dirname(files[0]))}"
        self.path = directory / f"{self.stem}-{_short_hash(*files)}.pack"

    def open(self) -> Pack | None:
        """The pack, if it is there and its files are still what they were."""
        with suppress(OSError, ValueError, KeyError):
            pack = Pack(self.path, self.files)
            if pack.fingerprint == self.fingerprint:
                return pack
        return None


def _opened(wanted: Sequence[_Wanted]) -> list[Pack] | None:
    packs = [pack for one in wanted if (pack := one.open())]
    return packs if len(packs) == len(wanted) else None


def _fill(directory: Path, limit_gb: float, missing: Sequence[_Wanted]) -> None:
    """Make the packs that are missing, if there is room for all of them."""
    if not missing:
        return  # another job has made them
    for unfinished in directory.glob("*.part"):  # of a job that was killed: only who holds the lock writes
        unfinished.unlink()
    for one in missing:
        one.path.unlink(missing_ok=True)  # it is outdated, and takes room
    is_decoded = _choose_form(missing, limit_gb * 2**30 - _bytes_in(directory))
    if is_decoded is None:
        for one in missing:  # lists of the same files that somebody may have done with
            for other in directory.glob(f"{glob.escape(one.stem)}-*.pack"):
                other.unlink()
        is_decoded = _choose_form(missing, limit_gb * 2**30 - _bytes_in(directory))
    if is_decoded is None:
        return
    total = sum(len(one.files) for one in missing)
    with tqdm(total=total, desc=f"filling {directory}", unit="image", disable=None) as bar:
        for one in missing:
            write_pack(one.path, one.files, one.fingerprint, is_decoded, joblib.cpu_count(), bar)


def fingerprint(files: Sequence[str]) -> str:
    """A hash of the files' names, sizes and times of change. (Threads would take five times as long to ask for these.)

    Raises:
        UsageError: one is not there.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            stat = os.stat(file)
        except OSError as error:
            raise UsageError(f"can't read {file}: {error.strerror}") from error
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _total(size_of: Callable[[Sequence[str]], int], files: Sequence[str]) -> int:
    """The sizes of all files together, asked for in slices: a task a file would cost more than what it does."""
    slices = [files[i : i + SLICE] for i in range(0, len(files), SLICE)]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        return sum(pool.map(size_of, slices))


def _short_hash(*words: str) -> str:
    return hashlib.md5("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:8]


def _choose_form(missing: Sequence[_Wanted], room: float) -> bool | None:
    """Whether the images are kept as pixels (True) or as their files' bytes (False); None where neither fits."""
    files = [file for one in missing for file in one.files]
    room -= INDEX_BYTES * (len(files) + 100 * len(missing))
    if _total(_decoded_bytes, files) <= room:
        return True
    return False if _total(_file_bytes, files) <= room else None


def _decoded_bytes(files: Sequence[str]) -> int:
    """The size of images' pixels; their headers tell, nothing is decoded. A broken image takes no room."""
    total = 0
    for file in files:
        with suppress(Exception), Image.open(file) as image:
            total += 3 * image.width * image.height
    return total


def _file_bytes(files: Sequence[str]) -> int:
    return sum(map(os.path.getsize, files))


def _bytes_in(directory: Path) -> int:
    with os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries)
