"""Run one job of a sweep in this process, with its output in the job's log."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted, Pruned
from domainbed.engine.lock import Lock, TakenError, is_locked, locked
from domainbed.errors import AlgorithmError, UsageError
from domainbed.files import open_to_append
from domainbed.records import is_done, is_pruned, read_pruned
from domainbed.sweep.failures import begin_attempt, describe_error, record_failure, remove_failure_files
from domainbed.sweep.job import LOG_FILE, Job
from domainbed.sweep.peers import Pruner
from domainbed.sweep.status import JobState

TAKEN = "another process is training it"


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job during a launch.

    Attributes:
        job: the job.
        state: its state from now on.
        steps: number of updates done: by a running or pruned job up to its last record, by a stopped one here.
        reason: why the job failed, was interrupted, pruned or not started; more lines may follow the first.
    """

    job: Job
    state: JobState
    steps: int = 0
    reason: str = ""

    @property
    def is_progress(self) -> bool:
        """True while the launch is running the job. (A running job with a reason belongs to another process.)"""
        return self.state == JobState.RUNNING and not self.reason

    @property
    def has_ended(self) -> bool:
        """True if the job has ended, at least for this launch."""
        return self.state in (JobState.DONE, JobState.PRUNED, JobState.FAILED, JobState.INCOMPLETE)


def run_job(job: Job, on_event: Callable[[JobEvent], object], should_stop: Callable[[], bool]) -> JobEvent:
    """Train a job, or resume it, and return how it ended. Exceptions of the job are recorded as failures, not raised.

    Args:
        job: the job.
        on_event: called after each record.
        should_stop: as in `JobControl`.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with locked(job.folder) as lock:
            return _attempt(job, on_event, should_stop, lock)
    except TakenError:
        return _taken(job)
    except OSError as error:
        event = JobEvent(job, JobState.FAILED, reason=describe_error(error, job.folder))
        if not is_locked(job.folder):
            record_failure(job.folder, event.reason)
        return event


def _attempt(job: Job, on_event: Callable[[JobEvent], object], should_stop: Callable[[], bool], lock: Lock) -> JobEvent:
    """Train a job under its lock, and record the result."""

    should_prune = Pruner(job) if job.pruning else JobControl.should_prune

    def on_record(step: int) -> None:
        on_event(JobEvent(job, JobState.RUNNING, steps=step + 1))

    if job.pruning and is_pruned(job.folder):  # by another process
        return pruned_event(job)
    try:
        begin_attempt(job.folder)
        with _output_to_log(job):
            event = _train(job, JobControl(should_stop, on_record, should_prune, lock))
    except OSError as error:
        event = JobEvent(job, JobState.FAILED, reason=describe_error(error, job.folder))
    if event.state == JobState.FAILED:
        record_failure(job.folder, event.reason)
    if is_done(job.folder):  # in this process or another
        remove_failure_files(job.folder)
    return event


def _train(job: Job, control: JobControl) -> JobEvent:
    from domainbed.engine.train import train  # imports torch

    try:
        train(job.config, control)
    except TakenError as error:
        print(error)
        return _taken(job)
    except Pruned as pruned:
        print(pruned)
        return pruned_event(job)
    except Interrupted as interrupted:
        print(interrupted)
        return JobEvent(job, JobState.INCOMPLETE, steps=interrupted.updates)
    except (Exception, SystemExit) as error:
        if isinstance(error, AlgorithmError):
            print(error.report, end="")
        elif not isinstance(error, UsageError):
            traceback.print_exc()
        reason = describe_error(error, job.folder)
        print(f"error: {reason}")
        return JobEvent(job, JobState.FAILED, reason=reason)
    return done_event(job)


def done_event(job: Job) -> JobEvent:
    """Return the event of a job that is done."""
    return JobEvent(job, JobState.DONE, steps=job.config.steps)


def pruned_event(job: Job) -> JobEvent:
    """Return the event of a job that is pruned."""
    decision = read_pruned(job.folder)
    return JobEvent(job, JobState.PRUNED, decision.step + 1 if decision else 0, str(decision) if decision else "")


def _taken(job: Job) -> JobEvent:
    """Return the event of a job that another process trains or has finished."""
    if is_done(job.folder):
        return done_event(job)
    return JobEvent(job, JobState.RUNNING, reason=TAKEN)


@contextmanager
def _output_to_log(job: Job) -> Iterator[None]:
    """Append all output, including that of C code and child processes, to the job's log."""
    saved = [os.dup(1), os.dup(2)]
    try:
        with open_to_append(job.folder / LOG_FILE) as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        for stream in (sys.stdout, sys.stderr):  # a file can represent all names
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk
                stream.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
