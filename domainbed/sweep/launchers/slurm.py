"""Job arrays on a SLURM cluster, through submitit."""

import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from domainbed.errors import UsageError
from domainbed.files import file_lock
from domainbed.sweep.failures import blocked_reason
from domainbed.sweep.job import Job
from domainbed.sweep.launchers.base import Launcher, Update, passed_over
from domainbed.sweep.queue import job_name, read_queue, slurm_folder, slurm_output, write_tasks
from domainbed.sweep.status import JobState, survey
from domainbed.sweep.worker import ignore_sigint

# What --slurm_extra may not set, and who does.
OURS = {"time": "by --slurm_time"} | dict.fromkeys(
    ("array", "error", "job-name", "output", "signal"), "by the launcher"
)
NO_LIMIT = 10**6  # times that a task may be requeued; one that gets nowhere is not (`Task.checkpoint`)


class SlurmLauncher(Launcher):
    """Submits tasks of one or more jobs and returns; SLURM runs them, and requeues those that it had to end."""

    RUNS_HERE = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.RUNS_JOBS = not options["dry_run"]  # type: ignore[misc]
        for name, least in (
            ("jobs_per_task", 1),
            ("slurm_array_parallelism", 1),
            ("slurm_gpus", 0),
            ("slurm_cpus", 1),
        ):
            if options[name] is not None and options[name] < least:
                raise UsageError(f"--{name} must be at least {least}, not {options[name]}")
        self._minutes = minutes(options["slurm_time"])
        self._parameters = sbatch_parameters(options)

    def check(self) -> None:
        if self.RUNS_JOBS:
            max_array_size()  # which SLURM tells, where it is

    def launch(self, jobs: Sequence[Job], should_stop: Callable[[], bool] = lambda: False) -> Iterator[Update]:
        sweep_dir = jobs[0].folder.parent
        folder = slurm_folder(sweep_dir)
        if self.options["dry_run"]:
            self._print_scripts(sweep_dir, self._tasks(jobs))
            return
        longest = max_array_size()
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / "lock", f"Another launch submits jobs of {sweep_dir}; waiting for it."):
            statuses = survey(jobs, read_queue(sweep_dir))  # what another launch submitted, need not be submitted again
            reasons = {kind: blocked_reason(job) for kind, job in {job.kind: job for job in jobs}.items()}
            to_submit = []
            for job in jobs:
                if update := passed_over(job, statuses[job].state, lambda job: reasons[job.kind]):
                    yield update
                else:
                    to_submit.append(job)
            tasks = self._tasks(to_submit)
            for first in range(0, len(tasks), longest):
                if should_stop():
                    return
                for job in self._submit(sweep_dir, tasks[first : first + longest]):
                    yield Update(job, JobState.QUEUED)

    def _tasks(self, jobs: Sequence[Job]) -> list[list[Job]]:
        n = self.options["jobs_per_task"]
        return [list(jobs[i : i + n]) for i in range(0, len(jobs), n)]

    def _submit(self, sweep_dir: Path, tasks: Sequence[Sequence[Job]]) -> Iterator[Job]:
        """Submit the tasks as one array (or one alone). Returns their jobs."""
        import submitit  # only where something is submitted

        from domainbed.sweep.launchers.slurm_task import Task

        folder = slurm_folder(sweep_dir)
        # A folder for each submission: in one that is used again, an old result makes a new task look done.
        executor = submitit.SlurmExecutor(folder=folder / "%A", max_num_timeout=NO_LIMIT)
        executor.update_parameters(**self._parameters | {"job_name": job_name(sweep_dir)})
        try:
            # submitit prints what its error tells as well. Ctrl-C would reach sbatch, too, with its work half done.
            with redirect_stderr(io.StringIO()), ignore_sigint():
                submitted = executor.map_array(Task(self._minutes), tasks)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UsageError(f"sbatch refuses: {_sbatch_error(error)}") from error
        finally:  # what a refusal leaves behind, and links to what has found its place
            for left in [*folder.glob("*.pkl"), *folder.glob(".submission_file_*")]:
                left.unlink()
        by_task = {job.job_id: task for job, task in zip(submitted, tasks, strict=True)}
        number = submitted[0].job_id.partition("_")[0]
        write_tasks(sweep_dir, number, by_task)
        print(f"SLURM job {number}: {len(tasks)} tasks, {sum(map(len, tasks))} jobs; logs in {folder / number}")
        return (job for task in tasks for job in task)

    def _print_scripts(self, sweep_dir: Path, tasks: Sequence[Sequence[Job]]) -> None:
        """The script of each array; without SLURM here, as if it took all tasks at once."""
        from submitit.slurm.slurm import _make_sbatch_string  # what its executor calls, which insists on an srun

        folder = slurm_folder(sweep_dir)
        try:
            longest = max_array_size()
        except UsageError:
            longest = len(tasks)
        for first in range(0, len(tasks), longest):
            n = len(tasks[first : first + longest])
            command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder / "%A")])
            parameters = self._parameters | {"job_name": job_name(sweep_dir)} | ({"map_count": n} if n > 1 else {})
            print(_make_sbatch_string(command=command, folder=folder / "%A", **parameters))


def sbatch_parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """What submitit writes into the script's head."""
    extra = dict(_extra(word) for word in options["slurm_extra"])
    if "no-requeue" not in extra:
        extra = {"requeue": True} | extra  # a cluster may have it otherwise where nothing is said
    parameters = {
        "time": minutes(options["slurm_time"]),
        "partition": options["slurm_partition"],
        "gpus_per_node": options["slurm_gpus"] or None,
        "cpus_per_task": options["slurm_cpus"],
        "mem": options["slurm_mem"],
        "constraint": options["slurm_constraint"],
        "qos": options["slurm_qos"],
        "account": options["slurm_account"],
        "array_parallelism": options["slurm_array_parallelism"],
        "setup": options["slurm_setup"] or None,
        "additional_parameters": extra,
        # srun does not inherit it (since SLURM 22.05).
        "srun_args": [f"--cpus-per-task={options['slurm_cpus']}"] if options["slurm_cpus"] else None,
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _extra(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    key = key.strip().lstrip("-")
    if not key:
        raise UsageError(f"--slurm_extra {word!r} names no option of sbatch; write key=value, or key for a flag")
    if key in OURS:
        raise UsageError(f"--slurm_extra {word!r}: {key} is set {OURS[key]}")
    return key, value.strip() if equals else True


def minutes(time: str | int) -> int:
    """A time limit as sbatch reads it (minutes, minutes:seconds, hours:minutes:seconds, days-hours[:…]), in minutes.

    >>> minutes("90"), minutes("1:30:00"), minutes("2-00"), minutes("0:30")
    (90, 90, 2880, 1)

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time).strip())
    if not found:
        raise UsageError(f"--slurm_time {time!r} is no time limit; write minutes, hours:minutes:seconds, or days-hours")
    days, *parts = found.groups()
    given = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, secs = [*given, 0, 0][:3]
    else:
        hours, mins, secs = {1: [0, *given, 0], 2: [0, *given], 3: given}[len(given)]
    total = -(-(((int(days or 0) * 24 + hours) * 60 + mins) * 60 + secs) // 60)
    if not total:
        raise UsageError("--slurm_time must be above 0")
    return total


def max_array_size() -> int:
    """How many tasks the cluster lets one array have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", slurm_output(["scontrol", "show", "config"]), re.MULTILINE)
    return int(found.group(1)) if found else 1000


def _sbatch_error(error: Exception) -> str:
    """sbatch's own words, out of what submitit made of them."""
    lines = [line.strip() for line in str(error).splitlines() if "sbatch: error" in line]
    return "; ".join(line.partition("sbatch: error:")[2].strip() for line in lines) or str(error)
