"""The Colored MNIST proof of concept: `python -m domainbed.scripts.colored_mnist --data_dir data --restarts 10`."""

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from joblib import cpu_count
from tqdm import tqdm

from domainbed.errors import UsageError, near
from domainbed.scripts import cli

# As in domainbed.colored_mnist, from where they would cost --help an import of torch; a test holds them together.
ALGORITHMS = ("ERM", "IRM", "VREx", "Fishr", "Fishr_uncentered", "Fishr_covariance")
PUBLISHED_STEPS = 501
# What tells one run from another.
RUN = ("algorithm", "label_flip", "grayscale", "steps", "seed")


def parser() -> cli.Parser:
    p = cli.Parser(
        prog="python -m domainbed.scripts.colored_mnist",
        description="Train IRM's Colored MNIST setting from several seeds and print the table beside the published "
        "one. Run again, this trains only the restarts that are not in --output_dir yet.",
    )
    p.add_argument("--data_dir", required=True, help="folder that holds MNIST/raw, or that it is downloaded into")
    p.add_argument(
        "--algorithm",
        nargs="+",
        default=["ERM", "IRM", "VREx", "Fishr"],
        metavar="NAME",
        help=f"of {', '.join(ALGORITHMS)}",
    )
    p.add_argument("--restarts", type=int, default=10, help="runs of each algorithm; number r has seed --seed + r")
    p.add_argument("--seed", type=int, default=0, help="of the first restart")
    p.add_argument("--label_flip", type=float, default=0.25, help="part of the labels that are wrong")
    p.add_argument("--grayscale_model", action="store_true", help="let the model see no colour")
    p.add_argument("--steps", type=int, default=PUBLISHED_STEPS, help="the last of which only measures")
    p.add_argument("--output_dir", default="runs/colored_mnist", help="folder of records.jsonl, a line a restart")
    p.add_argument("--workers", type=int, help="restarts at once (default: 1 with a GPU, else one a CPU core)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.algorithm = list(dict.fromkeys(args.algorithm))
    check(args)
    records = Path(args.output_dir) / "records.jsonl"
    done = {key(run) for run in read(records)}
    wanted = [run for r in range(args.restarts) for run in settings(args, args.seed + r)]
    todo = [run for run in wanted if key(run) not in done]
    failed = 0
    if todo:
        from domainbed.colored_mnist import load_mnist  # imports torch

        load_mnist(args.data_dir)  # told before anything is started, if it is not there
        records.parent.mkdir(parents=True, exist_ok=True)
        failed = train_all(todo, args.data_dir, args.workers, records)
    from domainbed.reporting.colored_mnist import table

    of_each = {key(run): run for run in read(records)}
    runs = [of_each[key(run)] for run in wanted if key(run) in of_each]
    comparable = not args.grayscale_model and args.steps == PUBLISHED_STEPS
    print(table(runs, args.algorithm, args.restarts, args.label_flip, comparable))
    print(f"\nAccuracies in percent, mean ± standard deviation over {args.restarts} restarts; runs in {records}")
    return 1 if failed else 0


def check(args: argparse.Namespace) -> None:
    for name in args.algorithm:
        if name not in ALGORITHMS:
            raise UsageError(f"unknown algorithm {name!r}; {near(name, ALGORITHMS)}")
    if not 0 <= args.label_flip <= 1:
        raise UsageError(f"--label_flip must lie in [0, 1], not {args.label_flip}")
    for name in ("restarts", "steps", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if not 0 <= args.seed <= 2**32 - args.restarts:
        raise UsageError(f"--seed must lie between 0 and 2**32 - --restarts, not be {args.seed}")


def settings(args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """What determines a run, for each algorithm."""
    for algorithm in args.algorithm:
        yield {
            "algorithm": algorithm,
            "label_flip": args.label_flip,
            "grayscale": args.grayscale_model,
            "steps": args.steps,
            "seed": seed,
        }


def key(run: dict[str, Any]) -> tuple:
    return tuple(run[name] for name in RUN)


def read(records: Path) -> list[dict[str, Any]]:
    """The finished runs; a line that is none (one that was cut off as it was written) counts for nothing."""
    runs = []
    for line in records.read_text(encoding="utf-8").splitlines() if records.exists() else []:
        try:
            run = json.loads(line)
            key(run)
        except (ValueError, KeyError, TypeError):
            print(f"warning: {records}: a line is no run; left out", file=sys.stderr)
            continue
        runs.append(run)
    return runs


def append(records: Path, run: dict[str, Any]) -> None:
    with open(records, "ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        cut_off = file.read() not in (b"", b"\n")
        file.write(b"\n" * cut_off + json.dumps(run).encode() + b"\n")


def train_all(todo: list[dict[str, Any]], data_dir: str, workers: int | None, records: Path) -> int:
    """Train each run in a pool of processes and append it to `records`. Returns how many failed."""
    import torch

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
        pending = {pool.submit(train_one, run): run for run in todo}
        try:
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
    import signal

    import torch

    from domainbed.colored_mnist import load_mnist
    from domainbed.sweep.worker import end_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to tell
    end_with_parent()
    torch.set_num_threads(threads)
    _worker.update(mnist=load_mnist(data_dir), steps=steps)


def train_one(run: dict[str, Any]) -> dict[str, Any]:
    import torch

    from domainbed.colored_mnist import train

    began = time.perf_counter()
    options = {name: value for name, value in run.items() if name != "algorithm"}
    figures: dict[str, torch.Tensor] = {}
    for step_figures in train(run["algorithm"], *_worker["mnist"], **options):
        figures = step_figures
        with _worker["steps"].get_lock():
            _worker["steps"].value += 1
    last = {name: value.item() for name, value in figures.items()}
    bad = [f"{name} is {value}" for name, value in last.items() if not math.isfinite(value)]
    if bad:
        raise ArithmeticError(f"{' and '.join(bad)} at the last step, {run['steps'] - 1}")
    where = {"torch": torch.__version__, "device": device_name(), "python": platform.python_version()}
    return {**run, **last, "seconds": time.perf_counter() - began, **where}


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


if __name__ == "__main__":
    cli.run(main)
