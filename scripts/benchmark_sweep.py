#!/usr/bin/env python3
"""How long the command lines take on a large sweep: launch, status and collect_results, each as a whole process.

The sweep is made first: job folders as ColoredMNIST and RotatedMNIST give them at the published protocol, with records
that a model selection can read. `scripts/benchmark sweep --help` tells the sizes.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, installed or not

import timing

from domainbed.records import mark_done
from domainbed.scripts import cli, sweep
from domainbed.sweep.job import Job
from domainbed.sweep.remembered import remember

JOBS_A_DRAW = 63  # 7 algorithms x (3 + 6) test environments


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="scripts/benchmark sweep", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs in the sweep, at least")
    parser.add_argument("--records", type=int, default=18, help="records a job; PACS has 18, ColoredMNIST 51")
    parser.add_argument(
        "--dir", help="where to make the sweep, which is deleted afterwards (default: the temporary folder)"
    )
    timing.add_options(parser, repeats=3)
    args = parser.parse_args(argv)
    report = timing.Report(args)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        words = ["--datasets", "ColoredMNIST", "RotatedMNIST", "--n_trials", "1", "--output_dir", folder]
        words += ["--n_hparams", str(-(-args.jobs // JOBS_A_DRAW))]
        launched = sweep.parser().parse_args(["launch", *words])
        jobs = sweep.jobs_of(launched)
        began = time.perf_counter()
        size = sum(make_folder(job, args.records) for job in jobs)
        remember(Path(folder), sweep.grid_of(launched))
        print(f"{len(jobs):,} done jobs of {args.records} records, {size / 2**20:,.0f} MiB, made in ", end="")
        print(f"{time.perf_counter() - began:.0f} s; {len(os.sched_getaffinity(0))} cores, median of {args.repeats}")
        show(report, "launch, all done", args.repeats, 0, "sweep", "launch", *words)
        show(report, "status, all done", args.repeats, 0, "sweep", "status", "--output_dir", folder)
        show(report, "collect_results", args.repeats, 0, "collect_results", "--input_dir", folder)
        for job in jobs[::2]:
            (job.folder / "done").unlink()
        show(report, "status, half incomplete", args.repeats, 3, "sweep", "status", "--output_dir", folder)
    return report.end()


def make_folder(job: Job, n_records: int) -> int:
    """Write a finished job's folder. Returns how many bytes of records."""
    draw = random.Random(job.folder.name)
    environments = job.config.environment_names()
    common = {
        "args": job.config.args(),
        "hparams": job.config.resolved_hparams(),
        "environments": environments,
        "bad_images": 0,
        "mem_gb": 0.0,
    }
    lines = []
    for i in range(n_records):
        figures = {"step": i * 100, "epoch": i / 7, "loss": draw.random(), "step_time": draw.random()}
        accuracies = {f"env{e}_{part}_acc": draw.random() for e in range(len(environments)) for part in ("in", "out")}
        lines.append(json.dumps(common | accuracies | figures, sort_keys=True) + "\n")
    job.folder.mkdir()
    text = "".join(lines)
    (job.folder / "results.jsonl").write_text(text)
    mark_done(job.folder)
    return len(text)


def show(report: timing.Report, name: str, repeats: int, status: int, module: str, *words: str) -> None:
    """Run a command some times, see that it ends as it must, and print how long it took."""
    command = [sys.executable, "-m", f"domainbed.scripts.{module}", *words]

    def run() -> None:
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != status:
            raise SystemExit(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stderr}")

    seconds = [timing.seconds(run) for _ in range(repeats)]
    report.record("command", "s", {name: seconds})
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"{name:32} {statistics.median(seconds):6.2f} s  ({spread})", flush=True)


if __name__ == "__main__":
    cli.run(main)
