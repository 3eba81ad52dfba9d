"""The status of each job of a sweep, read from the job's folder and the scheduler's queue."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from domainbed.engine.lock import LOCK_FILE, LockOwner, file_system_time, is_locked, lock_owner
from domainbed.records import CHECKPOINT_FILE, DONE_FILE, PRUNED_FILE
from domainbed.sweep.failures import FAILURE_FILE, Failure, read_failure
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.queue import Queue
from domainbed.terminal import colored

MAX_ALIKE = 3  # jobs of a kind that fail for the same reason before the kind is blocked

# The owner of a lock that was just created and is still empty.
_UNKNOWN_OWNER = LockOwner("?", "", 0, "", 0, "")


class JobState(Enum):
    """The state of a job."""

    NOT_LAUNCHED = "not launched"
    QUEUED = "queued"
    RUNNING = "running"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    PRUNED = "pruned"
    DONE = "done"


FINISHED = {JobState.PRUNED, JobState.DONE}  # states of jobs that a launch with a pruning rule does not run anymore
COLORS = {
    JobState.QUEUED: "blue",
    JobState.RUNNING: "cyan",
    JobState.INCOMPLETE: "yellow",
    JobState.FAILED: "red",
    JobState.PRUNED: "magenta",
    JobState.DONE: "green",
}


@dataclass(frozen=True)
class Status:
    """The state of a job, with details.

    Attributes:
        state: the state.
        owner: the process that trains the job, if it is running.
        failure: why the job failed, if it did.
        has_leftovers: whether a job that is done left a checkpoint or its lock behind.
    """

    state: JobState
    owner: LockOwner | None = None
    failure: Failure | None = None
    has_leftovers: bool = False


def read_status(folder: Path, now: float | None = None) -> Status:
    """Return the status of the job in a folder, without the scheduler's queue.

    Args:
        folder: the job's folder.
        now: time by the clock of the folder's file system, if known.
    """
    return _status(folder, _list_names(folder), None, now)


def survey(jobs: Iterable[Job], queue: Queue | None = None) -> dict[Job, Status]:
    """Return the status of each job.

    Args:
        jobs: jobs of one sweep.
        queue: the sweep's tasks in the scheduler's queue, if there is a scheduler.
    """
    jobs = list(jobs)
    if not jobs:
        return {}
    sweep_dir = jobs[0].folder.parent
    existing = _list_names(sweep_dir)
    now = file_system_time(sweep_dir) if existing else 0.0
    return {
        job: _status(job.folder, _list_names(job.folder) if job.folder.name in existing else set(), queue, now)
        for job in jobs
    }


def count_states(statuses: Mapping[Job, Status], stream: IO[str] | None = None) -> str:
    """Return how many jobs are in each state, such as "30 done, 6 incomplete", in color if `stream` shows colors."""
    counts = Counter(status.state for status in statuses.values())
    return ", ".join(f"{counts[state]} {colored_state(state, stream=stream)}" for state in JobState if counts[state])


def colored_state(state: JobState, text: str | None = None, stream: IO[str] | None = None) -> str:
    """Return the name of a state, or another text about it, in its color if a stream (default: stdout) shows colors."""
    return colored(text or state.value, COLORS.get(state), stream)


def blocked_kinds(statuses: Mapping[Job, Status]) -> dict[Kind, str]:
    """Return the kinds of jobs that are blocked, with the reason of their failures."""
    by_kind: dict[Kind, list[Status]] = defaultdict(list)
    for job, status in statuses.items():
        by_kind[job.kind].append(status)
    return {kind: reason for kind, of_kind in by_kind.items() if (reason := blocked_reason(of_kind))}


def blocked_reason(statuses: Iterable[Status]) -> str:
    """Return why no more jobs of a kind are started, or "" if it is not blocked.

    A kind is blocked while none of its jobs is done or pruned and MAX_ALIKE of them have failed for the same reason.
    Reasons that differ only in numbers or in the names of job folders are the same.

    Args:
        statuses: of the kind's jobs. Iteration stops at the first job that is done or pruned.
    """
    counts: Counter[str] = Counter()
    blocked = ""
    for status in statuses:
        if status.state in FINISHED:
            return ""
        if status.failure and status.failure.reason:
            masked = re.sub(r"\b[0-9a-f]{32}\b|[-+]?\d[\d.e+-]*", "#", status.failure.reason)
            counts[masked] += 1
            if counts[masked] == MAX_ALIKE:
                blocked = blocked or status.failure.reason
    return blocked


def _status(folder: Path, names: set[str], queue: Queue | None, now: float | None) -> Status:
    """Return the status of the job in a folder that contains files of these names."""
    if DONE_FILE in names:
        return Status(JobState.DONE, has_leftovers=CHECKPOINT_FILE in names or LOCK_FILE in names)
    if LOCK_FILE in names and (owner := _live_owner(folder, now, queue)):
        return Status(JobState.RUNNING, owner=owner)
    if FAILURE_FILE in names:
        return Status(JobState.FAILED, failure=read_failure(folder / FAILURE_FILE))
    if PRUNED_FILE in names:
        return Status(JobState.PRUNED)
    if queue and queue.has(folder.name):
        return Status(JobState.QUEUED)
    if queue and not names and folder.name in queue.failures:
        return Status(JobState.FAILED, failure=Failure(queue.failures[folder.name], times=1))
    return Status(JobState.INCOMPLETE if names else JobState.NOT_LAUNCHED)


def _list_names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except PermissionError:
        return {folder.name}  # not empty, as far as is known
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _live_owner(folder: Path, now: float | None, queue: Queue | None) -> LockOwner | None:
    """Return the owner of a folder's lock if it is alive."""
    owner = lock_owner(folder)
    if queue and owner and owner.slurm_job:
        is_running = queue.is_running(owner.slurm_job)
        if is_running is not None:
            return owner if is_running else None  # known to SLURM at once, but to the heartbeat only after a while
    return (owner or _UNKNOWN_OWNER) if is_locked(folder, now) else None
