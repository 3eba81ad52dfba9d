"""The tasks of a sweep in SLURM's queue: which jobs each task has, and the state that `squeue` reports.

Only squeue is required, as many clusters have no accounting (slurmdbd). With accounting, sacct reports how tasks ended.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from domainbed.errors import UsageError
from domainbed.files import atomic_write, read_json
from domainbed.sweep.job import SWEEP_FOLDER, Job

TASKS_FILE = "tasks.json"
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING"}
TIMEOUT = 120  # seconds for a command of SLURM to finish


class Queue:
    """The tasks of a sweep that are waiting or running in SLURM, at the time of a query.

    Args:
        jobs: names of the job folders of each task, by the task's number ("12", or "12_3" in an array).
        states: SLURM's state ("PENDING", "RUNNING", …) of each task that is still in the queue.
    """

    def __init__(self, jobs: Mapping[str, Sequence[str]], states: Mapping[str, str]) -> None:
        self.tasks = {task: names for task, names in jobs.items() if task in states}
        self._known = set(jobs)
        self._states = states
        self._names = {name for names in self.tasks.values() for name in names}

    def has(self, name: str) -> bool:
        """Return whether a task in the queue has the job whose folder has this name."""
        return name in self._names

    def is_running(self, task: str) -> bool | None:
        """Return whether a task is running; None if it is not a task of this sweep."""
        if task not in self._known:
            return None
        return self._states.get(task, "PENDING") not in WAITING

    def submissions(self) -> list[str]:
        """Return the numbers of the submissions (arrays) that still have tasks."""
        return list(dict.fromkeys(task.partition("_")[0] for task in self.tasks))


def slurm_folder(sweep_dir: Path) -> Path:
    """Return the folder that contains one folder per submission, named by its number: its jobs, pickles and logs."""
    return sweep_dir.absolute() / SWEEP_FOLDER / "slurm"


def job_name(sweep_dir: Path) -> str:
    """Return the name of the sweep's tasks in SLURM, which distinguishes them from those of sweeps in other folders."""
    return f"domainbed-{hashlib.md5(os.path.realpath(sweep_dir).encode()).hexdigest()[:8]}"


def write_tasks(sweep_dir: Path, submission: str, tasks: Mapping[str, Sequence[Job]]) -> None:
    """Record the jobs of each task of a submission."""
    folder = slurm_folder(sweep_dir) / submission
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / TASKS_FILE) as file:
        file.write(json.dumps({task: [job.folder.name for job in jobs] for task, jobs in tasks.items()}).encode())


def read_queue(sweep_dir: Path) -> Queue | None:
    """Return the tasks of a sweep in SLURM's queue.

    Returns:
        None if the sweep was never submitted, or if this machine has no SLURM (the sweep was copied here).

    Raises:
        UsageError: SLURM does not respond.
    """
    jobs: dict[str, list[str]] = {}
    users = set()
    for file, tasks in _read_tasks(sweep_dir):
        jobs |= tasks
        users.add(str(file.stat().st_uid))
    if not jobs or shutil.which("squeue") is None:
        return None
    # Query by user, not by task: it is fast, and task numbers that SLURM has forgotten are no error. Match the name as
    # well: a copied sweep has the task numbers of the original, and a cluster may restart its numbers.
    command = ["squeue", "--noheader", "--all", "--array", "--user", ",".join(sorted(users))]
    command += ["--name", job_name(sweep_dir), "--format", "%i|%T"]
    states = _task_states(command)
    return Queue(jobs, {task: states[task] for task in jobs if task in states})


def read_queue_or_warn(sweep_dir: Path) -> Queue | None:
    """Return the tasks of a sweep in SLURM's queue; None, with a warning, if SLURM does not respond.

    Only for commands that read: without the queue, a job could be submitted twice.
    """
    try:
        return read_queue(sweep_dir)
    except UsageError as error:
        print(f"warning: {error}; queued jobs cannot be recognized", file=sys.stderr)
        return None


def task_outcomes(sweep_dir: Path, names: Sequence[str]) -> dict[str, str]:
    """Return how the last task of each job ended ("12_3 TIMEOUT"), by the name of the job's folder, if SLURM knows."""
    last_task: dict[str, str] = {}
    for _, tasks in _read_tasks(sweep_dir):
        for task, names_of_task in tasks.items():
            last_task |= dict.fromkeys(names_of_task, task)
    selected = {name: last_task[name] for name in names if name in last_task}
    if not selected:
        return {}
    submissions = ",".join(sorted({task.partition("_")[0] for task in selected.values()}))
    for command in (
        ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "JobID,State", "--jobs", submissions],
        ["squeue", "--noheader", "--all", "--array", "--states", "all", "--format", "%i|%T", "--jobs", submissions],
    ):
        try:
            states = _task_states(command)
        except UsageError:
            continue  # no accounting, or SLURM has forgotten these tasks
        return {name: f"{task} {states[task]}" for name, task in selected.items() if task in states}
    return {}


def _read_tasks(sweep_dir: Path) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """Yield the TASKS_FILE and the tasks of each submission, from the first to the last.

    A damaged file is skipped with a warning; its tasks then seem to belong to another sweep.
    """
    files = slurm_folder(sweep_dir).glob(f"*/{TASKS_FILE}")
    for file in sorted(files, key=lambda file: (len(file.parent.name), file.parent.name)):  # by number
        try:
            tasks = {task: [str(name) for name in names] for task, names in read_json(file).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            _warn_damaged(file)
            continue
        yield file, tasks


@cache  # warn once
def _warn_damaged(file: Path) -> None:
    hint = f"`scancel {file.parent.name}` stops tasks that are still in the queue"
    print(f"warning: {file} is damaged; skipping that submission ({hint})", file=sys.stderr)


def _task_states(command: Sequence[str]) -> dict[str, str]:
    """Return SLURM's state of each task, from a command that prints lines of the form task|state."""
    lines = [line.split("|") for line in slurm_output(command).splitlines() if "|" in line]
    return {task: state.split()[0] for task, state in lines}  # "CANCELLED by 1000"


def slurm_output(command: Sequence[str]) -> str:
    """Return the output of a SLURM command.

    Raises:
        UsageError: the command is not installed, fails, or takes too long.
    """
    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]} not found; run this on a machine with the SLURM commands")
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UsageError(f"SLURM does not respond ({command[0]} took over {TIMEOUT} s); try again later") from None
    if finished.returncode:
        message = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
        raise UsageError(f"{command[0]}: {message}")
    return finished.stdout
