#!/usr/bin/env python3
"""Measure jobs with a frozen backbone, from a single update to a whole job, compared with a job from images.

The first test environment of the dataset is its first one. Features that are not in --cache are extracted first.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing

from domainbed import cli
from domainbed.algorithms.base import Minibatches, concatenate
from domainbed.engine.config import JobConfig
from domainbed.engine.data import evaluation_requests
from domainbed.engine.evaluate import split_means
from domainbed.engine.setup import Setup, set_up
from domainbed.engine.steps import make_steps
from domainbed.engine.train import train

LINEAR, MLP, BY_HAND, IMAGES = "linear probe", "MLP", "linear probe by hand", "from images"
HPARAMS = {LINEAR: {"frozen": True, "linear_probe": True}, MLP: {"frozen": True}, IMAGES: {}}
BLOCK = 100  # updates per measurement
IMAGE_UPDATES = 2  # of a job from images, per measurement
GPU_IMAGE_UPDATES = 100
LIMIT = 1e-4  # maximum difference between weights after BLOCK updates, relative to the largest


class LinearProbe:
    """A linear layer, the cross-entropy, its gradients, and Adam, without autograd or an optimizer."""

    def __init__(self, setup: Setup) -> None:
        layer = setup.algorithm.get_submodule("classifier")
        self.parameters = [p.detach().clone() for p in layer.parameters()]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.lr = setup.algorithm.hparams["lr"]
        self.step = 0

    @torch.no_grad()
    def update(self, minibatches: Minibatches) -> None:
        x, y = concatenate(minibatches)
        weight, bias = self.parameters
        error = torch.addmm(bias, x, weight.T).softmax(1)
        error[torch.arange(len(y)), y] -= 1
        error /= len(y)
        self.step += 1
        lr = self.lr / (1 - 0.9**self.step)
        for p, gradient, (m, v) in zip(self.parameters, (error.T @ x, error.sum(0)), self.moments, strict=True):
            m.lerp_(gradient, 0.1)
            v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            p.addcdiv_(m, (v / (1 - 0.999**self.step)).sqrt_().add_(1e-8), value=-lr)


def make_configs(args: argparse.Namespace) -> dict[str, JobConfig]:
    """Return the job of each side."""
    return {
        side: JobConfig(
            args.dataset,
            "ERM",
            (0,),
            hparams=json.dumps({"backbone": args.backbone, **hparams}),
            data_dir=args.data_dir,
            cache=args.cache if side != IMAGES else None,
            weights_dir=args.weights_dir,
            steps=args.steps,
            skip_model_save=True,
        )
        for side, hparams in HPARAMS.items()
    }


def updates_of(setup: Setup, n: int) -> Callable[[], float]:
    """Return a function that runs n updates, as in a job, and returns the milliseconds per update."""
    steps = make_steps(setup.algorithm, setup.device, setup.is_captured)
    start = 0

    def run() -> None:
        nonlocal start
        for minibatches, unlabeled in setup.batches.steps(start, start + n):
            steps.update(minibatches, unlabeled)
        start += n

    return lambda: 1000 * timing.seconds(run) / n


def updates_by_hand(setup: Setup, probe: LinearProbe) -> Callable[[], float]:
    """Return a function that runs the updates of `LinearProbe` on batches in memory, in milliseconds per update."""
    batches = [minibatches for minibatches, _ in setup.batches.steps(0, BLOCK)]

    def run() -> None:
        for minibatches in batches:
            probe.update(minibatches)

    return lambda: 1000 * timing.seconds(run) / BLOCK


def check_updates(setup: Setup, report: timing.Report) -> None:
    """Compare the weights after BLOCK updates with those of `LinearProbe`."""
    probe = LinearProbe(setup)
    updates_by_hand(setup, probe)()
    updates_of(setup, BLOCK)()
    weight = setup.algorithm.get_submodule("classifier").get_parameter("weight").detach()
    difference = (weight - probe.parameters[0]).abs().max() / weight.abs().max()
    report.check(f"weights after {BLOCK} updates", LINEAR, difference.item(), LIMIT)


def evaluation_of(config: JobConfig, setup: Setup) -> float:
    """Return the time of the evaluation of all splits, in milliseconds."""
    requests = list(evaluation_requests(config, setup.dataset, setup.splits, 0, setup.feed.batch_size))
    return 1000 * timing.seconds(lambda: split_means(setup.algorithm, setup.feed, requests))


def job_of(config: JobConfig) -> float:
    """Return the time of a whole job in this process, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return timing.seconds(lambda: train(replace(config, output_dir=f"{folder}/job")))


def estimate_job(config: JobConfig, setup: Setup, update: Callable[[], float]) -> float:
    """Return an estimate of the time of a job from images, in seconds, from some updates and predictions."""
    n_images = sum(len(environment) for environment in setup.dataset)
    requests = list(evaluation_requests(config, setup.dataset, setup.splits, 0, setup.feed.batch_size))[:2]
    n_timed = sum(len(request.indices) for _, request in requests)
    seconds = timing.seconds(lambda: split_means(setup.algorithm, setup.feed, requests))
    n_evaluations = -(-(config.steps - 1) // config.checkpoint_freq) + 1
    return config.steps * update() / 1000 + n_evaluations * n_images * seconds / n_timed


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark features", description=__doc__, formatter_class=cli.Formatter)
    p.add_argument("--dataset", default="PACS", help="dataset of photographs")
    p.add_argument("--data_dir", required=True, help="folder that contains the dataset")
    p.add_argument("--backbone", default="efficientnet_lite0", help="the backbone to freeze")
    p.add_argument("--weights_dir", help="folder of its weights, as for train")
    p.add_argument("--cache", help="folder of the features, as for train")
    p.add_argument("--steps", type=int, default=5001, help="number of updates of a job")
    p.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    timing.add_options(p, repeats=3)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    report = timing.Report(args)
    configs = make_configs(args)
    setups = {side: set_up(config, lambda: False) for side, config in configs.items()}
    print(f"{report.headline()}\nERM on {args.dataset}, frozen {args.backbone}, median of {args.repeats} rounds\n")
    check_updates(setups[LINEAR], report)

    # On a GPU, the first updates are captured, and each call starts a process that reads images.
    is_gpu = setups[IMAGES].device.type == "cuda"
    n_image_updates = GPU_IMAGE_UPDATES if is_gpu else IMAGE_UPDATES
    from_images = updates_of(setups[IMAGES], n_image_updates)
    updates = {
        BY_HAND: updates_by_hand(setups[LINEAR], LinearProbe(setups[LINEAR])),
        LINEAR: updates_of(setups[LINEAR], BLOCK),
        MLP: updates_of(setups[MLP], BLOCK),
        IMAGES: from_images,
    }
    frozen = (LINEAR, MLP)
    evaluations = {side: partial(evaluation_of, configs[side], setups[side]) for side in frozen}
    jobs = {side: partial(job_of, configs[side]) for side in frozen}
    jobs[IMAGES] = partial(estimate_job, configs[IMAGES], setups[IMAGES], from_images)
    for what, unit, sides in (("update", "ms", updates), ("evaluation", "ms", evaluations), ("job", "s", jobs)):
        samples = timing.interleaved(sides, args.repeats, warm_up=what != "job")
        report.record(what, unit, samples)
        print(f"\n{timing.table(what, unit, samples)}", flush=True)
    print(f"({IMAGES}: estimated from {n_image_updates} updates and the prediction of two batches)")
    return report.finish()


if __name__ == "__main__":
    cli.run(main)
