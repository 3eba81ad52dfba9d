"""The hash of the model that a job starts from."""

import hashlib
import os
from functools import lru_cache

from domainbed.errors import UsageError
from domainbed.files import open_regular


def init_digest(path: str) -> str:
    """Return a hash of the content of the model to start from. Raises UsageError if it cannot be read."""
    try:
        stat = os.stat(path)
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise UsageError(f"--init_from {path}: {error.strerror}") from error


@lru_cache
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """Return the hash of a file, computed once for all jobs of a launch."""
    digest = hashlib.md5()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
