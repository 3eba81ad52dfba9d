"""Files and folders that other processes, users and programs also write: safe reads, atomic writes, file locks."""

import errno
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from domainbed.errors import UsageError

# Errors that say that a file is not there (on a network file system also ESTALE: another machine has deleted it).
# All others, such as EIO or an expired ticket (EACCES), say nothing about it.
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ESTALE}
MAX_JSON_SIZE = 16 * 2**20  # bytes; the largest such file of this package, a launch of 100,000 tasks, has 8 MiB


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Never waits, as opening a named pipe or reading a terminal would.

    Raises:
        OSError: the file cannot be opened, or is a folder, pipe, socket or device; the error names `path`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: str | Path, max_size: int) -> bytes:
    """Return the content of a regular file of at most `max_size` bytes.

    Raises:
        OSError: as in `open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= max_size:
            content = file.read(max_size + 1)  # the file may be growing
            if len(content) <= max_size:
                return content
    raise OSError(errno.EFBIG, f"Larger than {max_size:,} bytes", str(path))


def read_end(path: str | Path, size: int) -> bytes:
    """Return the last `size` bytes of a regular file, or all if it has fewer. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read(size)


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file of at most MAX_JSON_SIZE bytes.

    Raises:
        OSError: as in `read_regular`.
        ValueError: it is not valid JSON, or is nested too deeply.
    """
    try:
        return json.loads(read_regular(path, MAX_JSON_SIZE))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def make_folder(folder: Path, flag: str = "--output_dir") -> None:
    """Create the folder given with a flag if it does not exist.

    Raises:
        UsageError: it cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{flag} {folder}: {error.strerror}") from error


def folder_size(folder: Path, leave_out: tuple[str, ...] = ()) -> int:
    """Return the size of the regular files in a folder, in bytes; 0 if it does not exist.

    Args:
        folder: its subfolders are not counted, and neither are files that another process deletes meanwhile.
        leave_out: prefixes of the names of files that are not counted.
    """
    size = 0
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(leave_out) and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def open_to_append(path: str | Path) -> BinaryIO:
    """Open a file for appending; create it if it does not exist. Never follows a link, which may lead to any file.

    Raises:
        OSError: the file cannot be opened, or is a symbolic link; the error names `path`.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(path, flags, 0o666), "ab")


def other_writers(folder: Path) -> str:
    """Return who else could replace files that this user creates in a folder, and where; "" if only root could.

    The folders above count as well: whoever can write to one of them can replace the folder.
    """
    import grp
    import pwd

    user = os.getuid()
    probe = folder / f"{uuid.uuid4().hex}.part"  # has the mode of new folders, and of the folders that programs create
    probe.mkdir()
    try:
        chain = [(path, path.stat()) for path in (probe, *probe.resolve().parents)]
    finally:
        probe.rmdir()
    for i, (path, status) in enumerate(chain):
        shown = folder if i == 0 else path
        if status.st_uid not in (user, 0):
            return f"user {_name_of(pwd.getpwuid, status.st_uid)} owns {shown}"
        if i and status.st_mode & stat.S_ISVTX:  # only the owners of its files can replace them
            continue
        if status.st_mode & stat.S_IWOTH:
            return f"everybody can write to {shown}"
        if status.st_mode & stat.S_IWGRP and status.st_gid and not _is_own_group(user, status.st_gid):
            return f"group {_name_of(grp.getgrgid, status.st_gid)} can write to {shown}"
    return ""


def _is_own_group(user: int, group: int) -> bool:
    """Return whether a user is the only member of a group, as of the group named after the user on many systems."""
    import grp
    import pwd

    try:
        name, entry = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}


def _name_of(lookup: Callable[[int], Any], number: int) -> str:
    try:
        return lookup(number)[0]
    except KeyError:
        return str(number)


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
    if path.exists() and not (path.is_file() or path.is_dir()):  # replacing a device would destroy it
        raise OSError(errno.EINVAL, "not a regular file", str(path))
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
def file_lock(path: Path, message: str, while_waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`; print `message` if another process holds it.

    The operating system releases the lock when the process ends for any reason.

    Args:
        path: the lock file.
        message: printed before waiting.
        while_waiting: called several times per second; an exception that it raises ends the wait.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(message, flush=True)
        while not lock.is_locked:
            while_waiting()
            with suppress(Timeout):
                lock.acquire(timeout=0.2)
    try:
        yield
    finally:
        lock.release()
