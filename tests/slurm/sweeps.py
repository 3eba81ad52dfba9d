"""Sweeps on the cluster under test: launch them, watch them, and compare them with undisturbed jobs."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from domainbed.engine.lock import LOCK_FILE
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import read_job
from domainbed.scripts import collect_results, sweep, sweep_parser
from domainbed.sweep.job import LOG_FILE, Job
from domainbed.sweep.queue import read_queue, slurm_folder
from domainbed.sweep.status import JobState, survey
from tests.processes import wait_until
from tests.slurm.gated import GATE

ROOT = Path(__file__).parents[2]
OPTIONS = ["--command_launcher", "slurm", "--slurm_mem", "1200M", "--skip_confirmation"]
# Parts of a record that may differ between two runs of a job.
INCIDENTAL = ("step_time", "mem_gb")


@dataclass(frozen=True)
class Finished:
    """The exit status and output of a command."""

    status: int
    stdout: str
    stderr: str


class Sweep:
    """A sweep with its own gate, which is closed.

    Args:
        folder: new folder for the sweep and its gate.
        grid: options of `launch` that determine the jobs.
    """

    def __init__(self, folder: Path, *grid: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder / "sweep"
        self.gate = folder / "gate"
        self.grid = ["--datasets", "ColoredDigits", "--skip_model_save", *grid]
        args = sweep_parser.parse_args(["launch", "--output_dir", str(self.folder), *self.grid])
        self.jobs = sweep_parser.grid_of(args).jobs(self.folder)

    def words(self, *options: object) -> list[str]:
        """Return the command line of a launch."""
        return ["launch", "--output_dir", str(self.folder), *self.grid, *OPTIONS, *map(str, options)]

    def launch(self, *options: object) -> Finished:
        return run([*self.words(*options)], self.gate)

    def start_launch(self, *options: object) -> subprocess.Popen:
        """Start a launch in a new process."""
        return start(self.words(*options), self.gate)

    def command(self, name: str, *options: str) -> Finished:
        """Run another command of `sweep`."""
        return run([name, "--output_dir", str(self.folder), *options], self.gate)

    def open_gate(self) -> None:
        self.gate.touch()

    def states(self) -> list[JobState]:
        """Return the state of each job."""
        statuses = survey(self.jobs, read_queue(self.folder))
        return [statuses[job].state for job in self.jobs]

    def submissions(self) -> list[dict[str, list[str]]]:
        """Return the names of the job folders in each task of each submission, the oldest first."""
        files = slurm_folder(self.folder).glob("*/tasks.json")
        return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: int(file.parent.name))]

    def tasks(self) -> dict[str, list[Job]]:
        """Return the jobs of each task."""
        by_name = {job.folder.name: job for job in self.jobs}
        return {
            task: [by_name[name] for name in names] for tasks in self.submissions() for task, names in tasks.items()
        }

    def output(self, task: str) -> str:
        """Return the output of submitit in all runs of a task."""
        folder = slurm_folder(self.folder) / task.partition("_")[0]
        return "".join(path.read_text() for path in sorted(folder.glob(f"{task}_*_log.*")))

    def wait_until_done(self) -> None:
        """Wait until no task is left in the queue, and check that all jobs are done."""
        wait_until(lambda: not read_queue(self.folder).submissions(), self.describe)
        assert self.states() == [JobState.DONE] * len(self.jobs), self.describe()

    def describe(self) -> str:
        """Return everything that helps to understand a failure."""
        logs = "\n".join(f"{job}:\n{log_of(job)[-500:]}" for job in self.jobs)
        outputs = "\n".join(f"{task}:\n{self.output(task)[-3000:]}" for task in self.tasks())
        return f"{slurm_states()}\n{self.states()}\n{logs}\n{outputs}"


def run(words: Sequence[str], gate: Path) -> Finished:
    """Run a command of domainbed.scripts.sweep in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before = os.environ.get(GATE)
    os.environ[GATE] = str(gate)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            status = sweep.main(words)
    except UsageError as error:
        return Finished(2, stdout.getvalue(), f"{stderr.getvalue()}error: {error}\n")
    finally:
        if before is None:
            del os.environ[GATE]
        else:
            os.environ[GATE] = before
    return Finished(status, stdout.getvalue(), stderr.getvalue())


def start(words: Sequence[str], gate: Path) -> subprocess.Popen:
    """Start a command of domainbed.scripts.sweep in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "domainbed.scripts.sweep", *words],
        cwd=ROOT,
        env=os.environ | {GATE: str(gate)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Finished:
    stdout, stderr = process.communicate(timeout=180)
    return Finished(process.returncode, stdout, stderr)


def slurm(*words: str) -> str:
    """Return the output of a SLURM command."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def slurm_states() -> dict[str, tuple[str, str]]:
    """Return the state and the node of each task, including those that have ended."""
    lines = slurm("squeue", "--noheader", "--all", "--array", "--states", "all", "--format", "%i|%T|%N").splitlines()
    return {task: (state, node) for task, state, node in (line.split("|") for line in lines)}


def is_training(job: Job) -> bool:
    """Return whether a job is past its first evaluation, so that a stop request comes between updates."""
    return (job.folder / LOCK_FILE).exists() and "\nstep     0  " in log_of(job)


def log_of(job: Job) -> str:
    log = job.folder / LOG_FILE
    return log.read_text() if log.exists() else ""


def resumed_from(job: Job) -> list[int]:
    """Return the steps at which a job was resumed, according to its log."""
    return [int(steps) for steps in re.findall(r"Resuming from checkpoint at step (\d+)", log_of(job))]


def undisturbed(jobs: Iterable[Job], folder: Path) -> dict[str, list[str]]:
    """Train jobs one after another in this process, and return their records by the names of their folders."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a task without --slurm_cpus: with two, sums of floats differ
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            for job in jobs:
                train(replace(job.config, output_dir=str(folder / job.folder.name)))
    finally:
        torch.set_num_threads(threads)
    return {job.folder.name: lines_of(folder / job.folder.name) for job in jobs}


def lines_of(folder: Path) -> list[str]:
    """Return the lines of a job's records without their incidental parts."""
    lines = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["args"]["output_dir"]
        lines.append(json.dumps({name: value for name, value in record.items() if name not in INCIDENTAL}))
    return lines


def check_done_once(a_sweep: Sweep, expected: Mapping[str, list[str]]) -> None:
    """Check that every job is done, ran each step once, equals an undisturbed one, and left no other files."""
    for job in a_sweep.jobs:
        assert {path.name for path in job.folder.iterdir()} == {"results.jsonl", LOG_FILE, "done"}
        assert lines_of(job.folder) == expected[job.folder.name]
        assert read_job(job.folder)[1] == [], "no step is repeated"
        assert log_of(job).count(f"step {job.config.steps - 1:>5}  ") == 1
    assert {path.name for path in a_sweep.folder.iterdir()} == {".sweep", *(job.folder.name for job in a_sweep.jobs)}
    temporary = [path for path in slurm_folder(a_sweep.folder).iterdir() if path.suffix == ".pkl" or path.is_symlink()]
    assert temporary == []
    status = a_sweep.command("status", "--failed")
    assert (status.status, status.stderr) == (0, "")
    assert f"{len(a_sweep.jobs)} of {len(a_sweep.jobs)} jobs done" in status.stdout
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        collect_results.main(["--input_dir", str(a_sweep.folder)])
    tables = stdout.getvalue()
    assert tables.startswith(f"{len(a_sweep.jobs)} runs requested: {len(a_sweep.jobs)} done\n")
    assert re.search(r"\d+\.\d (\+/- \d|\(n = 1\))", tables)
    assert "X" not in tables, "no table is incomplete"
    assert stderr.getvalue() == ""
