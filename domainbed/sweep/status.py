"""How far each job of a sweep is: read off its folder, and off the scheduler's queue."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from domainbed.engine.lock import LOCK_FILE, LockOwner, file_system_time, lock_owner, seems_alive
from domainbed.records import CHECKPOINT_FILE, DONE_FILE
from domainbed.sweep.failures import FAILURE_FILE, Failure, read_failure
from domainbed.sweep.job import Job
from domainbed.sweep.queue import Queue


class JobState(Enum):
    """How far a job is."""

    NOT_LAUNCHED = "not launched"
    QUEUED = "queued"
    RUNNING = "running"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    DONE = "done"


@dataclass(frozen=True)
class Status:
    """A job's state, and what goes with it.

    Attributes:
        state: how far it is.
        holder: of a running job, who trains it.
        failure: of a failed job, why.
        has_leftovers: of a job that is done, whether it left a checkpoint or its lock behind.
    """

    state: JobState
    owner: LockOwner | None = None
    failure: Failure | None = None
    has_leftovers: bool = False


def status_of(job: Job) -> Status:
    """What the job's folder tells."""
    return _status(job, _names(job.folder), None, None)


def survey(jobs: Iterable[Job], queue: Queue | None = None) -> dict[Job, Status]:
    """The status of each job, all of them of one sweep; `queue` is what the scheduler has of it."""
    jobs = list(jobs)
    if not jobs:
        return {}
    sweep_dir = jobs[0].folder.parent
    there = _names(sweep_dir)
    now = file_system_time(sweep_dir) if there else 0.0
    return {job: _status(job, _names(job.folder) if job.folder.name in there else set(), queue, now) for job in jobs}


def _status(job: Job, names: set[str], queue: Queue | None, now: float | None) -> Status:
    """The job's status; `names` is what lies in its folder, `now` the time there (None: look)."""
    if DONE_FILE in names:
        return Status(JobState.DONE, has_leftovers=CHECKPOINT_FILE in names or LOCK_FILE in names)
    if LOCK_FILE in names and (owner := _living_holder(job.folder, now, queue)):
        return Status(JobState.RUNNING, owner=owner)
    if FAILURE_FILE in names:
        return Status(JobState.FAILED, failure=read_failure(job.folder / FAILURE_FILE))
    if queue and queue.has(job):
        return Status(JobState.QUEUED)
    return Status(JobState.INCOMPLETE if names else JobState.NOT_LAUNCHED)


def tally(statuses: Mapping[Job, Status]) -> str:
    """How many of each state: "30 done, 6 incomplete"."""
    counts = Counter(status.state for status in statuses.values())
    return ", ".join(f"{counts[state]} {state.value}" for state in JobState if counts[state])


def _names(folder: Path) -> set[str]:
    """What is in a folder, by one listing."""
    try:
        return set(os.listdir(folder))
    except PermissionError:
        return {folder.name}  # something, if we can't know what
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _living_holder(folder: Path, now: float | None, queue: Queue | None) -> LockOwner | None:
    """Who trains in a folder that has a lock, if that process lives."""
    owner = lock_owner(folder)
    if queue and owner and owner.slurm_job:
        runs = queue.runs(owner.slurm_job)
        if runs is not None:
            return owner if runs else None  # SLURM knows it at once, a heartbeat only after a while
    return (owner or _SOMEONE) if seems_alive(folder, now) else None


_SOMEONE = LockOwner("?", "", 0, "", 0, "")  # who has just made the lock, and not yet written into it
