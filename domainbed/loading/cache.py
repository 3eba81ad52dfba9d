"""The optional cache of photographs: a pack for each environment, made once and shared by all jobs."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import joblib
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.loading.pack import Pack, write_pack

LOCK_FILE = ".lock"


def open_cached(directory: Path, limit_gb: float, environments: Mapping[str, Sequence[str]]) -> list[Pack] | None:
    """The packs of a dataset's environments, made first where they are missing or their files have changed.

    They hold pixels, if all of these fit, else the files' bytes. Of several jobs that want them at once, one makes them
    and the others wait.

    Args:
        directory: of the cache; made where it is not there.
        limit_gb: the most that the directory may hold, in GiB, packs of other datasets included.
        environments: name -> paths of its image files. The name begins the pack's.

    Returns:
        A pack an environment; None, with a message, where there is no room for them.

    Raises:
        UsageError: an image can't be read, or the directory can't be used.
    """
    fingerprints = {name: fingerprint(files) for name, files in environments.items()}
    paths = {name: directory / _pack_name(name, files) for name, files in environments.items()}

    def present(name: str) -> Pack | None:
        with suppress(OSError, ValueError, KeyError):
            pack = Pack(paths[name], environments[name])
            if pack.fingerprint == fingerprints[name]:
                return pack
        return None

    def all_present() -> list[Pack] | None:
        packs = [pack for name in environments if (pack := present(name))]
        return packs if len(packs) == len(environments) else None

    if packs := all_present():
        return packs
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            for unfinished in directory.glob("*.part"):  # of a job that was killed: only who holds the lock writes
                unfinished.unlink()
            missing = {name: files for name, files in environments.items() if not present(name)}
            for name in missing:
                paths[name].unlink(missing_ok=True)  # it is outdated, and takes room
            is_decoded = _choose_form(missing, limit_gb * 2**30 - _bytes_in(directory))
            if is_decoded is None:
                tqdm.write(
                    f"the cache {directory} has no room for {', '.join(missing)} under --cache_gb {limit_gb:g}: images "
                    "are read from their files"
                )
                return None
            total = sum(map(len, missing.values()))
            with tqdm(total=total, desc=f"filling {directory}", unit="image", disable=None) as bar:
                for name, files in missing.items():
                    write_pack(paths[name], files, fingerprints[name], is_decoded, joblib.cpu_count(), bar)
    except OSError as error:
        tqdm.write(f"the cache {directory} can't be filled ({error}): images are read from their files")
        return None
    return all_present()


def fingerprint(files: Sequence[str]) -> str:
    """A hash of the files' names, sizes and times of change.

    Raises:
        UsageError: one is not there.
    """
    with ThreadPoolExecutor(16) as pool:  # a network's file system answers many at once
        try:
            stats = list(pool.map(os.stat, files, chunksize=256))
        except OSError as error:
            raise UsageError(f"can't read {error.filename}: {error.strerror}") from error
    digest = hashlib.sha256()
    for file, stat in zip(files, stats, strict=True):
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _pack_name(name: str, files: Sequence[str]) -> str:
    """The same name in another folder has another pack."""
    return f"{name}-{hashlib.md5(os.path.dirname(files[0]).encode()).hexdigest()[:8]}.pack"


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the cache; the system lets go of it when this process ends, however it ends."""
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tqdm.write(f"waiting for another job to fill the cache {directory}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _choose_form(environments: Mapping[str, Sequence[str]], room: float) -> bool | None:
    """Whether the images are kept as pixels (True) or as their files' bytes (False); None where neither fits."""
    files = [file for of_environment in environments.values() for file in of_environment]
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        if sum(pool.map(_decoded_bytes, files, chunksize=64)) <= room:
            return True
        return False if sum(pool.map(os.path.getsize, files, chunksize=64)) <= room else None


def _decoded_bytes(file: str) -> int:
    """The size of an image's pixels; its header tells, nothing is decoded. A broken image takes no room."""
    with suppress(Exception), Image.open(file) as image:
        return 3 * image.width * image.height
    return 0


def _bytes_in(directory: Path) -> int:
    with os.scandir(directory) as entries:
        return sum(entry.stat().st_size for entry in entries)
