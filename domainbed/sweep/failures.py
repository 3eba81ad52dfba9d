"""What went wrong with a job, kept in its folder in words; and kinds of jobs that all fail alike."""

import errno
import json
import os
import re
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from domainbed.errors import UsageError, one_line
from domainbed.sweep.job import SWEEP_FOLDER, Job

# Written before a job begins, so that even on a full disk there is room to tell why it failed; it then becomes
# FAILURE_FILE, and back again when the job is given another try.
ATTEMPT_FILE = "attempt.json"
FAILURE_FILE = "failed.json"
WIDTH = 8192  # bytes

ALIKE = 3  # so many jobs of a kind, the first to end, fail alike: then no more of them are begun


@dataclass(frozen=True)
class Failure:
    """Why a job failed last.

    Attributes:
        reason: the last line of the error, in words.
        times: how often it has failed.
        host: where.
        at: when (local time).
    """

    reason: str = ""
    times: int = 0
    host: str = ""
    at: str = ""


def begin_attempt(folder: Path) -> None:
    """The job is tried, perhaps again."""
    clear_failure(folder)
    if not (folder / ATTEMPT_FILE).exists():
        _write(folder / ATTEMPT_FILE, Failure())


def clear_failure(folder: Path) -> None:
    """The job counts as failed no more; how often it did is kept."""
    with suppress(FileNotFoundError):
        os.replace(folder / FAILURE_FILE, folder / ATTEMPT_FILE)


def record_failure(folder: Path, reason: str) -> None:
    """Keep why the job failed, where the folder lets us."""
    with suppress(OSError):
        before = read_failure(folder / ATTEMPT_FILE)
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        _write(folder / ATTEMPT_FILE, Failure(reason, before.times + 1, socket.gethostname(), at))
        os.replace(folder / ATTEMPT_FILE, folder / FAILURE_FILE)


def forget_failures(folder: Path) -> None:
    """The job is done."""
    for name in (ATTEMPT_FILE, FAILURE_FILE):
        (folder / name).unlink(missing_ok=True)


def read_failure(path: Path) -> Failure:
    """What a file of this form tells; nothing where it can't be read."""
    try:
        return Failure(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return Failure()


def _write(path: Path, failure: Failure) -> None:
    """In place, where there is a file, for a full disk has no room for another."""
    told = json.dumps(asdict(failure) | {"reason": failure.reason[: WIDTH // 16]}).encode()  # up to 12 bytes a letter
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    except PermissionError:  # another user's file in a folder that is ours, too
        path.unlink()
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        os.pwrite(descriptor, told.ljust(WIDTH), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_error(error: BaseException, folder: Path) -> str:
    """An error as one line that tells the user what is wrong."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or folder
        hints = {errno.ENOSPC: " (the disk is full)", errno.EDQUOT: " (your quota is used up)"}
        return f"{where}: {os.strerror(error.errno)}{hints.get(error.errno, '')}"
    told = one_line(error)
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


# --- kinds of jobs that fail alike


def note_outcome(job: Job, reason: str) -> None:
    """Keep how a job ended ("" for well), for others of its kind."""
    outcomes = _outcomes(job)
    with suppress(OSError):
        outcomes.parent.mkdir(parents=True, exist_ok=True)
        with open(outcomes, "a", encoding="utf-8") as file:
            file.write(json.dumps([job.folder.name, reason]) + "\n")


def blocked_reason(job: Job) -> str:
    """Why no more jobs of its kind (dataset and algorithm) are begun: ALIKE of them, the first to end, failed alike."""
    ends: dict[str, str] = {}
    try:
        for line in _outcomes(job).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):  # a torn line
                name, reason = json.loads(line)
                ends[str(name)] = str(reason)  # of a job that was tried again, its last end
    except OSError:
        return ""
    first = list(ends.values())[:ALIKE]
    alike = len(first) == ALIKE and all(first) and len({_without_numbers(reason) for reason in first}) == 1
    return first[-1] if alike else ""


def let_go(job: Job) -> None:
    """Jobs of its kind may be begun again, whatever became of those before."""
    _outcomes(job).unlink(missing_ok=True)


def _outcomes(job: Job) -> Path:
    dataset, algorithm = (quote(name, safe="") for name in job.kind)
    return job.folder.parent / SWEEP_FOLDER / "outcomes" / dataset / f"{algorithm}.jsonl"


def _without_numbers(reason: str) -> str:
    """Two reasons that differ in a step, a size or a job's folder are alike."""
    return re.sub(r"\b[0-9a-f]{32}\b|[-+]?\d[\d.e+-]*", "#", reason)
