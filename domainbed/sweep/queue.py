"""The tasks of a sweep in SLURM's queue: which jobs each task has, and the state that `squeue` reports.

Only squeue is required, as many clusters have no accounting (slurmdbd). With accounting, sacct reports how tasks ended.
A task that ends before it starts Python, as when a command of --slurm_setup fails, records nothing about its
jobs. It is recognized by what it lacks (a STARTED_SUFFIX file), by SLURM's state of it, and by SLURM's log.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from domainbed.engine.lock import this_process
from domainbed.errors import UsageError
from domainbed.files import atomic_write, read_end, read_json
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.terminal import warn

TASKS_FILE = "tasks.json"
LOG_FOLDER_FILE = "log_folder.json"  # of submissions with --slurm_folder
STARTED_SUFFIX = ".started"  # of an empty file named after a task, which it creates once it runs Python
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "CONFIGURING"}
FAILED_STATES = {"FAILED", "OUT_OF_MEMORY", "TIMEOUT"}  # that are not caused by users, nodes or the scheduler
LOG_END = 4096  # bytes at the end of SLURM's log of a task that are read
TIMEOUT = 120  # seconds for a command of SLURM to finish


class Queue:
    """The tasks of a sweep that are waiting or running in SLURM, at the time of a query.

    Args:
        jobs: names of the job folders of each task, by the task's number ("12", or "12_3" in an array).
        states: SLURM's state ("PENDING", "RUNNING", …) of each task that is still in the queue.
        failures: why the last task of a job failed before it started the job, by the name of the job's folder.
    """

    def __init__(
        self, jobs: Mapping[str, Sequence[str]], states: Mapping[str, str], failures: Mapping[str, str] | None = None
    ) -> None:
        self.failures = dict(failures or {})
        self.tasks = {task: names for task, names in jobs.items() if task in states}
        self._known = set(jobs)
        self._states = states
        self._names = {name for names in self.tasks.values() for name in names}

    def has(self, name: str) -> bool:
        """Return whether a task in the queue has the job whose folder has this name."""
        return name in self._names

    def has_running(self, name: str) -> bool:
        """Return whether a running task has the job whose folder has this name."""
        return any(name in names and self.is_running(task) for task, names in self.tasks.items())

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


def write_tasks(
    sweep_dir: Path, submission: str, tasks: Mapping[str, Sequence[Job]], log_folder: Path | None = None
) -> None:
    """Record the jobs of each task of a submission, and the folder of SLURM's logs if that is another one."""
    folder = slurm_folder(sweep_dir) / submission
    folder.mkdir(parents=True, exist_ok=True)
    if log_folder is not None and log_folder != folder:
        with atomic_write(folder / LOG_FOLDER_FILE) as file:
            file.write(json.dumps(str(log_folder)).encode())
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
    in_queue = {task: state for task, (state, _) in _task_states(command).items() if task in jobs}
    return Queue(jobs, in_queue, _find_failures(sweep_dir, jobs, in_queue))


def read_queue_or_warn(sweep_dir: Path) -> Queue | None:
    """Return the tasks of a sweep in SLURM's queue; None, with a warning, if SLURM does not respond.

    Only for commands that read: without the queue, a job could be submitted twice.
    """
    try:
        return read_queue(sweep_dir)
    except UsageError as error:
        warn(f"{error}; queued jobs cannot be recognized")
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
    states = _ended_states(selected.values())
    return {name: f"{task} {states[task][0]}" for name, task in selected.items() if task in states}


def mark_started(sweep_dir: Path) -> None:
    """Record that the SLURM task that this process belongs to has started Python."""
    if task := this_process().slurm_job:
        marker = _task_file(sweep_dir, task, STARTED_SUFFIX)
        with suppress(OSError):  # a full disk; the jobs record failures of their own
            marker.parent.mkdir(parents=True, exist_ok=True)  # the launch may not have created it yet
            marker.touch()


def _find_failures(sweep_dir: Path, jobs: Mapping[str, Sequence[str]], in_queue: Mapping[str, str]) -> dict[str, str]:
    """Return why jobs without a folder failed whose last task ended before it started Python, by their folders' names.

    Jobs of tasks that were cancelled or preempted, or whose node failed, did not fail.
    """
    last_task = {name: task for task, names in jobs.items() for name in names}
    existing = set(os.listdir(sweep_dir))
    ended = {name: task for name, task in last_task.items() if name not in existing and task not in in_queue}
    files = {
        parent: set(os.listdir(parent)) for parent in {_task_file(sweep_dir, t, "").parent for t in ended.values()}
    }
    reasons: dict[str, str] = {}
    started = {}
    for task in dict.fromkeys(ended.values()):
        marker = _task_file(sweep_dir, task, STARTED_SUFFIX)
        started[task] = marker.name in files[marker.parent]
    suspects = [task for task, is_started in started.items() if not is_started]
    states = _ended_states(suspects) if suspects else {}
    for task in suspects:
        state, exit_code = states.get(task, ("", ""))
        if state and state not in FAILED_STATES:
            continue
        if reason := _failure_reason(_log_file(sweep_dir, task), task, state, exit_code):
            reasons[task] = reason
    return {name: reasons[task] for name, task in ended.items() if task in reasons}


def _failure_reason(log: Path, task: str, state: str, exit_code: str) -> str:
    """Return why a task that ended before it started Python failed; "" if it did not fail.

    Args:
        log: where SLURM writes the task's stderr.
        task: the task's number.
        state: SLURM's state of the task, one of FAILED_STATES; "" if SLURM has forgotten it.
        exit_code: its exit code in SLURM's notation, such as 1:0; "" if unknown.
    """
    try:
        end = read_end(log, LOG_END).decode(errors="replace")
    except OSError:
        end = None
    # Without a state, a task that never ran has no log, and SLURM's message is in the log of one that it ended.
    if not state and (end is None or "CANCELLED AT" in end):
        return ""
    lines = [line.strip() for line in (end or "").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("srun: ")] or lines  # srun only repeats the exit code
    how = f"ended {state}" if state else "ended"
    code = f" (exit code {exit_code})" if exit_code else ""
    where = f"it wrote no log to {log.parent}" if end is None else ": ".join([f"log: {log}", *lines[-1:]])
    return f"SLURM task {task} {how}{code} before the job started; {where}"


def _task_file(sweep_dir: Path, task: str, suffix: str) -> Path:
    return slurm_folder(sweep_dir) / task.partition("_")[0] / f"{task}{suffix}"


def _log_file(sweep_dir: Path, task: str) -> Path:
    """Return the file to which SLURM writes the stderr of a task."""
    file = _task_file(sweep_dir, task, "_0_log.err")
    with suppress(OSError, ValueError):
        return Path(str(read_json(file.with_name(LOG_FOLDER_FILE)))) / file.name
    return file


def _ended_states(tasks: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return SLURM's state and exit code of tasks that may have ended, as far as SLURM remembers them."""
    submissions = ",".join(sorted({task.partition("_")[0] for task in tasks}))
    sacct = ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "JobID,State,ExitCode"]
    squeue = ["squeue", "--noheader", "--all", "--array", "--states", "all"]
    squeue += ["--Format", "JobArrayID:|,State:|,exit_code:|"]
    for command in (sacct, squeue):
        try:
            return _task_states([*command, "--jobs", submissions])
        except UsageError:
            continue  # no accounting, or SLURM has forgotten these tasks
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
    warn(f"{file} is damaged; skipping that submission ({hint})")


def _task_states(command: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return SLURM's state and exit code of each task, from a command that prints lines task|state or task|state|code.

    The exit code is "" if it is unknown or 0. squeue prints it as a wait status (256), sacct as 1:0.
    """
    states = {}
    for line in slurm_output(command).splitlines():
        task, *values = line.rstrip("|").split("|")
        if values:
            state, code = values[0].split()[0], "".join(values[1:2])  # "CANCELLED by 1000"
            code = f"{int(code) >> 8}:{int(code) & 127}" if code.isdecimal() else code
            states[task] = state, "" if code == "0:0" else code
    return states


def slurm_output(command: Sequence[str]) -> str:
    """Return the output of a SLURM command.

    Raises:
        UsageError: the command is not installed, fails, or takes too long.
    """
    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]} not found; run this on a machine with the SLURM commands")
    # Users set these for their own calls; SQUEUE_STATES would hide tasks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise UsageError(f"SLURM does not respond ({command[0]} took over {TIMEOUT} s); try again later") from None
    if finished.returncode:
        message = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
        raise UsageError(f"{command[0]}: {message}")
    return finished.stdout
