"""What the benchmarks share: sides that are timed in turn, a table of them and, as JSON, all that was found."""

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

Samples = Mapping[str, Sequence[float]]  # of each side


def device() -> torch.device:
    """The one that jobs train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def header() -> dict[str, Any]:
    """On what is measured."""
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


def synchronise() -> None:
    """Wait until the device has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes, all that it gives the device to do included."""
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


def interleaved(sides: Mapping[str, Callable[[], float]], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """What each side measures of itself, `repeats` times: in turn, so that whatever drifts hits all of them alike."""
    if warm_up:
        for measure in sides.values():
            measure()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            samples[name].append(measure())
    return samples


def add_options(parser: argparse.ArgumentParser, repeats: int, sides: Sequence[str] = ()) -> None:
    """Add --repeats, --output and, where there are any to choose from, --sides."""
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds, of which the median is told")
    parser.add_argument("--output", metavar="FILE", help="write all that is found there, as JSON")
    if sides:
        told = ", ".join(map(repr, sides))
        parser.add_argument("--sides", nargs="+", choices=sides, default=sides, metavar="SIDE", help=f"of {told}")


def check_workers(workers: int) -> None:
    """Raises UsageError: there can't be so many."""
    if workers < 0:
        raise UsageError(f"--workers must be at least 0, not {workers}")


class Report:
    """What a benchmark found: measurements, and whether the results that it timed were right.

    Raises:
        UsageError: its arguments ask for less than one round, or an output that can't be written.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if args.repeats < 1:
            raise UsageError(f"--repeats must be at least 1, not {args.repeats}")
        cli.check_output(args.output)
        self._output = Path(args.output) if args.output else None
        self._found: dict[str, Any] = {"header": header(), "arguments": vars(args), "results": [], "checks": []}

    def headline(self) -> str:
        """The header for people."""
        h = self._found["header"]
        return f"{h['device']}, {h['threads']} threads on {h['cores']} cores, torch {h['torch']}, Python {h['python']}"

    def record(self, what: str, unit: str, samples: Samples, **more: Mapping[str, Any]) -> None:
        """Take the samples of each side, and what `more` is to be told of it."""
        for side, values in samples.items():
            spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            result = {"what": what, "side": side, "unit": unit, "samples": list(values), **spread}
            self._found["results"].append(result | {name: told[side] for name, told in more.items()})

    def check(self, what: str, side: str, measured: float, limit: float | None = None) -> None:
        """Hold a difference between a side's results and the reference's: finite, and at most `limit` if there is one.

        Prints what was found.
        """
        passed = math.isfinite(measured) and (limit is None or measured <= limit)
        found = {"what": what, "side": side, "measured": measured, "limit": limit, "passed": passed}
        self._found["checks"].append(found)
        bound = "" if limit is None else f" (at most {limit:.2g})"
        print(f"{'checked' if passed else 'WRONG'}: {side}: {what}: {measured:.2g}{bound}", flush=True)

    def end(self) -> int:
        """Write the JSON. Returns the exit status: 1 if a check failed."""
        if self._output:
            with atomic_write(self._output) as file:
                # A figure that is not finite is no JSON, so it becomes a word.
                file.write(json.dumps(_finite(self._found), indent=1, allow_nan=False).encode() + b"\n")
        return 0 if all(check["passed"] for check in self._found["checks"]) else 1


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def table(what: str, unit: str, samples: Samples, **more: Mapping[str, str]) -> str:
    """Median and spread of each side's times, columns of `more`, and how many times as fast as the first side it is."""
    medians = {side: statistics.median(values) for side, values in samples.items()}
    first = next(iter(medians.values()))
    rows = [
        [side, figure(medians[side]), f"{figure(min(values))} to {figure(max(values))}"]
        + [told[side] for told in more.values()]
        + [f"{first / medians[side]:.2f}x"]
        for side, values in samples.items()
    ]
    headers = [what, unit, "spread", *more, "factor"]
    return tabulate(rows, headers, colalign=["left"] + ["right"] * (len(headers) - 1), disable_numparse=True)


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"
