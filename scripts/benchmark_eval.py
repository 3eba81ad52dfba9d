#!/usr/bin/env python3
"""Measure the evaluation of every image of a dataset, as in a job and with a plain loop over DataLoaders.

Supports datasets of arrays (the MNISTs and the digits). All sides evaluate the same briefly trained network of ERM, and
their accuracies are compared with those of the plain loop.
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing
from benchmark_job import accuracy

from domainbed import cli
from domainbed.algorithms.base import Algorithm
from domainbed.datasets import ArrayEnvironment, MultipleDomainDataset, get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, evaluation_requests, load_data
from domainbed.engine.evaluate import split_means
from domainbed.engine.feed import open_feed
from domainbed.engine.memory import keep_freed_memory
from domainbed.engine.model import make_algorithm, to_device
from domainbed.engine.setup import set_determinism
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
UPDATES = 30  # training before the evaluation: any network may be as accurate as a random one
PLAIN_BATCH = 64

Accuracies = dict[str, float]


def evaluate_plainly(network: Algorithm, loaders: Mapping[str, DataLoader], device: torch.device) -> Accuracies:
    """Return the accuracy on each split, computed as usual."""
    network.eval()
    return {name: accuracy(network.predict, loader, device) for name, loader in loaders.items()}


def plain_loaders(dataset: MultipleDomainDataset, splits: Sequence[Split], workers: int) -> dict[str, DataLoader]:
    """Return a loader of float images in [0, 1] for each split, by its name in records."""
    loaders = {}
    for env, (environment, split) in enumerate(zip(dataset, splits, strict=True)):
        images = torch.from_numpy(environment.images).float()
        tensors = TensorDataset(
            images / 255 if environment.images.dtype == "uint8" else images, torch.from_numpy(environment.labels)
        )
        for part, indices in split.parts().items():
            loaders[f"env{env}_{part}_acc"] = DataLoader(Subset(tensors, indices), PLAIN_BATCH, num_workers=workers)
    return loaders


def train_briefly(config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], feed: Feed) -> Algorithm:
    """Return the network that all sides evaluate."""
    hparams = config.resolved_hparams()
    seed_everything(config.seed)
    algorithm = to_device(make_algorithm(config, hparams, dataset), config, timing.device()).train()
    for minibatches, _ in Batches(config, hparams, dataset, splits, feed).steps(0, UPDATES):
        algorithm.update(minibatches)
    return algorithm


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark eval", description=__doc__)
    p.add_argument("--dataset", default="ColoredMNIST", help="dataset of arrays")
    p.add_argument("--data_dir", help="folder that contains the datasets (not required for the digits)")
    p.add_argument("--workers", type=int, default=2, help="number of worker processes per DataLoader of the plain loop")
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
    dataset, splits = load_data(config, config.resolved_hparams())
    if not all(isinstance(environment, ArrayEnvironment) for environment in dataset):
        raise UsageError(f"--dataset {args.dataset}: its images are files, but the plain loop requires arrays")
    feed = open_feed(config, dataset, splits, device)
    network = train_briefly(config, dataset, splits, feed)

    def make_evaluation(side: str) -> Callable[[], Accuracies]:
        side_config = replace(config, **SIDES[side])
        algorithm = to_device(make_algorithm(side_config, side_config.resolved_hparams(), dataset), side_config, device)
        algorithm.load_state_dict(network.state_dict())
        return lambda: split_means(
            algorithm, feed, evaluation_requests(side_config, dataset, splits, 0, feed.batch_size)
        )

    contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    loaders = plain_loaders(dataset, splits, args.workers)
    evaluations = {
        side: partial(evaluate_plainly, contiguous, loaders, device) if side == "plain" else make_evaluation(side)
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
    column = {side: f"{rate:,.0f}" for side, rate in rates.items()}
    print("\n" + timing.table("evaluation", "s", samples, **{"images/s": column}))
    return report.finish()


def check(results: Mapping[str, Accuracies], sizes: Mapping[str, int], report: timing.Report) -> None:
    """Compare the accuracies with those of the plain loop.

    Rounding may change the predictions of a few images (3 per split, and one in a thousand; with bfloat16, one in a
    hundred).
    """
    reference, *others = results
    for side in others:
        fraction = 0.01 if SIDES[side]["precision"] == "bf16" else 0.001
        changed = {name: abs(results[side][name] - results[reference][name]) * n for name, n in sizes.items()}
        name = max(sizes, key=lambda name: changed[name] / (3 + fraction * sizes[name]))
        report.check(f"images that differ in {name}", side, changed[name], 3 + fraction * sizes[name])


if __name__ == "__main__":
    cli.run(main)
