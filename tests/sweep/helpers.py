"""Small sweeps, and ways to launch them that need not start Python for each job."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import tests.sweep.misbehaving  # noqa: F401  registers the algorithm
from domainbed import cli
from domainbed.engine.config import JobConfig
from domainbed.engine.lock import LOCK_FILE, LockOwner, this_process
from domainbed.records import mark_done
from domainbed.scripts import sweep
from domainbed.sweep.failures import record_failure
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import Launcher, Update
from domainbed.sweep.run import End, run_job
from domainbed.sweep.status import JobState, Status, status_of

# Of a record, what its job's result does not depend on.
BESIDE = re.compile(rb'"(step_time|mem_gb|output_dir)": [^,}]+')
FOREIGN = LockOwner("elsewhere", "another machine", 4711, "1", 0, "")


# Processes that are forked off the fork server have imported what takes long.
multiprocessing.set_forkserver_preload(["domainbed.engine.train", "tests.sweep.misbehaving"])


def make_job(folder: Path, how: str = "well", **kwargs) -> Job:
    """A job of the algorithm that misbehaves, in a sweep in `folder`."""
    hparams = {"how": how, "batch_size": 4} | {name: kwargs.pop(name) for name in ("at", "cause") if name in kwargs}
    defaults = {"dataset": "ColoredDigits", "algorithm": "Misbehaving", "test_envs": (0,), "steps": 3}
    imports = ("tests.sweep.misbehaving",)
    config = JobConfig(
        **{**defaults, "checkpoint_freq": 1, "hparams": json.dumps(hparams), "imports": imports, **kwargs}
    )
    return Job.in_sweep(config, folder)


def launch_words(folder: Path, *words: object, launcher: str = "here", how: str = "well", **hparams) -> list[str]:
    """The command line of a launch of jobs that misbehave: three, unless `words` say otherwise."""
    given = json.dumps({"how": how, "batch_size": 4, **hparams})
    algorithm = ["--algorithms", "Misbehaving", "--import", "tests.sweep.misbehaving", "--hparams", given]
    grid = ["--datasets", "ColoredDigits", "--n_hparams", 1, "--n_trials", 1, "--steps", 3]
    how_run = ["--output_dir", folder, "--command_launcher", launcher, "--skip_confirmation"]
    return [str(word) for word in ("launch", *grid, *algorithm, *how_run, *words)]


def jobs_of(words: Sequence[str]) -> list[Job]:
    """The jobs that a launch's command line asks for."""
    return sweep.jobs_of(sweep.parser().parse_args(words))


def states(jobs: Sequence[Job]) -> list[JobState]:
    return [status_of(job).state for job in jobs]


def fill_folder(job: Job, state: JobState) -> Status:
    """Make a folder of a job in this state, as far as folders tell it."""
    if state != JobState.NOT_LAUNCHED:
        job.folder.mkdir(parents=True)
        (job.folder / "log.txt").write_text("once upon a time")
    if state == JobState.DONE:
        mark_done(job.folder)
    if state == JobState.FAILED:
        record_failure(job.folder, "RuntimeError: it was too much")
    if state == JobState.RUNNING:
        lock_as(job.folder, FOREIGN)
    return status_of(job)


def lock_as(folder: Path, owner: LockOwner) -> None:
    (folder / LOCK_FILE).write_text(json.dumps(asdict(owner)))


def alive_here(**others) -> LockOwner:
    return LockOwner(**{**asdict(this_process()), **others})


def records(job: Job) -> bytes:
    """A job's records as they are on disk, but for what its result does not depend on."""
    return BESIDE.sub(b"", (job.folder / "results.jsonl").read_bytes())


def steps_recorded(job: Job) -> list[int]:
    """The step of each line, so that one that is there twice shows."""
    return [json.loads(line)["step"] for line in (job.folder / "results.jsonl").read_text().splitlines()]


class LauncherHere(Launcher):
    """Runs one job after another in this very process."""

    def launch(self, jobs, should_stop=lambda: False) -> Iterator[Update]:
        for job in jobs:
            outcome = run_job(job, lambda step: None, should_stop)
            state = JobState.FAILED if outcome.end == End.FAILED else status_of(job).state
            yield Update(job, state, reason=outcome.reason)


def main(words: Sequence[object]) -> int:
    """A command line of `domainbed.scripts.sweep`, run in this process; its exit status."""
    before = sys.argv
    sys.argv = ["sweep", *map(str, words)]
    try:
        cli.run(sweep.main)
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before


def begin(words: Sequence[object], log: Path, quick_workers: bool = True) -> multiprocessing.Process:
    """A launch in a process of its own, which need not import torch anew, and writes what it says into `log`."""
    args = (list(map(str, words)), log, quick_workers)
    process = multiprocessing.get_context("forkserver").Process(target=_launch, args=args)
    process.start()
    return process


def _launch(words: list[str], log: Path, quick_workers: bool) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if quick_workers:
        start_quickly()
    sys.exit(main(words))


def start_quickly() -> Callable[[], None]:
    """From now on this process's local launcher forks its workers off a process that has imported torch already.

    Returns:
        How to have it start them anew again.
    """
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("forkserver" if method == "spawn" else method)

    def undo() -> None:
        multiprocessing.get_context = get_context

    return undo


def hold_elsewhere(folder: Path) -> subprocess.Popen:
    """Another process that holds the folder of a job until it is sent SIGTERM, as one that trains does."""
    program = f"""
from pathlib import Path
import time
from domainbed.engine.interrupts import stop_on_signals
from domainbed.engine.lock import locked
with stop_on_signals() as asked_to_stop, locked(Path({str(folder)!r})):
    print("held", flush=True)
    while not asked_to_stop():
        time.sleep(0.02)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process
