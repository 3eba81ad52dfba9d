"""One process a job: two in one folder would garble its records."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from domainbed.errors import UsageError

LOCK_FILE = ".lock"


class TakenError(UsageError):
    """Another process trains this job, or has finished it."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a job's folder. The system lets go of it when this process ends, however it ends.

    Raises:
        TakenError: another process holds it.
    """
    try:
        with FileLock(folder / LOCK_FILE, timeout=2):  # long enough for one who only looked (is_locked) to let go
            yield
    except Timeout:
        raise TakenError(f"{folder} is being trained by another process") from None


def is_locked(folder: Path) -> bool:
    """Whether a process holds a job's folder."""
    if not (folder / LOCK_FILE).exists():
        return False
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True
