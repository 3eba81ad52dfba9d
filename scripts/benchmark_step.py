#!/usr/bin/env python3
"""One update of each algorithm: as it is written (the reference), and as a job can do it faster, in one run.

Twice: with the loader, as in a job, and on batches that lie on the device already. All sides begin with the same
weights and are fed the same batches. After the warm-up, their weights (of bf16: losses) are held against the
reference's.
"""

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, installed or not

import timing

from domainbed import cli
from domainbed.algorithms import ALGORITHMS, get_algorithm_class
from domainbed.algorithms.base import Minibatch
from domainbed.algorithms.penalty import PenaltyERM
from domainbed.datasets import MultipleDomainDataset, get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, load_data
from domainbed.engine.feed import loader_workers, open_feed
from domainbed.engine.memory import keep_freed_memory
from domainbed.engine.metrics import MetricLog
from domainbed.engine.model import make_algorithm, to_device
from domainbed.engine.steps import are_captured, make_steps
from domainbed.engine.train import set_determinism
from domainbed.errors import UsageError
from domainbed.loading.base import Feed
from domainbed.loading.photo_feed import PhotoFeed
from domainbed.loading.splits import Split
from domainbed.seeding import seed_everything

# The first is the reference.
SIDES = {
    "eager": {"engine": "eager", "compile": "off", "precision": "tf32"},
    "fast": {"engine": "auto", "compile": "off", "precision": "tf32"},
    "fast, compiled": {"engine": "auto", "compile": "on", "precision": "tf32"},
    "fast, compiled, bf16": {"engine": "auto", "compile": "on", "precision": "bf16"},
}
WARM_UP = 4  # updates of each phase: three until it is captured, and one that is replayed
WITHOUT_END = 10**9
# Of the weights' change in the warm-up. Adam's first steps are as long for gradients that are nothing but rounding as
# for others, so that some weights part, most where kernels are others; a replay that missed an update or read an old
# batch would be off by more.
LIMITS = {"off": 0.05, "on": 0.2}  # by whether featurizers are compiled
BF16_LIMIT = 0.1  # of the mean loss of the warm-up

Step = tuple[list[Minibatch], list[torch.Tensor] | None]
Data = tuple[MultipleDomainDataset, Sequence[Split], Feed]


class Side:
    """An algorithm whose updates are done in one way.

    Attributes:
        change: by how much the warm-up changed the weights, [parameters].
        loss: its mean over the warm-up.
    """

    def __init__(self, config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], feed: Feed) -> None:
        device = timing.device()
        seed_everything(config.seed)
        self._algorithm = to_device(make_algorithm(config, dataset), config, device).train()
        self._initial = self._weights()
        self._steps = make_steps(self._algorithm, device, are_captured(config.engine, device))
        self._batches: Iterator[Step] = Batches(config, dataset, splits, feed).steps(0, WITHOUT_END)
        # What worker processes have read ahead while other sides were timed must not count.
        self._ahead = 2 * loader_workers(config.loader_workers, device) if isinstance(feed, PhotoFeed) else 0

    def _weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten().double() for p in self._algorithm.parameters()])

    def warm_up(self, held: Sequence[Step]) -> None:
        seed_everything(0)
        losses = []
        for step in held:
            figures = self._steps.update(*step)
            losses += [float(figures["loss"])] if "loss" in figures else []
        self.change = self._weights() - self._initial
        self.loss = sum(losses) / len(losses)

    def with_loader(self, n: int) -> float:
        """Milliseconds of an update as a job does it: the batch is fetched, and what the update tells is kept."""
        for step in islice(self._batches, self._ahead):
            self._steps.update(*step)
        told = MetricLog(0)

        def work() -> None:
            for step in islice(self._batches, n):
                told.add(self._steps.update(*step))
            told.read()

        return 1000 * timing.seconds(work) / n

    def on_device(self, held: Sequence[Step], n: int) -> float:
        """Milliseconds of an update alone."""

        def work() -> None:
            for step in islice(cycle(held), n):
                self._steps.update(*step)

        return 1000 * timing.seconds(work) / n


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark step", description=__doc__)
    p.add_argument("--dataset", default="ColoredMNIST", help="whose last environment is left out")
    p.add_argument("--data_dir", help="folder that holds the datasets (the digits need none)")
    p.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), metavar="NAME")
    p.add_argument("--hparams", help="hyperparameters to set, a JSON object; otherwise defaults, without any anneal")
    p.add_argument("--steps", type=int, help="updates a sample (default: 20, on a GPU 200)")
    timing.add_options(p, repeats=5, sides=list(SIDES))
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.steps is None:
        args.steps = 200 if timing.device().type == "cuda" else 20
    if args.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}")
    args.sides = [side for side in SIDES if side == "eager" or side in args.sides]
    report = timing.Report(args)
    configs = [config_of(algorithm, args.dataset, args.data_dir, args.hparams) for algorithm in args.algorithms]
    set_determinism(False)  # as in a job
    if timing.device().type == "cpu":
        keep_freed_memory()
    dataset, splits = load_data(configs[0])
    feed = open_feed(configs[0], dataset, splits, timing.device())
    print(f"{report.headline()}\n{args.dataset}, median of {args.repeats} rounds of {args.steps} updates", flush=True)
    for config in configs:
        measure(config, (dataset, splits, feed), args, report)
        gc.collect()  # the sides' networks and graphs
        torch.cuda.empty_cache()
    return report.end()


def config_of(algorithm: str, dataset: str, data_dir: str | None, hparams: str | None) -> JobConfig:
    """A job with these hyperparameters, in the phase where most of its updates are: the penalised one."""
    last = len(get_dataset_class(dataset).environment_names(data_dir)) - 1
    config = JobConfig(dataset, algorithm, (last,), data_dir=data_dir, hparams=hparams)
    made = get_algorithm_class(algorithm)
    anneal = {made.ANNEAL_ITERS: 0} if issubclass(made, PenaltyERM) else {}
    return replace(config, hparams=json.dumps(anneal | json.loads(config.hparams or "{}")))


def measure(config: JobConfig, data: Data, args: argparse.Namespace, report: timing.Report) -> None:
    """Check and time an algorithm's sides, and print what was found."""
    warm_up = WARM_UP * (1 + config.resolved_hparams().get("d_steps_per_g_step", 0))  # DANN's turns
    held = list(Batches(config, *data).steps(0, warm_up))
    sides = {name: Side(replace(config, **SIDES[name]), *data) for name in args.sides}
    for side in sides.values():
        side.warm_up(held)
    print()
    check(config.algorithm, sides, report)
    images = sum(len(y) for _, y in held[0][0])
    blocks = {
        "with the loader": {name: partial(side.with_loader, args.steps) for name, side in sides.items()},
        "on the device": {name: partial(side.on_device, held, args.steps) for name, side in sides.items()},
    }
    for where, block in blocks.items():
        what = f"{config.algorithm}, {where}"
        samples = timing.interleaved(block, args.repeats)
        rates = {name: 1000 * images / statistics.median(values) for name, values in samples.items()}
        report.record(what, "ms/step", samples, images_per_second=rates)
        told = {name: f"{rate:,.0f}" for name, rate in rates.items()}
        print(timing.table(what, "ms/step", samples, **{"images/s": told}), flush=True)


def check(algorithm: str, sides: Mapping[str, Side], report: timing.Report) -> None:
    """Hold what the sides came to in the warm-up against the reference."""
    reference, *others = sides
    of_reference = sides[reference]
    for name in others:
        side = sides[name]
        if SIDES[name]["precision"] == "bf16":
            difference = abs(side.loss - of_reference.loss) / abs(of_reference.loss)
            report.check(f"{algorithm}'s loss, relative difference", name, difference, BF16_LIMIT)
        else:
            difference = float((side.change - of_reference.change).norm() / of_reference.change.norm())
            limit = LIMITS[SIDES[name]["compile"]]
            report.check(f"{algorithm}'s weights, difference as a part of their change", name, difference, limit)


if __name__ == "__main__":
    cli.run(main)
