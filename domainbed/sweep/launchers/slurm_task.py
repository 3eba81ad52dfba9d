"""A SLURM task: a process on a node that trains its jobs one after another."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from submitit.helpers import DelayedSubmission

from domainbed.engine.interrupts import TERMINATION_SIGNALS, StopRequest, stop_on_signals
from domainbed.engine.lock import HEARTBEAT_TIMEOUT, TAKEOVER_DELAY, file_system_time, lock_owner, this_process
from domainbed.files import folder_size
from domainbed.loading.feature_store import feature_folder
from domainbed.sweep.failures import record_failure
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.launchers.base import skip_event
from domainbed.sweep.queue import mark_started
from domainbed.sweep.run import JobEvent, run_job
from domainbed.sweep.status import FINISHED, JobState, blocked_reason, read_status

# SLURM requeues only a task that it ended itself, which it does some time after SIGTERM.
TERM_WAIT = 15 * 60  # seconds; longer than any grace time
POLL = 5  # seconds between looks at a job that another process trains


class Task:
    """A SLURM task, which submitit pickles and calls on the node; `checkpoint` is called shortly before its time limit.

    Each time that SLURM starts it, it skips finished jobs and resumes the others.

    Args:
        minutes: time limit.
    """

    def __init__(self, minutes: int) -> None:
        self.minutes = minutes

    def __call__(self, jobs: Sequence[Job], siblings: Mapping[Kind, Sequence[str]]) -> dict[str, str]:
        """Train jobs in order.

        Args:
            jobs: the jobs of this task.
            siblings: names of the folders of all jobs of their kinds in the launch.

        Returns:
            The state of each job that was not finished before, by the name of its folder.
        """
        mark_started(jobs[0].folder.parent)
        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ["OMP_NUM_THREADS"] = cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._start_time = time.monotonic()
        self._made_progress = False
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler: calls `checkpoint` and has SLURM requeue
        states: dict[str, str] = {}
        with stop_on_signals(TERMINATION_SIGNALS) as stop_request:
            for job in jobs:
                self._current, self._prepared = job, prepared_size(job.config.cache)
                event = self._run(job, siblings[job.kind], stop_request)
                if event is None:
                    continue
                states[job.folder.name] = event.state.value
                print(f"{job}: {event.state.value} {event.reason}".rstrip(), flush=True)
                if stop_request():
                    break
                # The job may have left this process in a bad state, such as a broken CUDA context. (If its failure
                # could not be recorded, because the disk is full, a new process would run it again, forever.)
                if job is not jobs[-1] and read_status(job.folder).state == JobState.FAILED:
                    os.execv(sys.executable, sys.orig_argv)
        if signal.SIGUSR2 in stop_request.signals:
            requeue(signal.SIGUSR2, None)  # type: ignore[operator, misc]  # does not return
        elif stop_request():
            time.sleep(TERM_WAIT)
            sys.exit(128 + signal.SIGTERM)
        return states

    def checkpoint(self, jobs: Sequence[Job], siblings: Mapping[Kind, Sequence[str]]) -> DelayedSubmission | None:
        """Return what SLURM starts again; None, and fail the job, if it made no progress in its time limit.

        Progress is an update, an evaluation, or prepared data: what one task prepares, the next one does not repeat.
        """
        seconds = time.monotonic() - self._start_time
        made_progress = self._made_progress or prepared_size(self._current.config.cache) > self._prepared
        # The signal comes up to 150 s before the time limit, which started before this process did.
        if not made_progress and seconds > min(60 * self.minutes / 2, 60 * self.minutes - 240):
            reason = f"no update, evaluation or preparation finished in {seconds:.0f} s; increase --slurm_time"
            record_failure(self._current.folder, reason)
            return None
        return DelayedSubmission(Task(self.minutes), jobs, siblings)

    def _run(self, job: Job, siblings: Sequence[str], stop_request: StopRequest) -> JobEvent | None:
        """Train a job and return how it ended; None if it was finished before, or the task is stopping."""
        while not stop_request():
            state = read_status(job.folder).state
            if state in (*FINISHED, JobState.FAILED):
                return None
            now = file_system_time(job.folder.parent)
            statuses = (read_status(job.folder.parent / name, now) for name in siblings)
            if event := skip_event(job, JobState.INCOMPLETE, blocked_reason(statuses)):
                return event
            event = run_job(job, self._on_event, stop_request)
            self._made_progress |= event.steps > 0
            if event.state != JobState.RUNNING or not _may_come_free(job, stop_request):
                return event
        return None

    def _on_event(self, event: JobEvent) -> None:
        self._made_progress = True


def prepared_size(cache: str | None) -> int:
    """Return the size of the photographs and features prepared in `--cache`, by this process or others, in bytes."""
    return folder_size(feature_folder(cache)) + (folder_size(Path(cache)) if cache else 0)


def _may_come_free(job: Job, should_stop: Callable[[], bool]) -> bool:
    """Wait for another process to release a job, if that is likely, and return whether it did.

    It is likely if the process seems to be dead (its node went down), or belongs to this same task: SLURM may restart a
    task while a process that it cannot reach is still training.
    """
    first_owner = lock_owner(job.folder)
    deadline = time.monotonic() + HEARTBEAT_TIMEOUT + TAKEOVER_DELAY
    while not should_stop():
        time.sleep(POLL)
        owner = lock_owner(job.folder)
        if read_status(job.folder).state != JobState.RUNNING:
            return True
        if owner and owner.slurm_job == this_process().slurm_job:
            continue
        if owner != first_owner or time.monotonic() > deadline:
            return False
    return False
