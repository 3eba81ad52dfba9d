"""The contract of a launcher: it takes jobs, tells the state of each, and can stop them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from domainbed.sweep.job import Job, JobState


@dataclass(frozen=True)
class Update:
    """What a launcher tells of a job.

    Attributes:
        steps: of a running job, the updates it has done up to its last record.
        reason: of a failed job, why: its last words first, then the end of its log.
    """

    job: Job
    state: JobState
    steps: int = 0
    reason: str = ""


class Launcher:
    """Runs jobs somewhere (or, where RUNS_JOBS is False, only tells how).

    Args:
        workers: how many at once; None for what suits the machine.
    """

    RUNS_JOBS: ClassVar[bool] = True

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers

    def state(self, job: Job) -> JobState:
        """How far a job is; here what its folder tells. A launcher with a queue knows more."""
        return job.state()

    def launch(self, jobs: Sequence[Job]) -> Iterator[Update]:
        """Have `jobs` run, and tell what becomes of them for as long as this launcher can know.

        A job that fails is told and never keeps the others from running.
        """
        raise NotImplementedError(f"{type(self).__name__} launches nothing")

    def stop(self) -> None:
        """End the jobs that run, now."""
