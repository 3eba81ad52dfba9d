"""What SLURM has of a sweep: which tasks were submitted with which jobs, and how `squeue` says these tasks are.

squeue alone will do: many clusters keep no accounts (slurmdbd). Where they do, sacct tells how a task ended.
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
from domainbed.files import atomic_write
from domainbed.sweep.job import SWEEP_FOLDER, Job

TASKS_FILE = "tasks.json"
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING"}


class Queue:
    """The tasks of a sweep that SLURM has waiting or running, as they were when it was asked.

    Args:
        jobs: the names of the jobs' folders in each task, by the task's number ("12", or "12_3" in an array).
        states: SLURM's state of each task that it still has ("PENDING", "RUNNING", …).
    """

    def __init__(self, jobs: Mapping[str, Sequence[str]], states: Mapping[str, str]) -> None:
        self.tasks = {task: names for task, names in jobs.items() if task in states}
        self._known = set(jobs)
        self._states = states
        self._names = {name for names in self.tasks.values() for name in names}

    def has(self, job: Job) -> bool:
        """Whether a task that waits or runs will see to the job."""
        return job.folder.name in self._names

    def runs(self, task: str) -> bool | None:
        """Whether SLURM runs the task; None for a task that is not of this sweep."""
        if task not in self._known:
            return None
        return self._states.get(task, "PENDING") not in WAITING

    def submissions(self) -> list[str]:
        """The numbers of the submissions (arrays) that have tasks left."""
        return list(dict.fromkeys(task.partition("_")[0] for task in self.tasks))


def slurm_folder(sweep_dir: Path) -> Path:
    """Holds a folder for each submission, of its number: the jobs of its tasks, its pickles and logs."""
    return sweep_dir.absolute() / SWEEP_FOLDER / "slurm"


def job_name(sweep_dir: Path) -> str:
    """What the sweep's tasks are called in SLURM: it tells them from those of a sweep in another folder."""
    return f"domainbed-{hashlib.md5(os.path.realpath(sweep_dir).encode()).hexdigest()[:8]}"


def write_tasks(sweep_dir: Path, submission: str, tasks: Mapping[str, Sequence[Job]]) -> None:
    """Keep which jobs each task has."""
    folder = slurm_folder(sweep_dir) / submission
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / TASKS_FILE) as file:
        file.write(json.dumps({task: [job.folder.name for job in jobs] for task, jobs in tasks.items()}).encode())


def read_queue(sweep_dir: Path) -> Queue | None:
    """What SLURM has of a sweep; None where nothing of it was ever submitted, or no SLURM is here (a copied sweep).

    Raises:
        UsageError: SLURM does not answer.
    """
    jobs: dict[str, list[str]] = {}
    owners = set()
    for file, of_submission in _kept_tasks(sweep_dir):
        jobs |= of_submission
        owners.add(str(file.stat().st_uid))
    if not jobs or shutil.which("squeue") is None:
        return None
    # Asked by user, not by number: the server answers at once, and numbers that it has forgotten are no error.
    # Believed by name, too, for a copied sweep has the numbers of another, and a cluster may begin them anew.
    words = ["squeue", "--noheader", "--all", "--array", "--user", ",".join(sorted(owners))]
    words += ["--name", job_name(sweep_dir), "--format", "%i|%T"]
    states = _states(words)
    return Queue(jobs, {task: states[task] for task in jobs if task in states})


def queue_if_it_answers(sweep_dir: Path) -> Queue | None:
    """To look, without the queue is better than not at all."""
    try:
        return read_queue(sweep_dir)
    except UsageError as error:
        print(f"warning: {error}; what is queued can't be told", file=sys.stderr)
        return None


def ends_of(sweep_dir: Path, names: Sequence[str]) -> dict[str, str]:
    """For each of the jobs (by folder name) how the last task that had it ended ("12_3 TIMEOUT"), where SLURM tells."""
    last: dict[str, str] = {}
    for _, of_submission in _kept_tasks(sweep_dir):
        for task, of_task in of_submission.items():
            last |= dict.fromkeys(of_task, task)
    wanted = {name: last[name] for name in names if name in last}
    if not wanted:
        return {}
    submissions = ",".join(sorted({task.partition("_")[0] for task in wanted.values()}))
    for words in (
        ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "JobID,State", "--jobs", submissions],
        ["squeue", "--noheader", "--all", "--array", "--states", "all", "--format", "%i|%T", "--jobs", submissions],
    ):
        try:
            states = _states(words)
        except UsageError:
            continue  # no slurmdbd; or SLURM has forgotten these tasks
        return {name: f"{task} {states[task]}" for name, task in wanted.items() if task in states}
    return {}


def _kept_tasks(sweep_dir: Path) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """What `keep_tasks` wrote: each submission's file and tasks, the first submission first.

    A damaged file is told and left out: the submission's tasks are then strangers to this sweep.
    """
    files = slurm_folder(sweep_dir).glob(f"*/{TASKS_FILE}")
    for file in sorted(files, key=lambda file: (len(file.parent.name), file.parent.name)):  # as numbers
        try:
            tasks = json.loads(file.read_bytes())
            kept = {task: [str(name) for name in names] for task, names in tasks.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            _tell_damaged(file)
            continue
        yield file, kept


@cache  # once, however often the queue is asked
def _tell_damaged(file: Path) -> None:
    stop = f"scancel {file.parent.name} stops what SLURM may have of it"
    print(f"warning: {file} is damaged; that submission is left out ({stop})", file=sys.stderr)


def _states(words: Sequence[str]) -> dict[str, str]:
    """SLURM's state of each task, from a command that prints lines of the form task|state."""
    lines = [line.split("|") for line in slurm_output(words).splitlines() if "|" in line]
    return {task: state.split()[0] for task, state in lines}  # "CANCELLED by 1000"


def slurm_output(words: Sequence[str]) -> str:
    """What one of SLURM's commands prints.

    Raises:
        UsageError: it is not there, fails, or takes too long.
    """
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]} is not on this machine; run this where SLURM's commands are")
    try:
        finished = subprocess.run(words, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise UsageError(f"SLURM does not answer ({words[0]} took more than 120 s); try again later") from None
    if finished.returncode:
        told = (finished.stderr.strip().splitlines() or [f"status {finished.returncode}"])[-1]
        raise UsageError(f"{words[0]}: {told}")
    return finished.stdout
