"""Restarts of the Colored MNIST proof of concept, several at once, each kept as a line of a file when it is done."""

import json
import math
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count
from tqdm import tqdm

from domainbed.colored_mnist.experiment import load_mnist, train
from domainbed.engine.memory import keep_freed_memory
from domainbed.errors import UsageError
from domainbed.landscape import PREFIX
from domainbed.sweep.worker import end_with_parent, ignore_sigint

# What tells one run from another.
RUN = ("algorithm", "label_flip", "grayscale", "steps", "seed")
ACCURACIES = ("train_acc", "test_acc", "gray_acc")  # from 0 to 1; what a finished run tells


def key(run: dict[str, Any]) -> tuple:
    """What determines a run. Two with the same key are the same run."""
    return tuple(run[name] for name in RUN)


def read(records: Path) -> list[dict[str, Any]]:
    """The finished runs; a line that is none (one that was cut off as it was written) counts for nothing."""
    runs = []
    for number, line in enumerate(records.read_bytes().splitlines() if records.exists() else [], start=1):
        try:
            run = json.loads(line.decode())
            hash(key(run))
            is_run = all(math.isfinite(run[name]) for name in ACCURACIES)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            is_run = False
        if is_run:
            runs.append(run)
        else:
            print(f"warning: {records}: line {number} is no run; left out", file=sys.stderr)
    return runs


def append(records: Path, run: dict[str, Any]) -> None:
    """Add a finished run, for good, on a line of its own also where the last line was cut off."""
    with open(records, "ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        cut_off = file.read() not in (b"", b"\n")
        file.write(b"\n" * cut_off + json.dumps(run).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def train_all(
    todo: list[dict[str, Any]], data_dir: str, workers: int | None, records: Path, track: bool = False
) -> int:
    """Train each run in a pool of processes and append it to `records`.

    Args:
        todo: what determines each run, by the names in RUN.
        data_dir: where MNIST is.
        workers: runs at once; None for one a CPU core or, with a GPU, one.
        track: keep the course of the landscape, too.

    Returns:
        How many runs failed; why is told on stderr.

    Raises:
        UsageError: a worker process died. What was finished is kept.
    """
    cores = cpu_count()  # those that are ours, as batch systems and containers allot them
    workers = min(workers or (1 if torch.cuda.is_available() else cores), len(todo))
    context = multiprocessing.get_context("spawn")  # CUDA can't be forked
    steps: Synchronized[int] = context.Value("q", 0)
    threads = max(1, cores // workers)
    failed = 0
    with (
        tqdm(total=sum(run["steps"] for run in todo), unit="step", disable=None) as bar,
        ProcessPoolExecutor(workers, context, begin_worker, (data_dir, threads, steps)) as pool,
    ):
        try:
            with ignore_sigint():  # this starts the processes
                pending = {pool.submit(train_one, run, track): run for run in todo}
            while pending:
                finished, _ = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                bar.update(steps.value - bar.n)
                broken = [future for future in finished if isinstance(future.exception(), BrokenProcessPool)]
                for future in finished.difference(broken):
                    run = pending.pop(future)
                    try:
                        record = future.result()
                    except Exception as error:
                        failed += 1
                        tqdm.write(f"FAILED {run['algorithm']}, seed {run['seed']}: {error}", file=sys.stderr)
                        continue
                    append(records, record)
                    scores = ", ".join(
                        f"{name} {100 * record[f'{name}_acc']:.1f}" for name in ("train", "test", "gray")
                    )
                    tqdm.write(f"{run['algorithm']}, seed {run['seed']}: {scores} ({record['seconds']:.0f} s)")
                if broken:
                    raise UsageError("a worker died (was it killed, out of memory? then try fewer --workers)")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return failed


_worker: dict[str, Any] = {}  # what a worker process keeps from run to run


def begin_worker(data_dir: str, threads: int, steps: "Synchronized[int]") -> None:
    """Make a worker process ready: `steps` is the count of all steps, for the progress bar."""
    end_with_parent()
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        keep_freed_memory()
    _worker.update(mnist=load_mnist(data_dir), steps=steps)


def train_one(run: dict[str, Any], track: bool = False) -> dict[str, Any]:
    """Train one run in a worker process. Returns it with its accuracies, last figures, time and versions.

    If `track`, also with the landscape's course, a list of what each look at it tells.

    Raises:
        ArithmeticError: a figure is not finite in the end.
    """
    began = time.perf_counter()
    options = {name: value for name, value in run.items() if name != "algorithm"}
    figures: dict[str, torch.Tensor] = {}
    course = []
    for step, figures in enumerate(train(run["algorithm"], *_worker["mnist"], **options, track=track)):
        distances = {name: value.item() for name, value in figures.items() if name.startswith(PREFIX)}
        course += [{"step": step, **distances}] if distances else []
        with _worker["steps"].get_lock():
            _worker["steps"].value += 1
    last = {name: value.item() for name, value in figures.items()}
    bad = [f"{name} is {value}" for name, value in last.items() if not math.isfinite(value)]
    if bad:
        raise ArithmeticError(f"{' and '.join(bad)} at the last step, {run['steps'] - 1}")
    where = {"torch": torch.__version__, "device": device_name(), "python": platform.python_version()}
    tracked = {"course": course} if track else {}
    return {**run, **last, **tracked, "seconds": time.perf_counter() - began, **where}


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
