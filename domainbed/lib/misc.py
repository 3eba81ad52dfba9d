"""Helpers of algorithms written for DomainBed: `from domainbed.lib.misc import random_pairs_of_minibatches`."""

import operator
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from numbers import Number
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import nn
from torch.utils.data import Dataset, Subset

from domainbed.algorithms.base import Minibatch, Minibatches, predicted_classes
from domainbed.lib.averages import ErmPlusPlusMovingAvg, MovingAverage
from domainbed.lib.densities import (
    EPS,
    Distribution1D,
    GaussianKernel,
    Kernel,
    KernelDensityEstimator,
    Nonparametric,
    continuous_bisect_fun_left,
    estimate_bandwidth,
)
from domainbed.lib.losses import LARS, SupConLossLambda
from domainbed.seeding import seed_hash

Pair = tuple[Minibatch, Minibatch]


def random_pairs_of_minibatches(minibatches: Minibatches) -> list[Pair]:
    """Return each domain's batch with that of its successor in a random cyclic order, cut to the same length."""
    order = torch.randperm(len(minibatches)).tolist()
    return [_cut_to_same_length(minibatches[i], minibatches[j]) for i, j in zip(order, np.roll(order, -1), strict=True)]


def split_meta_train_test(minibatches: Minibatches, num_meta_test: int = 1) -> list[Pair]:
    """Return each meta-training batch with a meta-test batch, cut to the same length; domains are split at random."""
    order = torch.randperm(len(minibatches)).tolist()
    n_train = len(order) - num_meta_test
    pairs = zip(order[:n_train], cycle(order[-num_meta_test:]), strict=False)
    return [_cut_to_same_length(minibatches[i], minibatches[j]) for i, j in pairs]


def _cut_to_same_length(first: Minibatch, second: Minibatch) -> Pair:
    n = min(len(first[0]), len(second[0]))
    return (first[0][:n], first[1][:n]), (second[0][:n], second[1][:n])


class ParamDict(OrderedDict):
    """A state dict with elementwise arithmetic: `start + 0.5 * (end - start)`."""

    def _apply(self, operation: Callable[[Any, Any], Any], other: Any) -> "ParamDict":
        if isinstance(other, Mapping):
            return ParamDict((name, operation(value, other[name])) for name, value in self.items())
        if isinstance(other, Number):
            return ParamDict((name, operation(value, other)) for name, value in self.items())
        return NotImplemented

    def __add__(self, other: Any) -> "ParamDict":
        return self._apply(operator.add, other)

    def __sub__(self, other: Any) -> "ParamDict":
        return self._apply(operator.sub, other)

    def __mul__(self, other: Any) -> "ParamDict":
        return self._apply(operator.mul, other)

    def __truediv__(self, other: Any) -> "ParamDict":
        return self._apply(operator.truediv, other)

    def __neg__(self) -> "ParamDict":
        return self * -1

    __radd__ = __add__
    __rmul__ = __mul__


def l2_between_dicts(dict_1: Mapping[str, torch.Tensor], dict_2: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean squared difference between two dicts of tensors with the same keys, over all elements."""
    if dict_1.keys() != dict_2.keys():
        raise ValueError(f"the keys differ: {', '.join(dict_1)} and {', '.join(dict_2)}")
    names = sorted(dict_1)
    first, second = (torch.cat([values[name].flatten() for name in names]) for values in (dict_1, dict_2))
    return (first - second).square().mean()


def distance(h1: nn.Module, h2: nn.Module) -> torch.Tensor:
    """Return the Euclidean distance between the states of two networks."""
    second = h2.state_dict()
    return torch.stack([(value - second[name]).square().sum() for name, value in h1.state_dict().items()]).sum().sqrt()


def proj(delta: float, adv_h: nn.Module, h: nn.Module) -> nn.Module:
    """Project the parameters of `adv_h` into the ball of radius `delta` around those of `h`, and return `adv_h`."""
    if (dist := distance(adv_h, h)) > delta:
        with torch.no_grad():
            for center, moved in zip(h.parameters(), adv_h.parameters(), strict=True):
                moved.copy_(center + (delta / dist) * (moved - center))
    return adv_h


def make_weights_for_balanced_classes(dataset: Iterable[tuple[Any, Any]]) -> torch.Tensor:
    """Return sampling weights [n] by which all classes are equally likely, and all images of a class."""
    labels = [int(y) for _, y in dataset]
    counts = Counter(labels)
    return torch.tensor([1 / (counts[y] * len(counts)) for y in labels])


def split_dataset(dataset: Dataset, n: int, seed: int = 0) -> tuple[Subset, Subset]:
    """Split a dataset at random into one with `n` items and one with the others."""
    indices = list(range(len(dataset)))  # type: ignore[arg-type]
    if n > len(indices):
        raise ValueError(f"cannot take {n} of {len(indices)} items")
    RandomState(seed).shuffle(indices)
    return Subset(dataset, indices[:n]), Subset(dataset, indices[n:])


@torch.no_grad()
def accuracy(
    network: Any, loader: Iterable[Minibatch], weights: torch.Tensor | None, device: str | torch.device
) -> float:
    """Return the accuracy of `network.predict` over the batches of a loader, with optional weights of the images.

    The network is in training mode afterwards.
    """
    network.eval()
    correct = total = 0.0
    start = 0
    for x, y in loader:
        is_correct = (predicted_classes(network.predict(x.to(device))) == y.to(device)).double().cpu()
        batch_weights = torch.ones(len(y)) if weights is None else weights[start : start + len(y)]
        start += len(y)
        correct += float((is_correct * batch_weights).sum())
        total += float(batch_weights.sum())
    network.train()
    return correct / total


def print_separator() -> None:
    """Print a line of 80 equals signs."""
    print("=" * 80)


def print_row(row: Sequence[Any], colwidth: int = 10, latex: bool = False) -> None:
    """Print values in columns of the same width, or as a row of a LaTeX table."""
    texts = [f"{x:.10f}" if isinstance(x, float | np.floating) else str(x) for x in row]
    cells = [text.ljust(colwidth)[:colwidth] for text in texts]
    print((" & " if latex else "  ").join(cells), "\\\\" if latex else "")


class Tee:
    """A stream that writes to standard output and to a file: `sys.stdout = Tee("out.txt")`."""

    def __init__(self, fname: str, mode: str = "a") -> None:
        self.stdout = sys.stdout
        self.file = open(fname, mode)  # noqa: SIM115  open as long as the stream

    def write(self, message: str) -> None:
        self.stdout.write(message)
        self.file.write(message)
        self.flush()

    def flush(self) -> None:
        self.stdout.flush()
        self.file.flush()


__all__ = [
    "EPS",
    "LARS",
    "Distribution1D",
    "ErmPlusPlusMovingAvg",
    "GaussianKernel",
    "Kernel",
    "KernelDensityEstimator",
    "MovingAverage",
    "Nonparametric",
    "ParamDict",
    "SupConLossLambda",
    "Tee",
    "accuracy",
    "continuous_bisect_fun_left",
    "distance",
    "estimate_bandwidth",
    "l2_between_dicts",
    "make_weights_for_balanced_classes",
    "print_row",
    "print_separator",
    "proj",
    "random_pairs_of_minibatches",
    "seed_hash",
    "split_dataset",
    "split_meta_train_test",
]
