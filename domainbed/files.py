"""Files and folders shared by several processes: atomic writes and file locks."""

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
    """Create the folder given as --output_dir if it does not exist.

    Raises:
        UsageError: it cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"--output_dir {folder}: {error.strerror}") from error


@contextmanager
def atomic_write(path: Path, backup: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file in the same folder (its name ends in .part) that replaces `path` once it is on disk.

    If several processes write the same path, the last one to finish wins.

    Args:
        path: the file to write.
        backup: where to move the previous file, if any.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if backup and path.exists():
            os.replace(path, backup)
        os.replace(temporary, path)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save hides the error of a full disk
            raise _with_path(error.__context__, path, temporary) from None
        raise
    except OSError as error:
        raise _with_path(error, path, temporary) from None
    finally:
        temporary.unlink(missing_ok=True)


def _with_path(error: OSError, path: Path, temporary: Path) -> OSError:
    """Return the error with `path` in place of the temporary file, or of no file (a full disk)."""
    if error.errno is None or error.filename not in (None, str(temporary)):
        return error
    return OSError(error.errno, os.strerror(error.errno), str(path))


@contextmanager
def file_lock(path: Path, message: str) -> Iterator[None]:
    """Hold the lock file `path`; print `message` if another process holds it.

    The operating system releases the lock when the process ends for any reason.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(message, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
