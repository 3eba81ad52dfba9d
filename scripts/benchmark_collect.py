#!/usr/bin/env python3
"""How long a large sweep takes to read: collect_results for the first time, again, and after some jobs have gone on.

The sweep is made first: job folders as ColoredMNIST and RotatedMNIST give them, with records that a model selection can
read. Each command is a process of its own, whose time and memory (the most that it and its own processes held at the
same time) are told. `scripts/benchmark collect --help` tells the sizes.
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, installed or not

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.records import DONE_FILE, RESULTS_FILE
from domainbed.scripts import sweep
from domainbed.sweep.job import Job
from domainbed.sweep.log import log_launch

JOBS_A_DRAW = 63  # 7 algorithms x (3 + 6) test environments


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="scripts/benchmark collect", description=__doc__)
    add_sweep_options(parser, jobs=100_000, records=51)
    args = parser.parse_args(argv)
    check_sweep_options(args)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        jobs, told = make_sweep(Path(folder), launch_words(folder, args.jobs, n_trials=3), args.records)
        print(told, flush=True)
        words = ["--input_dir", folder]
        show("the first time", *words)
        show("again, nothing has changed", *words)
        changed = jobs[:: max(1, len(jobs) // 100)]
        for job in changed:
            (job.folder / DONE_FILE).unlink()
            write_records(job, args.records + 1)
        show(f"again, {len(changed)} jobs have changed", *words)
        show("again, one method, as LaTeX", *words, "--selection", "training-domain", "--format", "latex")
    return 0


def add_sweep_options(parser: cli.Parser, jobs: int, records: int) -> None:
    """Add --jobs and --records, with these defaults, and --dir."""
    parser.add_argument("--jobs", type=int, default=jobs, help="jobs in the sweep, at least")
    parser.add_argument("--records", type=int, default=records, help="records a job; PACS has 18, ColoredMNIST 51")
    parser.add_argument("--dir", help="where to make the sweep, deleted afterwards (default: the temporary folder)")


def check_sweep_options(args: argparse.Namespace) -> None:
    """Raises UsageError: of these options, one can't be."""
    for name in ("jobs", "records"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.dir is not None and not Path(args.dir).is_dir():
        raise UsageError(f"--dir {args.dir} is not a folder")


def launch_words(folder: str, n_jobs: int, n_trials: int) -> list[str]:
    """The arguments of the launch, into this folder, that asks for at least so many jobs."""
    words = ["launch", "--datasets", "ColoredMNIST", "RotatedMNIST", "--output_dir", folder]
    return [*words, "--n_trials", str(n_trials), "--n_hparams", str(-(-n_jobs // (JOBS_A_DRAW * n_trials)))]


def make_sweep(folder: Path, words: Sequence[str], n_records: int) -> tuple[list[Job], str]:
    """Make the folders of the jobs that this launch asks for, all done. Returns the jobs, and how much that is."""
    began = time.perf_counter()
    launched = sweep.parser().parse_args(words)
    jobs = sweep.jobs_of(launched)
    parts = [jobs[i : i + 1000] for i in range(0, len(jobs), 1000)]
    size = sum(Parallel(os.cpu_count())(delayed(write_jobs)(part, n_records) for part in parts))
    log_launch(folder, sweep.grid_of(launched))
    told = f"{size / 2**30:.1f} GiB" if size > 2**30 else f"{size / 2**20:.0f} MiB"
    told = f"{len(jobs):,} jobs of {n_records} records, {told}, made in {time.perf_counter() - began:.0f} s"
    return jobs, f"{told}; {len(os.sched_getaffinity(0))} cores"


def write_jobs(jobs: Sequence[Job], n_records: int) -> int:
    """Make some finished jobs' folders. Returns how many bytes of records."""
    for job in jobs:
        job.folder.mkdir()
        (job.folder / DONE_FILE).write_text("done")
    return sum(write_records(job, n_records) for job in jobs)


def write_records(job: Job, n_records: int) -> int:
    """Write a job's records, whose accuracies rise, more or less. Returns how many bytes."""
    environments = job.config.environment_names()
    accuracies = [f"env{e}_{part}_acc" for e in range(len(environments)) for part in ("in", "out")]
    figures = [*accuracies, "epoch", "loss", "mem_gb", "step_time"]
    common = {
        "args": job.config.args(),
        "hparams": job.config.resolved_hparams(),
        "environments": environments,
        "bad_images": 0,
    }
    # What json.dumps gives for a record, with places for the figures, is filled in much faster than made anew.
    record = json.dumps(common | dict.fromkeys([*figures, "step"], "\0"), sort_keys=True) + "\n"
    template = record.replace("%", "%%").replace(json.dumps("\0"), "%r")
    order = sorted([*figures, "step"])
    draws = np.random.default_rng(int(job.folder.name[:8], 16))
    columns = {name: draws.random(n_records).tolist() for name in order}
    rise = 0.5 + 0.4 * np.sqrt(np.arange(n_records) / n_records)
    columns |= {name: (rise + 0.1 * draws.random(n_records)).tolist() for name in accuracies}
    columns["step"] = [100 * i for i in range(n_records)]
    text = "".join(template % row for row in zip(*(columns[name] for name in order), strict=True))
    (job.folder / RESULTS_FILE).write_text(text)
    return len(text)


def show(what: str, *words: str) -> None:
    """Run collect_results, see that it ends well, and print how long it took and how much memory."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "domainbed.scripts.collect_results", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    most = 0

    def watch() -> None:
        nonlocal most
        while process.poll() is None:
            most = max(most, memory_of(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    seconds = time.perf_counter() - began
    if process.returncode != 0 or "ColoredMNIST" not in out:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}:\n{err}")
    print(f"{what:32} {seconds:6.1f} s   {most / 2**30:5.2f} GiB", flush=True)


def memory_of(pid: int) -> int:
    """The bytes that a process and its children hold for themselves (Linux)."""
    total = 0
    for process in (Path("/proc") / str(pid), *children_of(pid)):
        try:
            pages = [int(word) for word in (process / "statm").read_text().split()]
        except OSError:
            continue
        total += (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")
    return total


def children_of(pid: int) -> list[Path]:
    """The /proc folders of all processes that descend from one."""
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
