#!/usr/bin/env python3
"""Measure collect_results on a large sweep: the first call, a repeated call, and a call after some jobs have changed.

The sweep is generated: job folders of ColoredMNIST and RotatedMNIST with random records. Each command runs as a
process. The benchmark reports its time and its peak memory, including child processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.records import DONE_FILE, RESULTS_FILE
from domainbed.scripts import sweep_parser
from domainbed.sweep.job import Job
from domainbed.sweep.log import log_launch

JOBS_PER_DRAW = 63  # 7 algorithms x (3 + 6) test environments


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="scripts/benchmark collect", description=__doc__)
    add_sweep_options(parser, jobs=100_000, records=51)
    args = parser.parse_args(argv)
    check_sweep_options(args)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        jobs, summary = make_sweep(Path(folder), launch_words(folder, args.jobs, n_trials=3), args.records)
        print(summary, flush=True)
        words = ["--input_dir", folder]
        show("the first time", *words)
        show("again, no job has changed", *words)
        changed = jobs[:: max(1, len(jobs) // 100)]
        for job in changed:
            (job.folder / DONE_FILE).unlink()
            write_records(job, args.records + 1)
        show(f"again, {len(changed)} jobs have changed", *words)
        show("again, one method, as LaTeX", *words, "--selection", "training-domain", "--format", "latex")
    return 0


def add_sweep_options(parser: cli.Parser, jobs: int, records: int) -> None:
    """Add --jobs and --records, with the given defaults, and --dir."""
    parser.add_argument("--jobs", type=int, default=jobs, help="minimum number of jobs in the sweep")
    parser.add_argument("--records", type=int, default=records, help="records per job (PACS has 18, ColoredMNIST 51)")
    parser.add_argument(
        "--dir", help="folder to create the sweep in; it is deleted afterwards (default: the system's temporary folder)"
    )


def check_sweep_options(args: argparse.Namespace) -> None:
    """Raise a UsageError if one of these options is invalid."""
    for name in ("jobs", "records"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.dir is not None and not Path(args.dir).is_dir():
        raise UsageError(f"--dir {args.dir} is not a folder")


def launch_words(folder: str, n_jobs: int, n_trials: int) -> list[str]:
    """Return the arguments of a launch of at least `n_jobs` jobs into a folder."""
    words = ["launch", "--datasets", "ColoredMNIST", "RotatedMNIST", "--output_dir", folder]
    return [*words, "--n_trials", str(n_trials), "--n_hparams", str(-(-n_jobs // (JOBS_PER_DRAW * n_trials)))]


def make_sweep(folder: Path, words: Sequence[str], n_records: int) -> tuple[list[Job], str]:
    """Create the folders of the jobs of a launch, all of them done. Return the jobs and a summary."""
    start = time.perf_counter()
    launched = sweep_parser.parser().parse_args(words)
    grid = sweep_parser.grid_of(launched)
    jobs = grid.jobs(folder)
    parts = [jobs[i : i + 1000] for i in range(0, len(jobs), 1000)]
    size = sum(Parallel(os.cpu_count())(delayed(write_jobs)(part, n_records) for part in parts))
    log_launch(folder, grid)
    amount = f"{size / 2**30:.1f} GiB" if size > 2**30 else f"{size / 2**20:.0f} MiB"
    summary = f"{len(jobs):,} jobs of {n_records} records, {amount}, created in {time.perf_counter() - start:.0f} s"
    return jobs, f"{summary}; {len(os.sched_getaffinity(0))} cores"


def write_jobs(jobs: Sequence[Job], n_records: int) -> int:
    """Create the folders of finished jobs. Return the size of their records in bytes."""
    for job in jobs:
        job.folder.mkdir()
        (job.folder / DONE_FILE).write_text("done")
    return sum(write_records(job, n_records) for job in jobs)


def write_records(job: Job, n_records: int, every: int = 100) -> int:
    """Write random records of a job, one after `every` steps, with rising accuracies. Return their size in bytes."""
    environments = job.config.environment_names()
    accuracies = [f"env{e}_{part}_acc" for e in range(len(environments)) for part in ("in", "out")]
    metrics = [*accuracies, "epoch", "loss", "mem_gb", "step_time"]
    common = {
        "args": job.config.args(),
        "hparams": job.config.resolved_hparams(),
        "environments": environments,
        "bad_images": 0,
    }
    # Filling in a template is much faster than calling json.dumps for each record.
    record = json.dumps(common | dict.fromkeys([*metrics, "step"], "\0"), sort_keys=True) + "\n"
    template = record.replace("%", "%%").replace(json.dumps("\0"), "%r")
    order = sorted([*metrics, "step"])
    draws = np.random.default_rng(int(job.folder.name[:8], 16))
    columns = {name: draws.random(n_records).tolist() for name in order}
    rise = 0.5 + 0.4 * np.sqrt(np.arange(n_records) / n_records)
    columns |= {name: (rise + 0.1 * draws.random(n_records)).tolist() for name in accuracies}
    columns["step"] = [every * i for i in range(n_records)]
    text = "".join(template % row for row in zip(*(columns[name] for name in order), strict=True))
    (job.folder / RESULTS_FILE).write_text(text)
    return len(text)


def show(name: str, *words: str) -> None:
    """Run collect_results, check that it succeeds, and print its time and memory."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "domainbed.scripts.collect_results", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    seconds = time.perf_counter() - start
    if process.returncode != 0 or "ColoredMNIST" not in out:
        raise SystemExit(f"{' '.join(command)} exited with status {process.returncode}:\n{err}")
    print(f"{name:32} {seconds:6.1f} s   {peak / 2**30:5.2f} GiB", flush=True)


def memory_of(pid: int) -> int:
    """Return the private memory of a process and its children in bytes (Linux)."""
    total = 0
    for process in (Path("/proc") / str(pid), *children_of(pid)):
        try:
            pages = [int(word) for word in (process / "statm").read_text().split()]
        except OSError:
            continue
        total += (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")
    return total


def children_of(pid: int) -> list[Path]:
    """Return the /proc folders of all descendants of a process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return [Path("/proc") / str(child) for child in found - {pid}]


if __name__ == "__main__":
    cli.run(main)
