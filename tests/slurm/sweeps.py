"""Sweeps on the cluster under test: launched, watched, and compared with what undisturbed jobs leave."""

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
from domainbed.scripts import collect_results, sweep
from domainbed.sweep.job import LOG_FILE, Job
from domainbed.sweep.queue import read_queue, slurm_folder
from domainbed.sweep.status import JobState, survey
from tests.processes import wait_until
from tests.slurm.gated import GATE

ROOT = Path(__file__).parents[2]
OPTIONS = ["--command_launcher", "slurm", "--slurm_mem", "1200M", "--skip_confirmation"]
# What need not be the same in two runs of a job.
INCIDENTAL = ("step_time", "mem_gb")


@dataclass(frozen=True)
class Finished:
    """What a command came to."""

    status: int
    stdout: str
    stderr: str


class Sweep:
    """A sweep in a folder of its own, with a gate of its own, which is closed.

    Args:
        folder: where it and its gate shall lie.
        grid: the words that say which jobs it has.
    """

    def __init__(self, folder: Path, *grid: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder / "sweep"
        self.gate = folder / "gate"
        self.grid = ["--datasets", "ColoredDigits", "--skip_model_save", *grid]
        self.jobs = sweep.jobs_of(sweep.parser().parse_args(["launch", "--output_dir", str(self.folder), *self.grid]))

    def words(self, *options: object) -> list[str]:
        """The command line of a launch."""
        return ["launch", "--output_dir", str(self.folder), *self.grid, *OPTIONS, *map(str, options)]

    def launch(self, *options: object) -> Finished:
        return run([*self.words(*options)], self.gate)

    def start_launch(self, *options: object) -> subprocess.Popen:
        """A launch in a process of its own."""
        return start(self.words(*options), self.gate)

    def command(self, name: str, *options: str) -> Finished:
        """`sweep NAME`, but for launch."""
        return run([name, "--output_dir", str(self.folder), *options], self.gate)

    def open_gate(self) -> None:
        self.gate.touch()

    def states(self) -> list[JobState]:
        """How far each job is, as the commands have it."""
        statuses = survey(self.jobs, read_queue(self.folder))
        return [statuses[job].state for job in self.jobs]

    def submissions(self) -> list[dict[str, list[str]]]:
        """The jobs' folders' names in each task of each submission, the oldest first."""
        files = slurm_folder(self.folder).glob("*/tasks.json")
        return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: int(file.parent.name))]

    def tasks(self) -> dict[str, list[Job]]:
        """The jobs of each task."""
        by_name = {job.folder.name: job for job in self.jobs}
        return {
            task: [by_name[name] for name in names] for tasks in self.submissions() for task, names in tasks.items()
        }

    def output(self, task: str) -> str:
        """What submitit told in all lives of a task."""
        folder = slurm_folder(self.folder) / task.partition("_")[0]
        return "".join(path.read_text() for path in sorted(folder.glob(f"{task}_*_log.*")))

    def wait_until_done(self) -> None:
        """Until SLURM has nothing of it left."""
        wait_until(lambda: not read_queue(self.folder).submissions(), self.told)
        assert self.states() == [JobState.DONE] * len(self.jobs), self.told()

    def told(self) -> str:
        """For a failure: all that there is to tell."""
        logs = "\n".join(f"{job}:\n{log_of(job)[-500:]}" for job in self.jobs)
        outputs = "\n".join(f"{task}:\n{self.output(task)[-3000:]}" for task in self.tasks())
        return f"{slurm_states()}\n{self.states()}\n{logs}\n{outputs}"


def run(words: Sequence[str], gate: Path) -> Finished:
    """A command of domainbed.scripts.sweep, in this process."""
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
    """A command of domainbed.scripts.sweep, in a process of its own."""
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
    """What one of SLURM's commands prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def slurm_states() -> dict[str, tuple[str, str]]:
    """The state and the node of each task, also of those that have ended."""
    lines = slurm("squeue", "--noheader", "--all", "--array", "--states", "all", "--format", "%i|%T|%N").splitlines()
    return {task: (state, node) for task, state, node in (line.split("|") for line in lines)}


def trains(job: Job) -> bool:
    """Whether the job has its first evaluation behind it: told to stop, it does one more update."""
    return (job.folder / LOCK_FILE).exists() and "\nstep     0  " in log_of(job)


def log_of(job: Job) -> str:
    log = job.folder / LOG_FILE
    return log.read_text() if log.exists() else ""


def went_on_after(job: Job) -> list[int]:
    """After how many steps each life but the first went on, as the job's log tells."""
    return [int(steps) for steps in re.findall(r"goes on from its checkpoint after (\d+) steps", log_of(job))]


def undisturbed(jobs: Iterable[Job], folder: Path) -> dict[str, list[str]]:
    """The records that jobs leave which run one after another in this process, by the name of the job's folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of floats come out otherwise with two; a task without --slurm_cpus has one
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            for job in jobs:
                train(replace(job.config, output_dir=str(folder / job.folder.name)))
    finally:
        torch.set_num_threads(threads)
    return {job.folder.name: lines_of(folder / job.folder.name) for job in jobs}


def lines_of(folder: Path) -> list[str]:
    """The job's records, line for line, but for what is incidental."""
    lines = []
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["args"]["output_dir"]
        lines.append(json.dumps({name: value for name, value in record.items() if name not in INCIDENTAL}))
    return lines


def check_done_once(its: Sweep, expected: Mapping[str, list[str]]) -> None:
    """Every job is done, once, as it would have been undisturbed, and nothing else is left."""
    for job in its.jobs:
        assert {path.name for path in job.folder.iterdir()} == {"results.jsonl", LOG_FILE, "done"}
        assert lines_of(job.folder) == expected[job.folder.name]
        assert read_job(job.folder)[1] == [], "no step stands there twice"
        assert log_of(job).count(f"step {job.config.steps - 1:>5}  ") == 1
    assert {path.name for path in its.folder.iterdir()} == {".sweep", *(job.folder.name for job in its.jobs)}
    left = [path for path in slurm_folder(its.folder).iterdir() if path.suffix == ".pkl" or path.is_symlink()]
    assert left == []
    told = its.command("status", "--failed")
    assert (told.status, told.stderr) == (0, "")
    assert f"{len(its.jobs)} of {len(its.jobs)} jobs done" in told.stdout
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        collect_results.main(["--input_dir", str(its.folder)])
    tables = stdout.getvalue()
    assert tables.startswith(f"{len(its.jobs)} runs asked for: {len(its.jobs)} done\n")
    assert re.search(r"\d+\.\d \+/- \d", tables)
    assert "X" not in tables, "no table lacks a job"
    assert stderr.getvalue() == ""
