"""Stopping jobs, whoever launched them, and deleting what is incomplete."""

import os
import shutil
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from domainbed.engine.lock import TakenError, lives_here, locked, parent_of
from domainbed.errors import UsageError
from domainbed.records import is_done
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.queue import Queue, read_queue, slurm_output
from domainbed.sweep.status import JobState, Status, status_of

PATIENCE = 60  # seconds for jobs to save what they have


def cancel_jobs(statuses: Mapping[Job, Status], queue: Queue | None) -> list[str]:
    """Have SLURM drop the sweep's tasks, and launchers and jobs on this machine stop; wait until they have.

    Returns:
        What could not be stopped, a line each.
    """
    here, elsewhere = [], []
    if queue and (submissions := queue.submissions()):
        try:
            slurm_output(["scancel", *submissions])
        except UsageError as error:
            elsewhere.append(str(error))
    for job, status in statuses.items():
        if (owner := status.owner) is None or (queue and queue.runs(owner.slurm_job)):
            continue
        if not lives_here(owner):
            elsewhere.append(f"{job}: {owner} must be stopped there")
            continue
        # Its launcher, if that lives, would go on with the next job.
        is_launched = owner.parent and parent_of(owner.pid) == owner.parent
        try:
            os.kill(owner.parent if is_launched else owner.pid, signal.SIGTERM)
            here.append(job)
        except ProcessLookupError:
            pass
        except PermissionError:
            elsewhere.append(f"{job}: {owner} is another user's")
    deadline = time.monotonic() + PATIENCE
    waiting, tasks = here, _tasks(queue)
    while (waiting or tasks) and time.monotonic() < deadline:
        time.sleep(1 if tasks else 0.2)
        waiting = [job for job in waiting if status_of(job).state == JobState.RUNNING]
        if tasks:  # a launch would believe that one that is ending will yet see to its jobs
            tasks &= _tasks(read_queue(next(iter(statuses)).folder.parent))
    left = [f"SLURM has not yet ended its task {task}" for task in sorted(tasks)]
    return [*(f"{job} is still running" for job in waiting), *left, *elsewhere]


def _tasks(queue: Queue | None) -> set[str]:
    return set(queue.tasks) if queue else set()


def delete_jobs(jobs: Sequence[Job]) -> list[Job]:
    """Delete the folders of jobs that nobody trains. Returns those that somebody trains, or has finished, meanwhile."""
    with ThreadPoolExecutor(32) as threads:  # each may have to watch a lock for a while
        deleted = list(threads.map(_delete, jobs))
    return [job for job, is_gone in zip(jobs, deleted, strict=True) if not is_gone]


def _delete(job: Job) -> bool:
    """Delete the job's folder; False where the job was gone on with meanwhile."""
    # Out of the way at once, and only then file by file: what is half deleted is no job's folder.
    aside = job.folder.parent / SWEEP_FOLDER / f"deleted-{uuid.uuid4().hex}"
    aside.parent.mkdir(exist_ok=True)
    try:
        with locked(job.folder):
            if is_done(job.folder):
                return False
            os.rename(job.folder, aside)
    except TakenError:
        return False
    except FileNotFoundError:  # somebody else deleted it
        return True
    shutil.rmtree(aside)
    return True
