#!/usr/bin/env python3
"""Measure the overhead of a small job of a sweep, in a warm worker of the local launcher.

ERM is trained in one worker with one thread, job after job. The time of each job is broken down into its parts, and
compared with a bare loop of as many steps (the same network and batch size, Adam, nothing else), which runs in the same
process after each job. CPU time depends less than wall time on other processes; the difference of both is mostly time
to write to disk.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing
import worker_timers

from domainbed import cli
from domainbed.datasets import get_dataset_class
from domainbed.sweep.grid import Grid
from domainbed.sweep.launchers import local
from domainbed.sweep.status import JobState, read_status

WHOLE, OVERHEAD = "whole job", "without updates and evaluations"


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark overhead", description=__doc__)
    p.add_argument(
        "--dataset", default="ColoredDigits", help="dataset of arrays; its last environment is not trained on"
    )
    p.add_argument("--data_dir", help="folder that contains the datasets (not required for the digits)")
    p.add_argument("--steps", type=int, default=301, help="number of updates of each job")
    timing.add_options(p, repeats=20)
    return p


def make_grid(args: argparse.Namespace, seed: int) -> Grid:
    """Return the grid with one job, whose initial weights and batches depend on `seed`."""
    test_env = len(get_dataset_class(args.dataset).environment_names(args.data_dir)) - 1
    job_args = {"steps": args.steps, "data_dir": args.data_dir, "skip_model_save": True}
    return Grid(
        (args.dataset,), ("ERM",), n_hparams=1, n_trials=1, test_envs=((test_env,),), seed=seed, job_args=job_args
    )


def run_jobs(args: argparse.Namespace) -> list[dict[str, list[float]]]:
    """Return the wall and CPU time of each part of each job, in seconds, without those of a first job."""
    with tempfile.TemporaryDirectory() as folder:
        # Jobs of one trial, as in a sweep, which has the jobs of a trial one after another.
        jobs = [job for seed in range(args.repeats + 1) for job in make_grid(args, seed).jobs(Path(folder))]
        times = Path(folder, "times")
        os.environ[worker_timers.TIMES_FILE] = str(times)
        local.serve = worker_timers.serve  # type: ignore[attr-defined]
        launcher = local.LocalLauncher(local.LocalOptions(workers=1, threads=1))
        for event in launcher.launch(jobs, {job: read_status(job.folder) for job in jobs}, lambda: False):
            if event.state == JobState.FAILED:
                raise SystemExit(f"a job failed: {event.reason}")
        return [json.loads(line) for line in times.read_text().splitlines()][1:]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    report = timing.Report(args)
    print(f"{report.headline()}\nERM on {args.dataset}, {args.steps} steps, median of {args.repeats} jobs", flush=True)
    jobs = run_jobs(args)
    parts = [*worker_timers.PARTS, worker_timers.REST]
    sums = {name: [name] for name in [*parts, worker_timers.BETWEEN_JOBS, worker_timers.BARE_LOOP]}
    sums |= {WHOLE: parts, OVERHEAD: [part for part in parts if part not in ("updates", "evaluations")]}
    rows = []
    for name, summands in sums.items():
        wall, cpu = ([1000 * sum(job.get(part, (0, 0))[i] for part in summands) for job in jobs] for i in (0, 1))
        report.record("job, wall time", "ms", {name: wall})
        report.record("job, CPU time", "ms", {name: cpu})
        medians = [timing.format_number(statistics.median(values)) for values in (wall, cpu)]
        rows.append([name, *medians, f"{timing.format_number(min(cpu))} to {timing.format_number(max(cpu))}"])
    headers = ["ms per job", "wall", "CPU", "CPU, spread"]
    print(tabulate(rows, headers, colalign=("left", "right", "right", "right"), disable_numparse=True))
    return report.finish()


if __name__ == "__main__":
    cli.run(main)
