#!/usr/bin/env python3
"""Measure one update of each algorithm, with the eager reference and with the faster ways to run it.

Each is measured with the loader, as in a job, and on batches that are already on the device. All sides start from the
same weights and train on the same batches. After the warm-up, their weights (for bf16: losses) are compared with the
reference's. If ERM is among the algorithms, a last table shows the cost of each relative to ERM's.
"""

import argparse
import gc
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing
from tabulate import tabulate
from torch.utils._pytree import tree_leaves

from domainbed import cli
from domainbed.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, GROUPS, get_algorithm_class
from domainbed.algorithms.base import Minibatch
from domainbed.algorithms.penalty import PenaltyERM
from domainbed.datasets import MultipleDomainDataset, get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, load_data
from domainbed.engine.feed import num_loader_workers, open_feed
from domainbed.engine.memory import keep_freed_memory
from domainbed.engine.metrics import MetricLog
from domainbed.engine.model import make_algorithm, to_device
from domainbed.engine.setup import set_determinism
from domainbed.engine.steps import fuse_adam, make_steps, should_capture
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams
from domainbed.loading.base import Feed
from domainbed.loading.photo_feed import PhotoFeed
from domainbed.loading.splits import Split
from domainbed.seeding import seed_everything
from domainbed.sweep.grid import Grid

# The first is the reference.
SIDES = {
    "eager": {"engine": "eager", "compile": "off", "precision": "tf32"},
    "fast": {"engine": "auto", "compile": "off", "precision": "tf32"},
    "fast, compiled": {"engine": "auto", "compile": "on", "precision": "tf32"},
    "fast, compiled, bf16": {"engine": "auto", "compile": "on", "precision": "bf16"},
}
WARM_UP = 4  # updates of each phase: three until it is captured, and one replay
UNLIMITED = 10**9
# Limits of the difference relative to the change of the weights in the warm-up. Adam's first steps are equally long for
# gradients that consist of rounding errors, so that some weights diverge, most of them with different kernels. A replay
# that misses an update or reads an old batch differs by more.
LIMITS = {"off": 0.05, "on": 0.2}  # by --compile
BF16_LIMIT = 0.1  # relative difference of the mean loss in the warm-up
# Overrides with which an algorithm starts in the phase of most updates, and learns.
STARTED = {
    "eqrm_burnin_iters": 0.0,
    "ib_penalty_anneal_iters": 0,
    "irm_penalty_anneal_iters": 0,
    "iters": 0,
    "limit_meta_test": True,
    "linear_steps": 0,
    "rdm_penalty_anneal_iters": 0,
}
# Passes through the featurizer, forward and backward, relative to ERM's; a forward pass is a third. Adversarial turns
# are averaged. ARM's context network depends on the size of the images.
FORWARD = 1 / 3
COSTS = dict.fromkeys(ALGORITHMS.builtin_names, 1.0) | {
    "TRM": 1.2,
    "SagNet": 3.0,
    "SelfReg": 1.1,
    "Transfer": 2 + FORWARD,
    "ADRMX": (2 * 2 * FORWARD + 2) / 3,
    "IGA": 3.0,
    "SAM": 2.0,
    "SAGM": 2.0,
    "MIRO": 1 + FORWARD,
}
TOLERANCE = 1.2  # of the measured cost, relative to the one above

Step = tuple[list[Minibatch], list[torch.Tensor] | None]
Block = dict[str, Callable[[], float]]  # measures the milliseconds per update of each side
Data = tuple[MultipleDomainDataset, Sequence[Split], Feed]


class Cost(NamedTuple):
    """The cost of an update.

    Attributes:
        milliseconds: on each side.
        ratios: to ERM's time on each side, measured in the same rounds; empty if ERM is not measured.
        megabytes: on the eager side.
    """

    milliseconds: dict[str, float]
    ratios: dict[str, float]
    megabytes: float


class Side:
    """An algorithm and one way to run its updates.

    Attributes:
        change: the change of the weights in the warm-up, [parameters].
        loss: the mean loss in the warm-up.
    """

    def __init__(self, config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], feed: Feed) -> None:
        device = timing.device()
        hparams = config.resolved_hparams()
        seed_everything(config.seed)
        self._algorithm = to_device(make_algorithm(config, hparams, dataset), config, device)
        fuse_adam(self._algorithm, device)
        self._algorithm.train()
        self._initial = self._weights()
        self._steps = make_steps(self._algorithm, device, should_capture(config.engine, device))
        self._batches: Iterator[Step] = Batches(config, hparams, dataset, splits, feed).steps(0, UNLIMITED)
        # Batches that workers have prepared while other sides were timed must not count.
        self._ahead = 2 * num_loader_workers(config.loader_workers, device) if isinstance(feed, PhotoFeed) else 0

    def _weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten().double() for p in self._algorithm.parameters()])

    def warm_up(self, batches: Sequence[Step]) -> None:
        seed_everything(0)
        metrics = [{name: float(value) for name, value in self._steps.update(*step).items()} for step in batches]
        # Some algorithms name the parts of their loss, or have one in some updates only.
        losses = [m["loss"] for m in metrics if "loss" in m] or [sum(m.values()) for m in metrics]
        self.change = self._weights() - self._initial
        self.loss = statistics.mean(losses)

    def memory(self, batches: Sequence[Step]) -> float:
        """Return the megabytes of the state, and of what an update allocates at most."""
        state = tree_leaves(self._algorithm.training_state())
        n_bytes = sum(value.nbytes for value in state if isinstance(value, torch.Tensor))

        def work() -> None:
            for step in batches:
                self._steps.update(*step)

        return (n_bytes + timing.peak_memory(work)) / 1e6

    def with_loader(self, n: int) -> float:
        """Return the milliseconds per update as in a job, including the batch and the metrics."""
        for step in islice(self._batches, self._ahead):
            self._steps.update(*step)
        log = MetricLog(0)

        def work() -> None:
            for step in islice(self._batches, n):
                log.add(self._steps.update(*step))
            log.mean()

        return 1000 * timing.seconds(work) / n

    def on_device(self, batches: Sequence[Step], n: int) -> float:
        """Return the milliseconds per update on batches that are on the device."""

        def work() -> None:
            for step in islice(cycle(batches), n):
                self._steps.update(*step)

        return 1000 * timing.seconds(work) / n


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark step", description=__doc__)
    p.add_argument("--dataset", default="ColoredMNIST", help="dataset; its last environment is the test environment")
    p.add_argument("--data_dir", help="folder that contains the datasets (not required for the digits)")
    p.add_argument(
        "--algorithms",
        nargs="+",
        default=list(DEFAULT_ALGORITHMS),
        metavar="NAME",
        help=f"algorithms, or groups of them: {', '.join(GROUPS)}",
    )
    p.add_argument("--hparams", help="hyperparameters to override, as JSON; by default, penalties are not annealed")
    p.add_argument("--steps", type=int, help="updates per round (default: 200 on a GPU, otherwise 20)")
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
    job_args = {"data_dir": args.data_dir}
    grid, skipped = Grid(datasets=(args.dataset,), algorithms=tuple(args.algorithms), job_args=job_args).expand_groups()
    algorithms = [name for name in grid.algorithms if (args.dataset, name) not in grid.left_out]
    algorithms.sort(key=lambda name: name != "ERM")  # ERM is timed first, and then next to each of the others
    configs = [make_config(algorithm, args.dataset, args.data_dir, args.hparams) for algorithm in algorithms]
    set_determinism(False)  # as in a job
    if timing.device().type == "cpu":
        keep_freed_memory()
    dataset, splits = load_data(configs[0], configs[0].resolved_hparams())
    feed = open_feed(configs[0], dataset, splits, timing.device())
    print(f"{report.headline()}\n{args.dataset}, median of {args.repeats} rounds of {args.steps} updates", flush=True)
    for line in skipped:
        print(line)
    costs: dict[str, Cost] = {}
    erm: Block = {}
    for config in configs:
        costs[config.algorithm], block = measure(config, (dataset, splits, feed), args, report, erm)
        erm = block if config.algorithm == "ERM" else erm
        gc.collect()  # the sides' networks and graphs
        torch.cuda.empty_cache()
    if erm:
        print(f"\n{cost_table(costs, len(dataset) - 1)}")
    return report.finish()


def make_config(algorithm: str, dataset: str, data_dir: str | None, hparams: str | None) -> JobConfig:
    """Return a job that starts in the phase of most updates, with the full penalty and ERM's batch size."""
    last = len(get_dataset_class(dataset).environment_names(data_dir)) - 1
    config = JobConfig(dataset, algorithm, (last,), data_dir=data_dir, hparams=hparams)
    cls = get_algorithm_class(algorithm)
    own = {name: value for name, value in STARTED.items() if name in default_hparams(algorithm, dataset)}
    own |= {cls.ANNEAL_ITERS: 0} if issubclass(cls, PenaltyERM) else {}
    own |= {"tau": 0.5} if algorithm == "SANDMask" else {}  # its mask is 0 everywhere by default
    own["batch_size"] = default_hparams("ERM", dataset)["batch_size"]
    return replace(config, hparams=json.dumps(own | json.loads(config.hparams or "{}")))


def measure(
    config: JobConfig, data: Data, args: argparse.Namespace, report: timing.Report, erm: Block
) -> tuple[Cost, Block]:
    """Check and time the sides of one algorithm, and print the results.

    Args:
        erm: measures ERM's updates on the device, in the same rounds; empty to measure the algorithm alone.

    Returns:
        The cost of an update, and what measures it on the device.
    """
    hparams = config.resolved_hparams()
    # DANN alternates; ERM++ trains its head in the first update.
    warm_up = WARM_UP * (1 + hparams.get("d_steps_per_g_step", 0)) + ("linear_steps" in hparams)
    batches = list(Batches(config, hparams, *data).steps(0, warm_up))
    sides = {name: Side(replace(config, **SIDES[name]), *data) for name in args.sides}
    for side in sides.values():
        side.warm_up(batches)
    print()
    check(config.algorithm, sides, report)
    megabytes = sides["eager"].memory(batches)
    images = sum(len(y) for _, y in batches[0][0])
    blocks: dict[str, Block] = {
        "with the loader": {name: partial(side.with_loader, args.steps) for name, side in sides.items()},
        "on the device": {name: partial(side.on_device, batches, args.steps) for name, side in sides.items()},
    }
    for block_name, block in blocks.items():
        what = f"{config.algorithm}, {block_name}"
        references = {f"ERM, {name}": work for name, work in erm.items() if block_name == "on the device"}
        all_samples = timing.interleaved({**block, **references}, args.repeats)
        samples = {name: all_samples[name] for name in block}
        rates = {name: 1000 * images / statistics.median(values) for name, values in samples.items()}
        memory = dict.fromkeys(sides, megabytes)
        report.record(what, "ms/step", samples, images_per_second=rates, eager_megabytes=memory)
        column = {name: f"{rate:,.0f}" for name, rate in rates.items()}
        print(timing.table(what, "ms/step", samples, **{"images/s": column}), flush=True)
    medians = {name: statistics.median(values) for name, values in all_samples.items()}
    ratios = {name: medians[name] / medians[f"ERM, {name}"] for name in erm}
    return Cost({name: medians[name] for name in samples}, ratios, megabytes), block


def expected_cost(algorithm: str, num_domains: int) -> float:
    """Return the cost of an update relative to ERM's by its number of passes; NaN if unknown."""
    if algorithm == "MLDG":
        n_meta_test = min(2, num_domains - 1)
        return 2 * (num_domains - n_meta_test) / num_domains
    return math.nan if algorithm == "ARM" else COSTS.get(algorithm, math.nan)


def cost_table(costs: Mapping[str, Cost], num_domains: int) -> str:
    """Return a table of the cost of an update on the device, relative to ERM's.

    Times above the expected ones by more than the tolerance are marked with "!".
    """
    erm = costs["ERM"]
    rows = []
    for algorithm, cost in costs.items():
        expected = expected_cost(algorithm, num_domains)
        row = [algorithm, "-" if math.isnan(expected) else f"{expected:.2f}"]
        for side, milliseconds in cost.milliseconds.items():
            ratio = cost.ratios.get(side, 1.0)  # ERM itself has none
            row += [timing.format_number(milliseconds), f"{ratio:.2f}{'!' if ratio > TOLERANCE * expected else ''}"]
        rows.append([*row, f"{cost.megabytes:,.1f}", f"{cost.megabytes / erm.megabytes:.2f}"])
    columns = [column for side in erm.milliseconds for column in (f"{side}, ms", "x ERM")]
    headers = ["on the device", "expected", *columns, "eager, MB", "x ERM"]
    note = f"!: more than {TOLERANCE} times the expected cost. MB: state, and the peak of what an update allocates."
    table = tabulate(rows, headers, colalign=["left"] + ["right"] * (len(headers) - 1), disable_numparse=True)
    return f"{table}\n{note}"


def check(algorithm: str, sides: Mapping[str, Side], report: timing.Report) -> None:
    """Compare the results of the warm-up with those of the first side."""
    reference, *others = sides.values()
    for name, side in zip(list(sides)[1:], others, strict=True):
        if SIDES[name]["precision"] == "bf16":
            difference = abs(side.loss - reference.loss) / abs(reference.loss)
            report.check(f"{algorithm}'s loss, relative difference", name, difference, BF16_LIMIT)
        else:
            difference = float((side.change - reference.change).norm() / reference.change.norm())
            limit = LIMITS[SIDES[name]["compile"]]
            report.check(f"{algorithm}'s weights, difference relative to their change", name, difference, limit)


if __name__ == "__main__":
    cli.run(main)
