"""Stopping jobs, whoever launched them, and deleting what is incomplete."""

import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress

from domainbed.engine.lock import TakenError, locked, start_of, this_machine
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.queue import Queue, answer
from domainbed.sweep.states import JobState, Status, status_of

PATIENCE = 60  # seconds for jobs to save what they have


def cancel_jobs(statuses: Mapping[Job, Status], queue: Queue | None) -> list[str]:
    """Have SLURM drop the sweep's tasks, and launchers and jobs on this machine stop; wait until they have.

    Returns:
        What could not be stopped, a line each.
    """
    if queue and (submissions := queue.submissions()):
        answer(["scancel", *submissions])
    here, elsewhere = [], []
    for job, status in statuses.items():
        if (holder := status.holder) is None or (queue and queue.runs(holder.slurm_job)):
            continue
        if holder.machine == this_machine() and start_of(holder.pid) == holder.started:
            here.append(job)
            # Its launcher, if it has one, would go on with the next.
            with suppress(ProcessLookupError):
                os.kill(holder.parent or holder.pid, signal.SIGTERM)
        else:
            elsewhere.append(f"{job}: {holder} must be stopped there")
    deadline = time.monotonic() + PATIENCE
    waiting = here
    while waiting and time.monotonic() < deadline:
        time.sleep(0.2)
        waiting = [job for job in waiting if status_of(job).state == JobState.RUNNING]
    return [*(f"{job} is still running" for job in waiting), *elsewhere]


def delete_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Delete the folders of jobs that nobody trains. Returns those that somebody began to train meanwhile."""
    taken = []
    for job in jobs:
        # Out of the way at once, and only then file by file: what is half deleted is no job's folder.
        aside = job.folder.parent / SWEEP_FOLDER / f"deleted-{uuid.uuid4().hex}"
        aside.parent.mkdir(exist_ok=True)
        try:
            with locked(job.folder):
                os.rename(job.folder, aside)
        except TakenError:
            taken.append(job)
            continue
        shutil.rmtree(aside)
    return taken
