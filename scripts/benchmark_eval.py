#!/usr/bin/env python3
"""The evaluation of every image of a dataset: a plain loop over DataLoaders beside a job's own, in one run.

For datasets whose images are arrays (the MNISTs and the digits). ERM's network, trained for a moment, is evaluated by
all sides, whose accuracies are held against those of the plain loop.
"""

import copy
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, installed or not

import timing
from benchmark_job import accuracy

from domainbed import cli
from domainbed.algorithms.base import Algorithm
from domainbed.datasets import ArrayEnvironment, MultipleDomainDataset, get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, evaluation_requests, load_data
from domainbed.engine.evaluate import accuracies
from domainbed.engine.feed import open_feed
from domainbed.engine.memory import keep_freed_memory
from domainbed.engine.model import make_algorithm, to_device
from domainbed.engine.train import set_determinism
from domainbed.errors import UsageError
from domainbed.loading.base import Feed
from domainbed.loading.splits import Split
from domainbed.seeding import seed_everything

# The first is the reference.
SIDES = {
    "plain": {},
    "eager": {"compile": "off", "precision": "tf32"},
    "compiled": {"compile": "on", "precision": "tf32"},
    "compiled, bf16": {"compile": "on", "precision": "bf16"},
}
UPDATES = 30  # before the network is evaluated: at random it might be as good as any other
PLAIN_BATCH = 64

Accuracies = dict[str, float]


def evaluated_plainly(network: Algorithm, loaders: Mapping[str, DataLoader], device: torch.device) -> Accuracies:
    """The accuracy on each split, as it is usually computed."""
    network.eval()
    return {name: accuracy(network.predict, loader, device) for name, loader in loaders.items()}


def plain_loaders(dataset: MultipleDomainDataset, splits: Sequence[Split], workers: int) -> dict[str, DataLoader]:
    """One for each split, by its name in records, over images that are floats in [0, 1] already."""
    loaders = {}
    for env, (environment, split) in enumerate(zip(dataset, splits, strict=True)):
        images = torch.from_numpy(environment.images).float()
        tensors = TensorDataset(
            images / 255 if environment.images.dtype == "uint8" else images, torch.from_numpy(environment.labels)
        )
        for part, indices in split.parts().items():
            loaders[f"env{env}_{part}_acc"] = DataLoader(Subset(tensors, indices), PLAIN_BATCH, num_workers=workers)
    return loaders


def trained(config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], feed: Feed) -> Algorithm:
    """The network that all sides evaluate."""
    seed_everything(config.seed)
    algorithm = to_device(make_algorithm(config, dataset), config, timing.device()).train()
    for minibatches, _ in Batches(config, dataset, splits, feed).steps(0, UPDATES):
        algorithm.update(minibatches)
    return algorithm


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark eval", description=__doc__)
    p.add_argument("--dataset", default="ColoredMNIST", help="of arrays")
    p.add_argument("--data_dir", help="folder that holds the datasets (the digits need none)")
    p.add_argument("--workers", type=int, default=2, help="processes of the plain loop's DataLoaders")
    timing.add_options(p, repeats=5, sides=list(SIDES))
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.sides = [side for side in SIDES if side == "plain" or side in args.sides]
    timing.check_workers(args.workers)
    report = timing.Report(args)
    device = timing.device()
    last = len(get_dataset_class(args.dataset).environment_names(args.data_dir)) - 1
    config = JobConfig(args.dataset, "ERM", (last,), data_dir=args.data_dir, compile="off")
    set_determinism(False)  # as in a job
    if timing.device().type == "cpu":
        keep_freed_memory()
    dataset, splits = load_data(config)
    if not all(isinstance(environment, ArrayEnvironment) for environment in dataset):
        raise UsageError(f"--dataset {args.dataset}: its images are files; the plain loop here is for arrays")
    feed = open_feed(config, dataset, splits, device)
    network = trained(config, dataset, splits, feed)

    def as_a_job(side: str) -> Callable[[], Accuracies]:
        of_side = replace(config, **SIDES[side])
        algorithm = to_device(make_algorithm(of_side, dataset), of_side, device)
        algorithm.load_state_dict(network.state_dict())
        return lambda: accuracies(algorithm, feed, evaluation_requests(of_side, dataset, splits, 0, feed.batch_size))

    contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    loaders = plain_loaders(dataset, splits, args.workers)
    evaluations = {
        side: partial(evaluated_plainly, contiguous, loaders, device) if side == "plain" else as_a_job(side)
        for side in args.sides
    }
    sizes = {name: len(loader.dataset) for name, loader in loaders.items()}
    n = sum(sizes.values())
    print(f"{report.headline()}\n{n:,} images of {args.dataset}, median of {args.repeats} rounds\n", flush=True)
    check({side: evaluate() for side, evaluate in evaluations.items()}, sizes, report)
    samples = timing.interleaved(
        {side: partial(timing.seconds, evaluate) for side, evaluate in evaluations.items()}, args.repeats
    )
    rates = {side: n / statistics.median(values) for side, values in samples.items()}
    report.record("evaluation", "s", samples, images_per_second=rates)
    told = {side: f"{rate:,.0f}" for side, rate in rates.items()}
    print("\n" + timing.table("evaluation", "s", samples, **{"images/s": told}))
    return report.end()


def check(found: Mapping[str, Accuracies], sizes: Mapping[str, int], report: timing.Report) -> None:
    """Hold the accuracies against the plain loop's.

    Rounding may turn a few images (3 of each split, and one in a thousand), bfloat16 one in a hundred.
    """
    reference, *others = found
    for side in others:
        part = 0.01 if SIDES[side]["precision"] == "bf16" else 0.001
        turned = {name: abs(found[side][name] - found[reference][name]) * n for name, n in sizes.items()}
        name = max(sizes, key=lambda name: turned[name] / (3 + part * sizes[name]))
        report.check(f"images by which {name} differs", side, turned[name], 3 + part * sizes[name])


if __name__ == "__main__":
    cli.run(main)
