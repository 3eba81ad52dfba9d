#!/usr/bin/env python3
"""Measure launch, status and collect_results on a large sweep, each as a process.

The sweep is generated: job folders of ColoredMNIST and RotatedMNIST with random records.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing
from benchmark_collect import add_sweep_options, check_sweep_options, launch_words, make_sweep

from domainbed import cli
from domainbed.records import DONE_FILE


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="scripts/benchmark sweep", description=__doc__)
    add_sweep_options(parser, jobs=10_000, records=18)
    timing.add_options(parser, repeats=3)
    args = parser.parse_args(argv)
    check_sweep_options(args)
    report = timing.Report(args)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        words = launch_words(folder, args.jobs, n_trials=1)
        jobs, summary = make_sweep(Path(folder), words, args.records)
        print(f"{summary}, median of {args.repeats}", flush=True)
        show(report, "launch, all done", args.repeats, 0, "sweep", *words)
        show(report, "status, all done", args.repeats, 0, "sweep", "status", "--output_dir", folder)
        show(report, "collect_results", args.repeats, 0, "collect_results", "--input_dir", folder)
        for job in jobs[::2]:
            (job.folder / DONE_FILE).unlink()
        show(report, "status, half incomplete", args.repeats, 3, "sweep", "status", "--output_dir", folder)
    return report.finish()


def show(report: timing.Report, name: str, repeats: int, status: int, module: str, *words: str) -> None:
    """Run a command several times, check its exit status, and print its time."""
    command = [sys.executable, "-m", f"domainbed.scripts.{module}", *words]

    def run() -> None:
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != status:
            raise SystemExit(f"{' '.join(command)} exited with status {finished.returncode}:\n{finished.stderr}")

    seconds = [timing.seconds(run) for _ in range(repeats)]
    report.record("command", "s", {name: seconds})
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"{name:32} {statistics.median(seconds):6.2f} s  ({spread})", flush=True)


if __name__ == "__main__":
    cli.run(main)
