"""The steps of a launch: check jobs, order them, run them, print their progress, and summarize."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.interrupts import stop_on_signals
from domainbed.records import last_record
from domainbed.sweep.failures import clear_failure
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.launchers import Launcher
from domainbed.sweep.queue import read_queue
from domainbed.sweep.status import JobState, Status, count_states, survey


@dataclass(frozen=True)
class LaunchResult:
    """The outcome of a launch.

    Attributes:
        statuses: the status of each job of the launch.
        n_failed: number of jobs that failed, including failures that could not be recorded.
        stop_signal: the signal that stopped the launch, if any.
    """

    statuses: dict[Job, Status]
    n_failed: int
    stop_signal: int | None


def check_jobs(jobs: Sequence[Job]) -> None:
    """Check that each dataset can be read and split, and that each algorithm can be created for it.

    Raises:
        UsageError: a dataset is missing or unusable, a hyperparameter is invalid, or an algorithm cannot be averaged or
            initialized as requested.
    """
    from domainbed.engine.averaging.base import make_averaging  # imports torch
    from domainbed.engine.data import load_data
    from domainbed.engine.model import load_initial_weights, make_algorithm

    loaded: dict[tuple[str, str | None], MultipleDomainDataset] = {}
    for config in {(job.kind, job.config.data_dir): job.config for job in jobs}.values():
        key = config.dataset, config.data_dir
        hparams = config.resolved_hparams()
        if key not in loaded:
            loaded[key], _ = load_data(config, hparams)
        algorithm = make_algorithm(config, hparams, loaded[key])
        load_initial_weights(algorithm, config)
        make_averaging(config, algorithm)


def launch_order(jobs: Sequence[Job], statuses: Mapping[Job, Status]) -> list[Job]:
    """Return jobs in the order in which to start them: trial by trial, so a stopped sweep has complete trials.

    Within a trial, jobs that are expected to take longest start first, so that no worker is left with a long job at the
    end. The estimate comes from finished jobs of the same dataset and algorithm; jobs without one come before others.

    Args:
        jobs: the jobs to order.
        statuses: the statuses of all jobs of the launch.
    """
    step_times: dict[Kind, float] = {}  # seconds
    kinds = {job.kind for job in jobs}
    for job, status in statuses.items():
        if status.state == JobState.DONE and job.kind in kinds and job.kind not in step_times:
            step_time = (last_record(job.folder) or {}).get("step_time")
            if isinstance(step_time, float):
                step_times[job.kind] = step_time
    return sorted(
        jobs, key=lambda job: (job.config.trial_seed, -step_times.get(job.kind, float("inf")) * job.config.steps)
    )


def run_launch(launcher: Launcher, jobs: Sequence[Job], statuses: Mapping[Job, Status]) -> LaunchResult:
    """Run checked jobs until they end or a signal stops them, and print their progress and a summary.

    Failed jobs among them are retried. A second Ctrl-C kills jobs on this machine at once.

    Args:
        launcher: runs the jobs.
        jobs: the jobs to run, in the order in which to start them.
        statuses: the statuses of all jobs of the launch, including those that are not run.
    """
    sweep_dir = jobs[0].folder.parent
    statuses = dict(statuses)
    for job in jobs:
        if statuses[job].failure:
            clear_failure(job.folder)
            statuses[job] = Status(JobState.INCOMPLETE)
    start = time.monotonic()
    n_failed = 0
    with stop_on_signals() as stop_request:
        try:
            n_failed = follow(launcher, jobs, statuses, stop_request)
        except KeyboardInterrupt:
            launcher.stop()
    statuses = survey(statuses, read_queue(sweep_dir))
    print(f"{count_states(statuses)} after {time.monotonic() - start:.0f} s")
    if stop_request():
        print("Stopped. Run the same command to resume.", file=sys.stderr)
    return LaunchResult(statuses, n_failed, stop_request.signals[0] if stop_request() else None)


def follow(
    launcher: Launcher, jobs: Sequence[Job], statuses: Mapping[Job, Status], should_stop: Callable[[], bool]
) -> int:
    """Launch jobs and print their events until the last one. Return the number of jobs that failed."""
    start = time.monotonic()
    steps = dict.fromkeys(jobs, 0)
    n_ended = n_failed = 0
    printed: set[tuple[Kind, str]] = set()
    is_bar_off = None if launcher.WAITS else True  # None: off unless stderr is a terminal
    with tqdm(total=sum(job.config.steps for job in jobs), unit="step", disable=is_bar_off, smoothing=0.05) as bar:
        for event in launcher.launch(jobs, statuses, should_stop):
            if event.state in (JobState.RUNNING, JobState.DONE):
                bar.update(event.steps - steps[event.job])
                steps[event.job] = event.steps
            if event.state == JobState.FAILED:
                n_failed += 1
                tqdm.write(f"FAILED {event.job}: {event.reason}", file=sys.stderr)
            elif event.reason and (event.job.kind, event.reason) not in printed:
                printed.add((event.job.kind, event.reason))  # once for all jobs of a blocked kind
                tqdm.write(f"{event.job}: {event.reason}", file=sys.stderr)
            if event.state not in (JobState.DONE, JobState.FAILED, JobState.INCOMPLETE):
                continue
            n_ended += 1
            bar.set_postfix_str(f"{n_ended}/{len(jobs)} jobs, {n_failed} failed")
            if bar.disable:
                seconds = time.monotonic() - start
                _print_or_stop(f"[{n_ended}/{len(jobs)}] {seconds:.0f} s: {event.state.value}: {event.job}")
    return n_failed


def _print_or_stop(line: str) -> None:
    """Print a line; stop the launch if the reader of stdout has exited (`| head`), so that running jobs are saved."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)
