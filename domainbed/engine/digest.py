"""Hashes of what records depend on apart from a job's arguments: the model to start from, and users' code."""

import hashlib
import os
import sys
from collections.abc import Iterable
from functools import lru_cache

from domainbed.errors import UsageError
from domainbed.files import open_regular


def init_digest(path: str) -> str:
    """Return a hash of the content of the model to start from. Raises UsageError if it cannot be read."""
    try:
        return _file_digest(path)
    except OSError as error:
        raise UsageError(f"--init_from {path}: {error.strerror}") from error


def code_digest(classes: Iterable[type]) -> str | None:
    """Return a hash of the files that define users' classes and their bases; None if there are none.

    A file is read at the first call for a class of its module, soon after its code has been imported: later changes do
    not affect this process. Classes of this package, of torch and of Python do not count, and neither do
    those without a file (a notebook's).
    """
    modules = {base.__module__ for cls in classes for base in cls.__mro__}
    own = sorted(m for m in modules if m.partition(".")[0] not in {*sys.stdlib_module_names, "torch", "domainbed"})
    digest = hashlib.md5()
    digests = [d for name in own if (d := _module_digest(name)) is not None]
    for own_digest in digests:
        digest.update(own_digest.encode())
    return digest.hexdigest() if digests else None


_MODULES: dict[str, tuple[object, str]] = {}  # the specification, which a reload replaces, and the hash of each module


def _module_digest(name: str) -> str | None:
    """Return a hash of the file that a module was imported from; None if it has none."""
    module = sys.modules.get(name)
    file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    if file is None:
        return None
    if name not in _MODULES or _MODULES[name][0] is not spec:
        try:
            _MODULES[name] = spec, _file_digest(file)
        except OSError:  # in a zip archive, or deleted
            _MODULES[name] = spec, file
    return _MODULES[name][1]


def _file_digest(path: str) -> str:
    stat = os.stat(path)
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """Return the hash of a file, computed once for all jobs of a launch."""
    digest = hashlib.md5()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
