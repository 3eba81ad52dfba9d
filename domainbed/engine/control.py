"""The means by which the caller of `train` follows a job and stops it."""

from collections.abc import Callable
from dataclasses import dataclass

from domainbed.engine.lock import Lock
from domainbed.records import PruneDecision


@dataclass(frozen=True)
class JobControl:
    """A caller's control of a job. By default, the job runs to its end and acquires its own lock.

    Attributes:
        should_stop: called after every update, before every batch of an evaluation, and for every image that is added
            to the cache, also by other threads; True stops the job.
        on_record: called with the step after each record has been written.
        should_prune: called with the step after each record has been written, and when a job resumes right after one; a
            decision stops the job, which saves a checkpoint first.
        lock: the lock of the job's folder, if the caller already holds it.
    """

    should_stop: Callable[[], bool] = lambda: False
    on_record: Callable[[int], None] = lambda step: None
    should_prune: Callable[[int], PruneDecision | None] = lambda step: None
    lock: Lock | None = None
