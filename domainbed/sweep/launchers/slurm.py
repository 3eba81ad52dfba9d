"""A launcher that submits job arrays to SLURM, through submitit."""

import io
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed.errors import UsageError
from domainbed.files import file_lock, other_writers
from domainbed.options import check_options, option
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.launchers.base import Capacity, Launcher, skip_event
from domainbed.sweep.processes import ignore_sigint
from domainbed.sweep.queue import job_name, read_queue, slurm_folder, slurm_output, write_tasks
from domainbed.sweep.run import JobEvent
from domainbed.sweep.status import JobState, Status, blocked_kinds, survey

# Options of sbatch that --slurm_extra may not set, and what sets them.
RESERVED = {"time": "--slurm_time", "cpus-per-task": "--slurm_cpus"} | dict.fromkeys(
    ("array", "error", "job-name", "output", "signal"), "the launcher"
)
NO_LIMIT = 10**6  # how often a task may be requeued; `Task.checkpoint` ends tasks that make no progress


@dataclass(frozen=True)
class SlurmOptions:
    """The options of the slurm launcher."""

    jobs_per_task: int = option(
        1,
        help="number of jobs that one task trains, one after another, without restarting Python",
        metavar="N",
        at_least=1,
    )
    slurm_partition: str | None = option(None, help="partition", metavar="NAME", if_unset="the cluster's default")
    slurm_time: str = option(
        "4:00:00",
        help="time limit of a task (minutes, minutes:seconds, hours:minutes:seconds, or days-hours); a task that "
        "reaches it is requeued and resumes",
        metavar="LIMIT",
    )
    slurm_gpus: int = option(1, help="number of GPUs per task; 0 trains on the CPU", metavar="N", at_least=0)
    slurm_cpus: int | None = option(
        None, help="number of CPU cores per task", metavar="N", if_unset="the cluster's default", at_least=1
    )
    slurm_mem: str | None = option(
        None, help="memory per task, such as 32G", metavar="SIZE", if_unset="the cluster's default"
    )
    slurm_constraint: str | None = option(None, help="required features of the nodes", metavar="NAME")
    slurm_qos: str | None = option(None, help="quality of service", metavar="NAME")
    slurm_account: str | None = option(None, help="account to charge", metavar="NAME")
    slurm_array_parallelism: int = option(
        256, help="maximum number of tasks of an array that run at once", metavar="N", at_least=1
    )
    slurm_folder: str | None = option(
        None,
        help="folder for what SLURM's tasks load and for their logs, on a file system that all nodes share; nobody "
        "else may be able to write to it",
        metavar="DIR",
        if_unset="`.sweep/slurm` in the sweep's folder",
    )
    slurm_setup: tuple[str, ...] = option(
        (), help="shell commands to run first, such as 'module load cuda'", metavar="COMMAND"
    )
    slurm_extra: tuple[str, ...] = option(
        (),
        help="other options of sbatch, without dashes, such as exclude=node7 mail-type=FAIL; a KEY alone is a flag",
        metavar="KEY=VALUE",
    )

    def __post_init__(self) -> None:
        check_options(self)


class SlurmLauncher(Launcher):
    """Submits tasks of one or more jobs to SLURM and returns. SLURM runs them, and requeues those it interrupts."""

    Options = SlurmOptions
    WAITS = False

    def __init__(self, options: SlurmOptions) -> None:
        super().__init__(options)
        self._minutes = minutes(options.slurm_time)
        self._parameters = sbatch_parameters(options)

    def check(self) -> None:
        max_array_size()  # fails without SLURM

    def capacity(self, n_jobs: int) -> Capacity:
        o = self.options
        n_tasks = math.ceil(n_jobs / o.jobs_per_task)
        return Capacity(min(n_tasks, o.slurm_array_parallelism), o.slurm_cpus or 1, o.slurm_gpus)

    def launch(
        self, jobs: Sequence[Job], statuses: Mapping[Job, Status], should_stop: Callable[[], bool]
    ) -> Iterator[JobEvent]:
        sweep_dir = jobs[0].folder.parent
        folder = slurm_folder(sweep_dir)
        check_log_folder(self._folder(sweep_dir))
        max_tasks = max_array_size()
        blocked = blocked_kinds(statuses)
        kinds: dict[Kind, list[str]] = {}
        for job in statuses:
            kinds.setdefault(job.kind, []).append(job.folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / "lock", f"Another launch is submitting jobs of {sweep_dir}; waiting for it"):
            queue = read_queue(sweep_dir)
            if queue:
                queue.failures.clear()  # those of `jobs` are retried
            current = survey(jobs, queue)  # another launch may just have submitted some of the jobs
            to_submit = []
            for job in jobs:
                state = current[job].state
                if queue and queue.has(job.folder.name):
                    # A task that runs does not come back to a job that failed in it, or was pruned, and is retried now.
                    is_retried = statuses[job].state == JobState.INCOMPLETE and state == JobState.QUEUED
                    is_left_out = is_retried and queue.has_running(job.folder.name)
                    state = JobState.INCOMPLETE if is_left_out else JobState.QUEUED
                if event := skip_event(job, state, blocked.get(job.kind, "")):
                    yield event
                else:
                    to_submit.append(job)
            if to_submit:
                self._make_private_folder(sweep_dir)
            tasks = self._tasks(to_submit)
            for first in range(0, len(tasks), max_tasks):
                if should_stop():
                    return
                for job in self._submit(sweep_dir, tasks[first : first + max_tasks], kinds):
                    yield JobEvent(job, JobState.QUEUED)

    def _folder(self, sweep_dir: Path) -> Path:
        """Return the folder of submissions, which submitit's files are in. Tasks unpickle some of these."""
        if self.options.slurm_folder is None:
            return slurm_folder(sweep_dir)
        return Path(self.options.slurm_folder).absolute() / job_name(sweep_dir)

    def _make_private_folder(self, sweep_dir: Path) -> None:
        """Create the folder of submissions. Raises UsageError if others could make this user's tasks run their code."""
        folder = self._folder(sweep_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.options.slurm_folder is not None:
            folder.chmod(0o700)
        if others := other_writers(folder):
            raise UsageError(
                f"{others}, and could run code as you through the files that SLURM tasks load from {folder}; pass "
                "--slurm_folder with a folder that only you can write to"
            )

    def _tasks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        n = self.options.jobs_per_task
        return [list(jobs[i : i + n]) for i in range(0, len(jobs), n)]

    def _submit(
        self, sweep_dir: Path, tasks: Sequence[Sequence[Job]], kinds: Mapping[Kind, Sequence[str]]
    ) -> Iterator[Job]:
        """Submit tasks as one array and return their jobs.

        Args:
            sweep_dir: the sweep's folder.
            tasks: the jobs of each task.
            kinds: names of the folders of all jobs of each kind in this launch.
        """
        import submitit

        from domainbed.sweep.launchers.slurm_task import Task

        folder = self._folder(sweep_dir)
        # One folder per submission: an old result in a reused folder would make a new task look done.
        executor = submitit.SlurmExecutor(folder=folder / "%A", max_num_timeout=NO_LIMIT)
        executor.update_parameters(**self._parameters | {"job_name": job_name(sweep_dir)})
        siblings = [{job.kind: kinds[job.kind] for job in task} for task in tasks]
        try:
            # submitit also prints the error that it raises. Ctrl-C would interrupt sbatch in the middle of its work.
            with outside_allocation(), redirect_stderr(io.StringIO()), ignore_sigint():
                submitted = executor.map_array(Task(self._minutes), tasks, siblings)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UsageError(f"sbatch rejected the submission: {_sbatch_error(error)}") from error
        finally:  # remove files of a rejected submission, and links to files of a successful one
            for path in [*folder.glob("*.pkl"), *folder.glob(".submission_file_*")]:
                path.unlink()
        by_task = {job.job_id: task for job, task in zip(submitted, tasks, strict=True)}
        number = submitted[0].job_id.partition("_")[0]
        write_tasks(sweep_dir, number, by_task, folder / number)
        print(f"SLURM job {number}: {len(tasks)} tasks, {sum(map(len, tasks))} jobs; logs in {folder / number}")
        return (job for task in tasks for job in task)

    def print_commands(self, jobs: Sequence[Job]) -> None:
        """Print the sbatch script of each array; without SLURM on this machine, of a single array."""
        from submitit.slurm.slurm import _make_sbatch_string  # submitit's executor itself requires srun

        sweep_dir = jobs[0].folder.parent
        folder, tasks = self._folder(sweep_dir), self._tasks(jobs)
        check_log_folder(folder)
        try:
            max_tasks = max_array_size()
        except UsageError:
            max_tasks = len(tasks)
        for first in range(0, len(tasks), max_tasks):
            n = len(tasks[first : first + max_tasks])
            command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder / "%A")])
            parameters = self._parameters | {"job_name": job_name(sweep_dir)} | ({"map_count": n} if n > 1 else {})
            print(_make_sbatch_string(command=command, folder=folder / "%A", **parameters))


@contextmanager
def outside_allocation() -> Iterator[None]:
    """Within a `with` block, hide SLURM's variables of the job that this process is part of, if any.

    sbatch would pass them on to the tasks, where they contradict the tasks' own options.
    """
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    inherited = {
        name: value for name, value in os.environ.items() if name.startswith(prefixes) and name != "SLURM_CONF"
    }
    for name in inherited:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inherited)


def check_log_folder(folder: Path) -> None:
    """Check that sbatch takes the path of SLURM's logs literally. Otherwise, tasks would fail without a log.

    Raises:
        UsageError: the path contains a character that sbatch interprets and that submitit cannot escape.
    """
    for character, name in (("%", "'%'"), ("\\", "a backslash"), ("\n", "a newline")):
        if character in str(folder):
            raise UsageError(
                f"{str(folder)!r} contains {name}, which sbatch would interpret in the paths of its logs; choose "
                "another --output_dir or --slurm_folder"
            )


def sbatch_parameters(options: SlurmOptions) -> dict[str, Any]:
    """Return the parameters from which submitit writes the header of the sbatch script."""
    extra = dict(_extra_option(word) for word in options.slurm_extra)
    if "no-requeue" not in extra:
        extra = {"requeue": True} | extra  # not the default of every cluster
    parameters = {
        "time": minutes(options.slurm_time),
        "partition": options.slurm_partition,
        "gpus_per_node": options.slurm_gpus or None,
        "cpus_per_task": options.slurm_cpus,
        "mem": options.slurm_mem,
        "constraint": options.slurm_constraint,
        "qos": options.slurm_qos,
        "account": options.slurm_account,
        "array_parallelism": options.slurm_array_parallelism,
        "setup": [_setup_line(command) for command in options.slurm_setup] or None,
        "additional_parameters": extra,
        # srun does not inherit the number of cores (since SLURM 22.05).
        "srun_args": [f"--cpus-per-task={options.slurm_cpus}"] if options.slurm_cpus else None,
    }
    # sbatch takes the last of two values, which would be that of the launcher, such as the default of --slurm_gpus.
    return {
        name: value for name, value in parameters.items() if value is not None and name.replace("_", "-") not in extra
    }


def _setup_line(command: str) -> str:
    """Return a line of the sbatch script that runs a command, and ends the task if it fails.

    Unlike after `set -e`, a command may consist of several that fail, as scripts of modules and Conda do.
    """
    failed = shlex.quote(f"--slurm_setup {shlex.quote(command)} failed with exit status")
    return f"{{ {command}\n}} || {{ status=$?; echo {failed} $status >&2; exit $status; }}"


def _extra_option(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    key = key.strip().lstrip("-").replace("_", "-")  # as submitit does
    if not key:
        raise UsageError(f"--slurm_extra {word!r} is not an option of sbatch; expected key=value, or key for a flag")
    if key in RESERVED:
        raise UsageError(f"--slurm_extra {word!r}: {key} is set by {RESERVED[key]}")
    return key, value.strip() if equals else True


def minutes(time: str) -> int:
    """Return a time limit of sbatch (minutes, minutes:seconds, hours:minutes:seconds, days-hours[:…]) in minutes.

    >>> minutes("90"), minutes("1:30:00"), minutes("2-00"), minutes("0:30")
    (90, 90, 2880, 1)

    Raises:
        UsageError: it has none of these forms, or is 0.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if not match:
        raise UsageError(
            f"--slurm_time {time!r} is not a time limit; expected minutes, minutes:seconds, hours:minutes:seconds, or "
            "days-hours"
        )
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, secs = [*numbers, 0, 0][:3]
    else:
        hours, mins, secs = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    total = -(-(((int(days or 0) * 24 + hours) * 60 + mins) * 60 + secs) // 60)
    if not total:
        raise UsageError("--slurm_time must be above 0")
    return total


def max_array_size() -> int:
    """Return the maximum number of tasks in an array on this cluster. Raises UsageError without SLURM."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", slurm_output(["scontrol", "show", "config"]), re.MULTILINE)
    return max(1, int(match.group(1))) if match else 1000  # 0: no arrays, which a single task does not need


def _sbatch_error(error: Exception) -> str:
    """Return the message of sbatch in an exception of submitit."""
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line]
    return "; ".join(line.partition("sbatch: error:")[2].strip() for line in lines) or str(error)
