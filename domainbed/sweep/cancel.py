"""Stop jobs, whichever launch started them, and delete incomplete ones."""

import os
import shutil
import signal
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from domainbed.engine.lock import TakenError, locked, parent_pid
from domainbed.errors import UsageError
from domainbed.files import file_lock
from domainbed.records import is_done, is_pruned
from domainbed.sweep.failures import FAILURE_FILE
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.queue import Queue, read_queue, slurm_output
from domainbed.sweep.status import JobState, Status, read_status

TIMEOUT = 60  # seconds for jobs to save their state and stop
DELETED_PREFIX = "deleted-"  # of the folders, in SWEEP_FOLDER, of jobs that are being deleted


def cancel_jobs(statuses: Mapping[Job, Status], queue: Queue | None) -> list[str]:
    """Cancel the sweep's SLURM tasks, stop its launches and jobs on this machine, and wait until they have stopped.

    Returns:
        One message per job or task that could not be stopped.
    """
    stopping, problems = [], []
    if queue and (submissions := queue.submissions()):
        try:
            slurm_output(["scancel", *submissions])
        except UsageError as error:
            problems.append(str(error))
    for job, status in statuses.items():
        if (owner := status.owner) is None or (queue and queue.is_running(owner.slurm_job)):
            continue
        is_alive = owner.is_alive()
        if is_alive is False:  # it has ended since the survey
            continue
        if is_alive is None:
            problems.append(f"{job}: {owner} runs on another machine; stop it there")
            continue
        # A launcher that is alive would start the next job.
        has_launcher = owner.parent and parent_pid(owner.pid) == owner.parent
        try:
            os.kill(owner.parent if has_launcher else owner.pid, signal.SIGTERM)
            stopping.append(job)
        except ProcessLookupError:
            pass
        except PermissionError:
            problems.append(f"{job}: {owner} belongs to another user")
    deadline = time.monotonic() + TIMEOUT
    tasks = set(queue.tasks) if queue else set()
    while (stopping or tasks) and time.monotonic() < deadline:
        time.sleep(1 if tasks else 0.2)
        stopping = [job for job in stopping if read_status(job.folder).state == JobState.RUNNING]
        if tasks:  # the next launch would not submit the jobs of a task that is still ending
            current = read_queue(next(iter(statuses)).folder.parent)
            tasks &= set(current.tasks) if current else set()
    return [
        *(f"{job} is still running" for job in stopping),
        *(f"SLURM task {task} is still in the queue" for task in sorted(tasks)),
        *problems,
    ]


def delete_jobs(jobs: Sequence[Job], sweep_dir: Path, kept: Collection[JobState]) -> list[Job]:
    """Delete the folders of jobs, and what killed deletions left behind.

    Args:
        jobs: the jobs.
        sweep_dir: the sweep's folder.
        kept: states in which a job is not deleted: done, pruned or failed.

    Returns:
        The jobs that were not deleted, because they are running or in one of these states by now.

    Raises:
        UsageError: a folder is a link, whose target another user may have chosen. Nothing is deleted.
    """
    if links := [job.folder for job in jobs if job.folder.is_symlink()]:
        raise UsageError(f"{links[0]} is a link; delete it and its target yourself")
    folder = sweep_dir / SWEEP_FOLDER
    folder.mkdir(exist_ok=True)
    message = f"Another process is deleting jobs of {sweep_dir}; waiting for it"
    with file_lock(folder / "deleting.lock", message), ThreadPoolExecutor(32) as pool:
        list(pool.map(_remove, folder.glob(f"{DELETED_PREFIX}*")))
        # Each may have to watch a stale lock for a while.
        are_deleted = list(pool.map(partial(_delete, kept=kept), jobs))
    return [job for job, is_deleted in zip(jobs, are_deleted, strict=True) if not is_deleted]


def _delete(job: Job, kept: Collection[JobState]) -> bool:
    # Rename first, then delete file by file, so that no folder of a job is ever half deleted.
    trash = job.folder.parent / SWEEP_FOLDER / f"{DELETED_PREFIX}{uuid.uuid4().hex}"
    try:
        with locked(job.folder):
            if _is_finished_as(job.folder, kept):
                return False
            os.rename(job.folder, trash)
    except TakenError:
        return False
    except FileNotFoundError:  # another process deleted it
        return True
    _remove(trash)
    return True


def _is_finished_as(folder: Path, states: Collection[JobState]) -> bool:
    """Return whether a job is done, pruned or failed, and this state is one of `states`. The caller holds its lock."""
    reached = {
        JobState.DONE: is_done(folder),
        JobState.PRUNED: is_pruned(folder),
        JobState.FAILED: (folder / FAILURE_FILE).exists(),
    }
    return any(reached[state] for state in states)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
