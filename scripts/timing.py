"""Shared code of the benchmarks: timing of the implementations to compare ("sides"), and reports as tables and JSON."""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from domainbed import cli
from domainbed.errors import UsageError
from domainbed.files import atomic_write
from tests.memory import PeakMemory

Samples = Mapping[str, Sequence[float]]  # of each side


def device() -> torch.device:
    """Return the device that jobs train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def header() -> dict[str, Any]:
    """Return the hardware and versions."""
    return {
        "device": torch.cuda.get_device_name() if device().type == "cuda" else cpu_model(),
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def synchronize() -> None:
    """Wait until the device has finished all work."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Return the time of `work` in seconds, including its work on the device."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def peak_memory(work: Callable[[], object]) -> int:
    """Return the peak of the memory of tensors that `work` creates, in bytes."""
    if device().type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with PeakMemory() as memory:
        work()
    return memory.peak


def interleaved(sides: Mapping[str, Callable[[], float]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Return `repeats` measurements of each side, taken in turn so that drift affects all sides equally."""
    if warm_up:
        for measure in sides.values():
            measure()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            samples[name].append(measure())
    return samples


def add_options(parser: argparse.ArgumentParser, repeats: int, sides: Sequence[str] = ()) -> None:
    """Add --repeats, --output and, if there are sides to choose from, --sides."""
    parser.add_argument("--repeats", type=int, default=repeats, help="number of rounds; the median is reported")
    parser.add_argument("--output", metavar="FILE", help="write all measurements to this file, as JSON")
    if sides:
        names = ", ".join(map(repr, sides))
        parser.add_argument(
            "--sides", nargs="+", choices=sides, default=sides, metavar="SIDE", help=f"what to compare: any of {names}"
        )


def check_workers(workers: int) -> None:
    """Raise a UsageError if the number of workers is negative."""
    if workers < 0:
        raise UsageError(f"--workers must be at least 0, not {workers}")


class Report:
    """The measurements of a benchmark, and the checks that the timed code computes the right results.

    Raises:
        UsageError: --repeats is below 1, or --output cannot be written.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if args.repeats < 1:
            raise UsageError(f"--repeats must be at least 1, not {args.repeats}")
        cli.check_output(args.output)
        self._output = Path(args.output) if args.output else None
        self._report: dict[str, Any] = {"header": header(), "arguments": vars(args), "results": [], "checks": []}

    def headline(self) -> str:
        """Return the hardware and versions as one line of text."""
        h = self._report["header"]
        return f"{h['device']}, {h['threads']} threads on {h['cores']} cores, torch {h['torch']}, Python {h['python']}"

    def record(self, what: str, unit: str, samples: Samples, **more: Mapping[str, Any]) -> None:
        """Store the samples of each side, with additional values for each side in `more`."""
        for side, times in samples.items():
            spread = {"median": statistics.median(times), "min": min(times), "max": max(times)}
            result = {"what": what, "side": side, "unit": unit, "samples": list(times), **spread}
            self._report["results"].append(result | {name: values[side] for name, values in more.items()})
        self._write()

    def check(self, what: str, side: str, measured: float, limit: float | None = None) -> None:
        """Check the difference between the results of a side and of the reference, and print it.

        The check passes if the difference is finite and, if there is a limit, at most `limit`.
        """
        passed = math.isfinite(measured) and (limit is None or measured <= limit)
        result = {"what": what, "side": side, "measured": measured, "limit": limit, "passed": passed}
        self._report["checks"].append(result)
        bound = "" if limit is None else f" (at most {limit:.2g})"
        self._write()
        print(f"{'checked' if passed else 'WRONG'}: {side}: {what}: {measured:.2g}{bound}", flush=True)

    def finish(self) -> int:
        """Return the exit status: 1 if a check failed."""
        self._write()
        return 0 if all(check["passed"] for check in self._report["checks"]) else 1

    def _write(self) -> None:
        """Write the JSON: after each measurement, because a benchmark may be stopped at a time limit."""
        if self._output:
            with atomic_write(self._output) as file:
                # JSON has no NaN and infinity; they are written as strings.
                file.write(json.dumps(_finite(self._report), indent=1, allow_nan=False).encode() + b"\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def table(what: str, unit: str, samples: Samples, **more: Mapping[str, str]) -> str:
    """Return a table of each side's median, spread, columns in `more`, and speedup over the first side."""
    medians = {side: statistics.median(values) for side, values in samples.items()}
    first = next(iter(medians.values()))
    rows = [
        [side, format_number(medians[side]), f"{format_number(min(values))} to {format_number(max(values))}"]
        + [column[side] for column in more.values()]
        + [f"{first / medians[side]:.2f}x"]
        for side, values in samples.items()
    ]
    headers = [what, unit, "spread", *more, "factor"]
    return tabulate(rows, headers, colalign=["left"] + ["right"] * (len(headers) - 1), disable_numparse=True)


def format_number(value: float) -> str:
    """Return a number with three significant digits, or all digits before the decimal point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"
