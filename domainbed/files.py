"""Files and folders that several processes share: written whole or not at all, held by one at a time."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from domainbed.errors import UsageError


def make_folder(folder: Path) -> None:
    """Make what --output_dir names where there is none, and see that it can be written to. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--output_dir {folder}: {error.strerror}") from error


@contextmanager
def atomic_write(path: Path, kept: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write into, beside `path` (with .part at its name's end), that takes its place once it is on disk.

    What stood there moves to `kept`, where that is given. Of several processes that write it, the last to end has it.

    Raises:
        OSError: the file can't be written; it names `path`.
    """
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if kept and path.exists():
            os.replace(path, kept)
        os.replace(aside, path)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save lays an error of its own over a full disk's
            raise _naming(path, error.__context__, aside) from None
        raise
    except OSError as error:
        raise _naming(path, error, aside) from None
    finally:
        aside.unlink(missing_ok=True)


def _naming(path: Path, error: OSError, aside: Path) -> OSError:
    """The error, of the file that was asked for, where it names the one aside, or none (a disk that is full)."""
    if error.errno is None or error.filename not in (None, str(aside)):
        return error
    return OSError(error.errno, os.strerror(error.errno), str(path))


@contextmanager
def file_lock(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock `path`, for which `waiting` is printed where another process has it.

    The system lets go of it when this process ends, however it ends.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
