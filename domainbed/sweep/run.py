"""One job of a sweep, trained in this process: its log, and how it ended."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import Lock, TakenError, is_locked, locked
from domainbed.errors import UsageError
from domainbed.records import is_done
from domainbed.sweep.failures import (
    begin_attempt,
    blocked_reason,
    describe_error,
    forget_failures,
    note_outcome,
    record_failure,
)
from domainbed.sweep.job import LOG_FILE, Job


class End(Enum):
    """How a job left this process."""

    DONE = "done"
    TAKEN = "taken"  # another process trains it, or has finished it
    STOPPED = "stopped"  # as asked; it can go on
    FAILED = "failed"
    HELD_BACK = "held back"  # others of its kind all failed alike


@dataclass(frozen=True)
class Outcome:
    """How a job left this process.

    Attributes:
        end: in which way.
        reason: of a failure (its own, or those of its kind) why.
        updates: of a job that was stopped, how many it had done here.
    """

    end: End
    reason: str = ""
    updates: int = 0


def run_job(job: Job, on_record: Callable[[int], None], should_stop: Callable[[], bool]) -> Outcome:
    """Train a job, or go on with it. Never raises, whatever the job does; its folder tells how it ended.

    Args:
        job: the job.
        on_record, should_stop: see `domainbed.engine.train.train`.
    """
    if reason := blocked_reason(job):
        return Outcome(End.HELD_BACK, reason)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with locked(job.folder) as lock:
            return _attempt(job, on_record, should_stop, lock)
    except TakenError:
        return Outcome(End.TAKEN)
    except OSError as error:
        outcome = Outcome(End.FAILED, describe_error(error, job.folder))
        if not is_locked(job.folder):
            record_failure(job.folder, outcome.reason)
        return outcome


def _attempt(job: Job, on_record: Callable[[int], None], should_stop: Callable[[], bool], lock: Lock) -> Outcome:
    """Train the job, and keep how it ended, while its lock is held."""
    try:
        begin_attempt(job.folder)
        with _output_to_log(job):
            outcome = _train(job, on_record, should_stop, lock)
    except OSError as error:
        outcome = Outcome(End.FAILED, describe_error(error, job.folder))
    if outcome.end == End.FAILED:
        record_failure(job.folder, outcome.reason)
        note_outcome(job, outcome.reason)
    elif outcome.end == End.DONE:
        note_outcome(job, "")
    if is_done(job.folder):  # by this process or another
        forget_failures(job.folder)
    return outcome


def _train(job: Job, on_record: Callable[[int], None], should_stop: Callable[[], bool], lock: Lock) -> Outcome:
    from domainbed.engine.train import train  # imports torch

    try:
        train(job.config, on_record, should_stop, lock)
    except TakenError as error:
        print(error)
        return Outcome(End.TAKEN)
    except Interrupted as stopped:
        print(stopped)
        return Outcome(End.STOPPED, updates=stopped.updates)
    except (Exception, SystemExit) as error:
        if not isinstance(error, UsageError):
            traceback.print_exc()
        reason = describe_error(error, job.folder)
        print(f"error: {reason}")
        return Outcome(End.FAILED, reason)
    return Outcome(End.DONE)


@contextmanager
def _output_to_log(job: Job) -> Iterator[None]:
    """Send all output, that of C code and of child processes too, to the end of the job's log."""
    saved = [os.dup(1), os.dup(2)]
    with open(job.folder / LOG_FILE, "ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
