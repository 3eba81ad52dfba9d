"""Files that several processes share: written whole or not at all, held by one at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout


@contextmanager
def written_whole(path: Path, kept: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write into, beside `path` (with .part behind its name), that takes its place once it is on disk.

    What stood there moves to `kept`, where that is given.
    """
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if kept and path.exists():
            os.replace(path, kept)
        os.replace(aside, path)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch.save lays an error of its own over a full disk's
            raise error.__context__ from None
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def held(path: Path, waiting: str) -> Iterator[None]:
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
