"""What runs on a node: one SLURM task, which trains its jobs one after another in one process."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from submitit.helpers import DelayedSubmission

from domainbed.engine.interrupts import FROM_OUTSIDE, StopRequest, stop_on_signals
from domainbed.engine.lock import EXPIRY, WATCH, lock_owner, this_process
from domainbed.sweep.failures import record_failure
from domainbed.sweep.job import Job
from domainbed.sweep.run import End, Outcome, run_job
from domainbed.sweep.status import JobState, status_of

# After SIGTERM, SLURM ends the task itself, and only a task that it ended is it going to requeue.
LINGER = 15 * 60  # seconds; more than a grace time is
POLL = 5  # seconds


class Task:
    """Trains jobs, skips what is done, and goes on with what is not, however often SLURM starts it.

    submitit pickles it, calls it on the node, and asks for its `checkpoint` when the time is nearly over.

    Args:
        minutes: its time limit.
    """

    def __init__(self, minutes: int) -> None:
        self.minutes = minutes

    def __call__(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Train the jobs in order. Returns how each left, by the name of its folder."""
        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ["OMP_NUM_THREADS"] = cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._began = time.monotonic()
        self._progressed = False
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: calls `checkpoint`, and has SLURM start this again
        ends: dict[str, str] = {}
        with stop_on_signals(FROM_OUTSIDE) as asked_to_stop:
            for job in jobs:
                self._current = job
                outcome = self._run(job, asked_to_stop)
                if outcome is None:
                    continue
                ends[job.folder.name] = outcome.end.value
                print(f"{job}: {outcome.end.value} {outcome.reason}".rstrip(), flush=True)
                if asked_to_stop():
                    break
                # What the job left in this process (a broken CUDA context, say) must harm no other. (Were its failure
                # not written down, on a full disk, it would be tried again and again.)
                if job is not jobs[-1] and status_of(job).state == JobState.FAILED:
                    os.execv(sys.executable, sys.orig_argv)
        if signal.SIGUSR2 in asked_to_stop.signals:
            requeue(signal.SIGUSR2, None)  # type: ignore[operator, misc]  # does not come back
        elif asked_to_stop():
            time.sleep(LINGER)
            sys.exit(128 + signal.SIGTERM)
        return ends

    def checkpoint(self, jobs: Sequence[Job]) -> DelayedSubmission | None:
        """What SLURM shall start again; None if about all the time that there was did not bring the job on."""
        seconds = time.monotonic() - self._began
        # The signal comes up to 150 s before the end of the time, which began before this process did.
        if not self._progressed and seconds > min(60 * self.minutes / 2, 60 * self.minutes - 240):
            reason = f"no update and no evaluation got done in {seconds:.0f} s; give it more --slurm_time"
            record_failure(self._current.folder, reason)
            return None
        return DelayedSubmission(Task(self.minutes), jobs)

    def _run(self, job: Job, asked_to_stop: StopRequest) -> Outcome | None:
        """Train the job; None where there is nothing to do."""
        while not asked_to_stop():
            if status_of(job).state in (JobState.DONE, JobState.FAILED):
                return None
            outcome = run_job(job, self._on_record, asked_to_stop)
            self._progressed |= outcome.updates > 0
            if outcome.end != End.TAKEN or not _may_come_free(job, asked_to_stop):
                return outcome
        return None

    def _on_record(self, step: int) -> None:
        self._progressed = True


def _may_come_free(job: Job, asked_to_stop: Callable[[], bool]) -> bool:
    """Wait for another process to let go of the job, if it is worth it.

    It is for one that seems to be dead (a node that went down), and for this very task's former life: SLURM may start a
    task anew while the old process, out of its reach, still trains.
    """
    before = lock_owner(job.folder)
    deadline = time.monotonic() + EXPIRY + WATCH
    while not asked_to_stop():
        time.sleep(POLL)
        owner = lock_owner(job.folder)
        if status_of(job).state != JobState.RUNNING:
            return True
        if owner and owner.slurm_job == this_process().slurm_job:
            continue
        if owner != before or time.monotonic() > deadline:
            return False
    return False
