"""The interface of a launcher."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from domainbed.sweep.job import Job
from domainbed.sweep.run import TAKEN, JobEvent, done_event, pruned_event
from domainbed.sweep.status import MAX_ALIKE, JobState, Status


@dataclass(frozen=True)
class Capacity:
    """What a launcher runs jobs on.

    Attributes:
        jobs: number of jobs that run at once.
        cores: number of CPU cores per job.
        gpus: number of GPUs per job; a fraction if several jobs share one.
    """

    jobs: int
    cores: int
    gpus: float


@dataclass(frozen=True)
class NoOptions:
    """The options of a launcher that has none."""


class Launcher:
    """Runs jobs somewhere and reports what happens to them.

    `domainbed.sweep.status.survey` returns the state of any job, whichever launcher runs it.

    Attributes:
        Options: a dataclass with the command-line options of the launcher (see `domainbed.options`).
        WAITS: whether `launch` reports each job until it ends, as opposed to only submitting it.

    Args:
        options: an instance of `Options`.

    Raises:
        UsageError: an option is invalid.
    """

    Options: ClassVar[type] = NoOptions
    WAITS: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self) -> None:
        """Check that jobs can be run from this machine. Raises UsageError."""

    def capacity(self, n_jobs: int) -> Capacity | None:
        """Return what `n_jobs` jobs would run on, to estimate their cost, or None if it is unknown."""
        return None

    def launch(
        self, jobs: Sequence[Job], statuses: Mapping[Job, Status], should_stop: Callable[[], bool]
    ) -> Iterator[JobEvent]:
        """Run jobs and yield an event whenever the state of one changes. A job that fails never affects the others.

        Args:
            jobs: the jobs to run, in the order in which to start them.
            statuses: the statuses of these and all other jobs of the launch, read shortly before.
            should_stop: once it returns True, no more jobs are started, and running ones save their state and stop.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement launch")

    def print_commands(self, jobs: Sequence[Job]) -> None:
        """Print what `launch` would run, for --dry_run."""
        for job in jobs:
            print(shlex.join(job.command()))

    def stop(self) -> None:
        """Kill all jobs that run on this machine."""


def skip_event(job: Job, state: JobState, blocked_reason: str) -> JobEvent | None:
    """Return the event of a job that must not be started now, or None if it may be.

    Args:
        job: a job to run.
        state: its current state.
        blocked_reason: why no more jobs of its kind are started, or "".
    """
    if state == JobState.DONE:
        return done_event(job)
    if state == JobState.PRUNED:
        return pruned_event(job)
    if state not in (JobState.NOT_LAUNCHED, JobState.INCOMPLETE):
        reasons = {JobState.FAILED: "failed in another launch", JobState.RUNNING: TAKEN}
        return JobEvent(job, state, reason=reasons.get(state, ""))
    if blocked_reason:
        why = f"blocked, because {MAX_ALIKE} jobs of its kind failed the same way; `--retry_failed` retries them"
        return JobEvent(job, state, reason=f"{why}: {blocked_reason}")
    return None
