"""Reasons of failures, in a file in the folder of each failed job."""

import errno
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from domainbed.errors import AlgorithmError, UsageError, one_line, printable
from domainbed.files import read_json

# ATTEMPT_FILE is written before a job starts, so that a failure can be recorded in it even if the disk is full by then.
# It is renamed to FAILURE_FILE when the job fails, and back when the job is retried.
ATTEMPT_FILE = "attempt.json"
FAILURE_FILE = "failed.json"
FILE_SIZE = 8192  # bytes


@dataclass(frozen=True)
class Failure:
    """The last failure of a job.

    Attributes:
        reason: the error, in one line.
        times: how often the job has failed.
        host: the machine.
        at: the local time.
    """

    reason: str = ""
    times: int = 0
    host: str = ""
    at: str = ""


def begin_attempt(folder: Path) -> None:
    """Prepare the folder of a job that is about to start. Raises OSError if the disk is full."""
    clear_failure(folder)
    if not (folder / ATTEMPT_FILE).exists():
        _write(folder / ATTEMPT_FILE, Failure(), is_flushed=False)  # reserves the space; its content does not matter


def clear_failure(folder: Path) -> None:
    """Mark a job as not failed, so that it can be retried. The number of its failures is kept."""
    with suppress(FileNotFoundError):
        os.replace(folder / FAILURE_FILE, folder / ATTEMPT_FILE)


def record_failure(folder: Path, reason: str) -> None:
    """Mark a job as failed, if its folder can be written to."""
    with suppress(OSError):
        times = read_failure(folder / ATTEMPT_FILE).times + 1
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        _write(folder / ATTEMPT_FILE, Failure(reason, times, socket.gethostname(), at))
        os.replace(folder / ATTEMPT_FILE, folder / FAILURE_FILE)


def remove_failure_files(folder: Path) -> None:
    """Remove the files of this module from the folder of a job that is done."""
    for name in (ATTEMPT_FILE, FAILURE_FILE):
        (folder / name).unlink(missing_ok=True)


def read_failure(path: Path) -> Failure:
    """Return the content of an ATTEMPT_FILE or FAILURE_FILE; an empty failure if it cannot be read."""
    try:
        failure = Failure(**read_json(path))
    except (OSError, ValueError, TypeError):
        return Failure()
    texts = (failure.reason, failure.host, failure.at)
    if type(failure.times) is not int or not all(isinstance(text, str) for text in texts):
        return Failure()
    reason, host, at = map(printable, texts)
    return Failure(reason, failure.times, host, at)


def _write(path: Path, failure: Failure, is_flushed: bool = True) -> None:
    """Write a file of FILE_SIZE bytes. An existing file is overwritten in place, which requires no free space."""
    reason = failure.reason[: FILE_SIZE // 16]  # JSON takes up to 12 bytes per character
    content = json.dumps(asdict(failure) | {"reason": reason}).encode()
    flags = os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)  # a link may lead to any file
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO):
            raise
        path.unlink()  # another user's file, a link or a pipe, in a folder that this user can write to
        descriptor = os.open(path, flags, 0o666)
    try:
        os.pwrite(descriptor, content.ljust(FILE_SIZE), 0)
        if is_flushed:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_error(error: BaseException, folder: Path) -> str:
    """Return a one-line description of an error in the job of a folder."""
    return printable(_describe_error(error, folder))


def _describe_error(error: BaseException, folder: Path) -> str:
    if isinstance(error, UsageError | AlgorithmError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        hints = {errno.ENOSPC: " (the disk is full)", errno.EDQUOT: " (the user's disk quota is used up)"}
        return f"{error.filename or folder}: {os.strerror(error.errno)}{hints.get(error.errno, '')}"
    message = one_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
