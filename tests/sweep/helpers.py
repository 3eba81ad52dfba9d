"""Small sweeps, and ways to launch them without starting Python for each job."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import tests.sweep.misbehaving  # noqa: F401  registers the algorithm
from domainbed import cli
from domainbed.engine.config import JobConfig
from domainbed.engine.lock import LOCK_FILE, LockOwner, this_process
from domainbed.records import PruneDecision, mark_done, mark_pruned
from domainbed.scripts import sweep, sweep_parser
from domainbed.sweep.failures import record_failure
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import JobEvent, Launcher
from domainbed.sweep.launchers.base import skip_event
from domainbed.sweep.log import log_launch
from domainbed.sweep.run import run_job
from domainbed.sweep.status import JobState, Status, blocked_reason, read_status, survey
from tests.processes import start_quickly

# Parts of a record that may differ between two runs of a job.
INCIDENTAL = re.compile(rb'"(step_time|mem_gb|output_dir)": [^,}]+')
FOREIGN = LockOwner("elsewhere", "another machine", 4711, "1", 0, "")


def never() -> bool:
    return False


def make_job(folder: Path, how: str = "well", **kwargs) -> Job:
    """Return a job of the misbehaving algorithm, in a sweep in `folder`."""
    hparams = {"how": how, "batch_size": 4} | {name: kwargs.pop(name) for name in ("at", "cause") if name in kwargs}
    defaults = {"dataset": "ColoredDigits", "algorithm": "Misbehaving", "test_envs": (0,), "steps": 3}
    imports = ("tests.sweep.misbehaving",)
    config = JobConfig(
        **{**defaults, "checkpoint_freq": 1, "hparams": json.dumps(hparams), "imports": imports, **kwargs}
    )
    return Job.in_sweep(config, folder)


def launch_words(folder: Path, *words: object, launcher: str = "here", how: str = "well", **hparams) -> list[str]:
    """Return the command line of a launch of misbehaving jobs: three, unless `words` say otherwise."""
    given = json.dumps({"how": how, "batch_size": 4, **hparams})
    algorithm = ["--algorithms", "Misbehaving", "--import", "tests.sweep.misbehaving", "--hparams", given]
    grid = ["--datasets", "ColoredDigits", "--n_hparams", 1, "--n_trials", 1, "--steps", 3]
    how_run = ["--output_dir", folder, "--command_launcher", launcher, "--skip_confirmation"]
    return [str(word) for word in ("launch", *grid, *algorithm, *how_run, *words)]


def jobs_of(words: Sequence[str]) -> list[Job]:
    """Return the jobs that the command line of a launch requests."""
    args = sweep_parser.parse_args(words)
    return sweep_parser.grid_of(args).jobs(Path(args.output_dir))


def log_only(words: Sequence[str]) -> list[Job]:
    """Record a launch in the launch log without running it, and return its jobs."""
    args = sweep_parser.parse_args(words)
    log_launch(Path(args.output_dir), sweep_parser.grid_of(args))
    return jobs_of(words)


def states(jobs: Sequence[Job]) -> list[JobState]:
    return [read_status(job.folder).state for job in jobs]


def fill_folder(job: Job, state: JobState) -> Status:
    """Create the folder of a job in this state, and return the status that is read from it."""
    if state != JobState.NOT_LAUNCHED:
        job.folder.mkdir(parents=True)
        (job.folder / "log.txt").write_text("once upon a time")
    if state == JobState.DONE:
        mark_done(job.folder)
    if state == JobState.PRUNED:
        mark_pruned(job.folder, PruneDecision(0, "a rule", 0.5, {"another": 0.6}))
    if state == JobState.FAILED:
        record_failure(job.folder, "RuntimeError: it was too much")
    if state == JobState.RUNNING:
        write_lock(job.folder, FOREIGN)
    return read_status(job.folder)


def fail(job: Job, reason: str) -> None:
    """Create the folder of a job that failed for this reason."""
    job.folder.mkdir(parents=True, exist_ok=True)
    record_failure(job.folder, reason)


def write_lock(folder: Path, owner: LockOwner) -> None:
    (folder / LOCK_FILE).write_text(json.dumps(asdict(owner)))


def live_owner(**others) -> LockOwner:
    """Return this process as the owner of a lock, with some attributes replaced."""
    return LockOwner(**{**asdict(this_process()), **others})


def records(job: Job) -> bytes:
    """Return a job's records on disk without their incidental parts."""
    return INCIDENTAL.sub(b"", (job.folder / "results.jsonl").read_bytes())


def steps_recorded(job: Job) -> list[int]:
    """Return the step of each line of a job's records, including repeated ones."""
    return [json.loads(line)["step"] for line in (job.folder / "results.jsonl").read_text().splitlines()]


class LauncherHere(Launcher):
    """A launcher that runs one job after another in this process."""

    def launch(self, jobs, statuses, should_stop) -> Iterator[JobEvent]:
        for job in jobs:
            statuses = {**statuses, **survey(jobs)}
            reason = blocked_reason(status for other, status in statuses.items() if other.kind == job.kind)
            yield skip_event(job, statuses[job].state, reason) or run_job(job, lambda event: None, should_stop)


def run_here(*jobs: Job) -> list[JobEvent]:
    """Run jobs with LauncherHere and return their events."""
    return list(LauncherHere(LauncherHere.Options()).launch(jobs, {}, never))


def main(words: Sequence[object]) -> int:
    """Run a command line of `domainbed.scripts.sweep` in this process and return its exit status."""
    argv = sys.argv
    sys.argv = ["sweep", *map(str, words)]
    try:
        cli.run(sweep.main)
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = argv


def start_launch(words: Sequence[object], log: Path, quick_workers: bool = True) -> multiprocessing.Process:
    """Start a launch in a new process, which has imported torch already and writes its output to `log`."""
    args = (list(map(str, words)), log, quick_workers)
    process = multiprocessing.get_context("forkserver").Process(target=_launch, args=args)
    process.start()
    return process


def _launch(words: list[str], log: Path, quick_workers: bool) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    with start_quickly() if quick_workers else nullcontext():
        sys.exit(main(words))


def hold_lock(folder: Path) -> subprocess.Popen:
    """Start a process that holds the lock of a job's folder until it receives SIGTERM, like one that trains."""
    program = f"""
from pathlib import Path
import time
from domainbed.engine.interrupts import stop_on_signals
from domainbed.engine.lock import locked
with stop_on_signals() as stop_request, locked(Path({str(folder)!r})):
    print("locked", flush=True)
    while not stop_request():
        time.sleep(0.02)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process
