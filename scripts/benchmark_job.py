#!/usr/bin/env python3
"""Compare a whole job of ERM with a plain training loop, each as a process.

    plain           the loop in this file
    default         python -m domainbed.scripts.train
    splits          default with --eval splits
    selection       default with --eval selection
    bf16            default with --precision bf16
    bf16, compiled  default with --precision bf16 --compile on
    warm            default, in a process that has run a job before, as the workers of a launcher have

Each round is a new trial (splits, environments, initial weights), the same for all sides. They must reach about the
same accuracy on the held-out images of the training environments.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, Subset, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # also works if the package is not installed

import timing

from domainbed import cli
from domainbed.datasets import get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.options import to_args
from domainbed.records import last_record

SIDES = ("plain", "default", "splits", "selection", "bf16", "bf16, compiled", "warm")
OPTIONS = {
    "default": [],
    "splits": ["--eval", "splits"],
    "selection": ["--eval", "selection"],
    "bf16": ["--precision", "bf16"],
    "bf16, compiled": ["--precision", "bf16", "--compile", "on"],
}
RUN_SIDE = "side"  # the first argument of the processes that this file starts
WIDTHS = {(28, 28): (64, 128, 128, 128), (8, 8): (16, 32, 32)}  # channels of the network, by image size
LIMIT = 0.05  # maximum difference between the accuracies on the training environments


# The plain loop.


def plain(config: JobConfig, workers: int) -> dict[str, float]:
    """Train ERM, and return the accuracy on each split after the last step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hparams = config.resolved_hparams()
    dataset, splits = load_data(config, hparams)
    batch_size = hparams["batch_size"]
    environments = [
        TensorDataset(torch.from_numpy(e.images).float() / 255, torch.from_numpy(e.labels)) for e in dataset
    ]
    train_loaders = []
    for i, environment in enumerate(environments):
        if i not in config.test_envs:
            images = Subset(environment, splits[i].in_)
            sampler = RandomSampler(images, replacement=True, num_samples=config.steps * batch_size)
            train_loaders.append(DataLoader(images, batch_size, sampler=sampler, num_workers=workers))
    is_persistent = workers > 0  # keep the workers between evaluations
    eval_loaders = {
        f"env{i}_{part}_acc": DataLoader(
            Subset(environment, indices), 64, num_workers=workers, persistent_workers=is_persistent
        )
        for i, environment in enumerate(environments)
        for part, indices in splits[i].parts().items()
    }

    torch.manual_seed(config.seed)
    model = network(dataset.input_shape, dataset.num_classes).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"])
    accuracies = {}
    for step, minibatches in enumerate(zip(*train_loaders, strict=True)):
        x = torch.cat([x for x, _ in minibatches]).to(device)
        y = torch.cat([y for _, y in minibatches]).to(device)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_value = loss.item()

        if step % config.checkpoint_freq == 0 or step == config.steps - 1:
            model.eval()
            accuracies = {name: accuracy(model, loader, device) for name, loader in eval_loaders.items()}
            model.train()
            print(step, loss_value, accuracies)
    return accuracies


@torch.no_grad()
def accuracy(model: Callable[[torch.Tensor], torch.Tensor], loader: DataLoader, device: str | torch.device) -> float:
    correct = total = 0
    for x, y in loader:
        correct += (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
        total += len(y)
    return correct / total


def network(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return the layers of `networks.MNIST_CNN` and its classifier."""
    channels, *size = input_shape
    layers: list[nn.Module] = []
    for i, width in enumerate(WIDTHS[tuple(size)]):
        stride = 2 if i == 1 else 1
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(8, width)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


# Running all sides.


def warm(config: JobConfig) -> float:
    """Return the time of a job in seconds, after a job of another trial in the same process."""
    train(replace(config, output_dir=f"{config.output_dir}/first", trial_seed=config.trial_seed + 1))
    return timing.seconds(lambda: train(config))


def run_side(words: Sequence[str]) -> None:
    """Run a side in this process, and write its result to the job's folder."""
    name, text = words
    arguments = json.loads(text)
    config = JobConfig.from_recorded_args(arguments["config"])
    result = plain(config, arguments["workers"]) if name == "plain" else warm(config)
    Path(config.output_dir, "result.json").write_text(json.dumps(result))


class Side:
    """One way to run the job. Each call runs a new trial and returns its time in seconds.

    Attributes:
        accuracies: the accuracy on each split, for every trial.
    """

    def __init__(self, name: str, config: JobConfig, workers: int) -> None:
        self.accuracies: list[dict[str, float]] = []
        self._name, self._config, self._workers = name, config, workers

    def __call__(self) -> float:
        trial = len(self.accuracies)
        with tempfile.TemporaryDirectory() as folder:
            config = replace(self._config, trial_seed=trial, seed=trial, output_dir=folder, skip_model_save=True)
            start = time.perf_counter()
            run(self._command(config))
            seconds = time.perf_counter() - start
            file = Path(folder, "result.json")
            if self._name == "warm":
                seconds = json.loads(file.read_text())
            result = json.loads(file.read_text()) if self._name == "plain" else last_record(Path(folder))
        self.accuracies.append({key: value for key, value in result.items() if key.endswith("_acc")})
        print(f"trial {trial}, {self._name}: {seconds:.1f} s", flush=True)
        return seconds

    def _command(self, config: JobConfig) -> list[str]:
        if self._name not in OPTIONS:
            arguments = {"config": config.args(), "workers": self._workers}
            return [sys.executable, __file__, RUN_SIDE, self._name, json.dumps(arguments)]
        return [sys.executable, "-m", "domainbed.scripts.train", *to_args(config), *OPTIONS[self._name]]


def run(command: Sequence[str]) -> None:
    """Run a command, and check that it succeeds."""
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)} exited with status {finished.returncode}:\n{finished.stderr}")


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark job", description=__doc__, formatter_class=Formatter)
    p.add_argument(
        "--dataset", default="ColoredMNIST", help="dataset of arrays; its last environment is the test environment"
    )
    p.add_argument("--data_dir", help="folder that contains the datasets (not required for the digits)")
    p.add_argument("--steps", type=int, default=300, help="number of updates")
    p.add_argument("--checkpoint_freq", type=int, default=150, help="number of updates between evaluations")
    p.add_argument("--workers", type=int, default=2, help="number of worker processes per DataLoader of the plain loop")
    timing.add_options(p, repeats=1, sides=list(SIDES))
    return p


class Formatter(cli.Formatter, argparse.RawDescriptionHelpFormatter):
    """The formatter of all commands, except that it keeps the line breaks of the description."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.sides = [side for side in SIDES if side in args.sides]
    timing.check_workers(args.workers)
    report = timing.Report(args)
    dataset = get_dataset_class(args.dataset)
    names = dataset.environment_names(args.data_dir)
    config = JobConfig(
        args.dataset,
        "ERM",
        (len(names) - 1,),
        data_dir=args.data_dir,
        steps=args.steps,
        checkpoint_freq=args.checkpoint_freq,
    )
    if tuple(getattr(dataset, "input_shape", ())[1:]) not in WIDTHS:
        raise UsageError(f"--dataset {args.dataset}: the plain loop only supports the MNISTs and the digits")
    dataset.prepare(args.data_dir)
    print(
        f"{report.headline()}\nERM on {args.dataset}, {args.steps} steps, median of {args.repeats} trials", flush=True
    )
    sides = {name: Side(name, config, args.workers) for name in args.sides}
    samples = timing.interleaved(sides, args.repeats, warm_up=False)  # the start of a process is part of its time
    accuracies = {name: side.accuracies for name, side in sides.items()}
    report.record("job", "s", samples, accuracies=accuracies)
    columns = {
        f"[{env}]" if i in config.test_envs else env: {
            name: spread([trial[f"env{i}_out_acc"] for trial in trials]) for name, trials in accuracies.items()
        }
        for i, env in enumerate(names)
    }
    print(f"\n{timing.table('job', 's', samples, **columns)}")
    print("(held-out accuracy in percent, mean ± standard deviation over trials; [test environment])\n")
    check(accuracies, [i for i in range(len(names)) if i not in config.test_envs], report)
    return report.finish()


def spread(accuracies: Sequence[float]) -> str:
    """Return the mean and, if there are several, the standard deviation in percent."""
    mean = f"{100 * statistics.mean(accuracies):.1f}"
    return f"{mean} ± {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else mean


def check(
    accuracies: Mapping[str, Sequence[Mapping[str, float]]], trained_on: Sequence[int], report: timing.Report
) -> None:
    """Compare the mean held-out accuracy on the training environments with that of the first side."""
    means = {
        name: statistics.mean(trial[f"env{i}_out_acc"] for trial in trials for i in trained_on)
        for name, trials in accuracies.items()
    }
    first, *others = means
    for name in others:
        report.check("accuracy on the training environments, difference", name, abs(means[name] - means[first]), LIMIT)


if __name__ == "__main__":
    if sys.argv[1:2] == [RUN_SIDE]:
        run_side(sys.argv[2:])
    else:
        cli.run(main)
