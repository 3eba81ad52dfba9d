"""The contract of a launcher: it takes jobs, has them run, and tells what becomes of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from domainbed.sweep.failures import ALIKE, blocked_reason
from domainbed.sweep.job import Job
from domainbed.sweep.status import JobState


@dataclass(frozen=True)
class Update:
    """What a launcher tells of a job.

    Attributes:
        steps: of a running job, the updates it has done up to its last record.
        reason: of a failed job, why: its last words first, then the end of its log. Of one that stays incomplete or is
            not launched, why, if that is not what was asked for.
    """

    job: Job
    state: JobState
    steps: int = 0
    reason: str = ""


def passed_over(job: Job, state: JobState, blocked_reason: Callable[[Job], str] = blocked_reason) -> Update | None:
    """What is told of a job that need not or must not be begun; None for one that may.

    Args:
        job: the job.
        state: its state.
        held_back: tells why no more of its kind are begun.
    """
    if state not in (JobState.NOT_LAUNCHED, JobState.INCOMPLETE):
        reason = "it has failed in another launch" if state == JobState.FAILED else ""
        return Update(job, state, job.config.steps if state == JobState.DONE else 0, reason)
    if reason := blocked_reason(job):
        told = f"held back: the first {ALIKE} of its kind to end all failed alike; --retry_failed tries again: {reason}"
        return Update(job, state, reason=told)
    return None


class Launcher:
    """Has jobs run somewhere (or, where RUNS_JOBS is False, only tells how).

    How far a job is, whoever launched it, tells `domainbed.sweep.status.survey`.

    Args:
        options: the command line's, by name; a launcher reads those that concern it.

    Raises:
        UsageError: one of them can't be.
    """

    RUNS_JOBS: ClassVar[bool] = True
    RUNS_HERE: ClassVar[bool] = True  # and so knows of each job until its end

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def check(self) -> None:
        """See that jobs can be launched here at all. Raises UsageError."""

    def launch(self, jobs: Sequence[Job], should_stop: Callable[[], bool] = lambda: False) -> Iterator[Update]:
        """Have `jobs` run, and tell what becomes of them for as long as this launcher can know.

        A job that fails is told and never keeps the others from running.

        Args:
            jobs: in the order in which they shall begin.
            should_stop: once it says so, no job begins any more, and those that run save what they have and stop.
        """
        raise NotImplementedError(f"{type(self).__name__} launches nothing")

    def stop(self) -> None:
        """End the jobs that run here, at once."""
