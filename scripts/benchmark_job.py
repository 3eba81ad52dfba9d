#!/usr/bin/env python3
"""A whole job of ERM beside the plain loop that one would write for it, each a process of its own, in one run.

    plain           the loop in this file
    default         python -m domainbed.scripts.train
    splits          the same with --eval splits
    bf16            as default, with --precision bf16
    bf16, compiled  and with --compile on
    warm            as default, in a process that has done such a job before (as a launcher's workers have)

Every round is another trial (split, environments, initial weights), the same for all sides. They must come to about the
same accuracies on what is held out of the training environments.
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

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from a checkout, installed or not

import timing

from domainbed import cli
from domainbed.datasets import get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import last_record

SIDES = ("plain", "default", "splits", "bf16", "bf16, compiled", "warm")
OPTIONS = {
    "default": [],
    "splits": ["--eval", "splits"],
    "bf16": ["--precision", "bf16"],
    "bf16, compiled": ["--precision", "bf16", "--compile", "on"],
}
AS_A_SIDE = "side"  # the first word of the command lines that this file has for itself
WIDTHS = {(28, 28): (64, 128, 128, 128), (8, 8): (16, 32, 32)}  # of the network for images of this size
LIMIT = 0.05  # how far apart the accuracies on the training environments may be, between runs that went well


# The plain loop.


def plain(config: JobConfig, workers: int) -> dict[str, float]:
    """Train ERM. Returns the accuracy on each split after the last step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset, splits = load_data(config)
    hparams = config.resolved_hparams()
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
    kept = workers > 0  # from evaluation to evaluation
    eval_loaders = {
        f"env{i}_{part}_acc": DataLoader(Subset(environment, indices), 64, num_workers=workers, persistent_workers=kept)
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
    """The same layers as `networks.SmallCNN` and its classifier."""
    channels, *size = input_shape
    layers: list[nn.Module] = []
    for i, width in enumerate(WIDTHS[tuple(size)]):
        stride = 2 if i == 1 else 1
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(8, width)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


# What runs it and the others.


def warm(config: JobConfig) -> float:
    """The seconds of a job in a process that has done one before, of another trial."""
    train(replace(config, output_dir=f"{config.output_dir}/first", trial_seed=config.trial_seed + 1))
    return timing.seconds(lambda: train(config))


def run_side(words: Sequence[str]) -> None:
    """Be the process of a side of this file, and leave what it found in the job's folder."""
    name, as_json = words
    given = json.loads(as_json)
    config = JobConfig.of_args(given["config"])
    found = plain(config, given["workers"]) if name == "plain" else warm(config)
    Path(config.output_dir, "found.json").write_text(json.dumps(found))


class Side:
    """One way to do the job: each call is another trial.

    Attributes:
        accuracies: of every trial, by the name of the split.
    """

    def __init__(self, name: str, config: JobConfig, workers: int) -> None:
        self.accuracies: list[dict[str, float]] = []
        self._name, self._config, self._workers = name, config, workers

    def __call__(self) -> float:
        trial = len(self.accuracies)
        with tempfile.TemporaryDirectory() as folder:
            config = replace(self._config, trial_seed=trial, seed=trial, output_dir=folder, skip_model_save=True)
            began = time.perf_counter()
            run(self._command(config))
            seconds = time.perf_counter() - began
            found = Path(folder, "found.json")
            if self._name == "warm":
                seconds = json.loads(found.read_text())
            result = json.loads(found.read_text()) if self._name == "plain" else last_record(Path(folder))
        self.accuracies.append({key: value for key, value in result.items() if key.endswith("_acc")})
        print(f"trial {trial}, {self._name}: {seconds:.1f} s", flush=True)
        return seconds

    def _command(self, config: JobConfig) -> list[str]:
        if self._name not in OPTIONS:
            given = {"config": config.args(), "workers": self._workers}
            return [sys.executable, __file__, AS_A_SIDE, self._name, json.dumps(given)]
        named = ("dataset", "algorithm", "steps", "checkpoint_freq", "trial_seed", "seed", "output_dir")
        words = [word for name in named for word in (f"--{name}", str(getattr(config, name)))]
        words += ["--data_dir", config.data_dir] if config.data_dir else []
        words += ["--test_envs", *map(str, config.test_envs), "--skip_model_save", *OPTIONS[self._name]]
        return [sys.executable, "-m", "domainbed.scripts.train", *words]


def run(command: Sequence[str]) -> None:
    """Run a command and see that it ends well."""
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stderr}")


def parser() -> cli.Parser:
    p = cli.Parser(prog="scripts/benchmark job", description=__doc__, formatter_class=Formatter)
    p.add_argument("--dataset", default="ColoredMNIST", help="of arrays; its last environment is left out")
    p.add_argument("--data_dir", help="folder that holds the datasets (the digits need none)")
    p.add_argument("--steps", type=int, default=300, help="updates of each job")
    p.add_argument("--checkpoint_freq", type=int, default=150, help="evaluate every so many updates, and at the end")
    p.add_argument("--workers", type=int, default=2, help="processes of each of the plain loop's DataLoaders")
    timing.add_options(p, repeats=1, sides=list(SIDES))
    return p


class Formatter(cli.Formatter, argparse.RawDescriptionHelpFormatter):
    """As of all commands, but the description has its lines as they are."""


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
        raise UsageError(f"--dataset {args.dataset}: the plain loop here is for the MNISTs and the digits")
    dataset.prepare(args.data_dir)
    print(
        f"{report.headline()}\nERM on {args.dataset}, {args.steps} steps, median of {args.repeats} trials", flush=True
    )
    sides = {name: Side(name, config, args.workers) for name in args.sides}
    samples = timing.interleaved(sides, args.repeats, warm_up=False)  # a process's start counts
    accuracies = {name: side.accuracies for name, side in sides.items()}
    report.record("job", "s", samples, accuracies=accuracies)
    columns = {
        f"[{env}]" if i in config.test_envs else env: {
            name: spread([trial[f"env{i}_out_acc"] for trial in trials]) for name, trials in accuracies.items()
        }
        for i, env in enumerate(names)
    }
    print(f"\n{timing.table('job', 's', samples, **columns)}")
    print("(accuracies in percent on what is held out, mean ± standard deviation over trials; [test environment])\n")
    check(accuracies, [i for i in range(len(names)) if i not in config.test_envs], report)
    return report.end()


def spread(accuracies: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in percent."""
    mean = f"{100 * statistics.mean(accuracies):.1f}"
    return f"{mean} ± {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else mean


def check(
    accuracies: Mapping[str, Sequence[Mapping[str, float]]], trained_on: Sequence[int], report: timing.Report
) -> None:
    """Hold the mean accuracy on what is held out of the training environments against that of the first side."""
    means = {
        name: statistics.mean(trial[f"env{i}_out_acc"] for trial in trials for i in trained_on)
        for name, trials in accuracies.items()
    }
    first, *others = means
    for name in others:
        report.check("accuracy on the training environments, difference", name, abs(means[name] - means[first]), LIMIT)


if __name__ == "__main__":
    if sys.argv[1:2] == [AS_A_SIDE]:
        run_side(sys.argv[2:])
    else:
        cli.run(main)
