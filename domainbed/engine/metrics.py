"""The metrics that updates return between two evaluations, and the check that training has not diverged."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import SupportsFloat, TypeAlias

import numpy as np
import torch

from domainbed.algorithms.base import Algorithm
from domainbed.errors import UsageError
from domainbed.records import RECORD_KEYS

SPLIT_ENTRY = re.compile(r"env\d+_((in|out|uda)_acc|out_loss)")  # an entry of a record about a split

# Name -> (step, value) of each update that returned a metric of this name.
MetricHistory: TypeAlias = dict[str, list[tuple[int, torch.Tensor | float]]]


class NonFiniteError(UsageError):
    """Training has diverged: a metric or a weight is infinite or NaN."""

    def __init__(self, step: int, problem: str) -> None:
        super().__init__(
            f"training diverged at step {step}: {problem}; records of earlier steps are kept. Try a lower learning "
            "rate (lr) or, if the algorithm has a penalty, a smaller penalty weight"
        )


class MetricLog:
    """The metrics of successive updates, kept on their device: only reading them synchronizes.

    Args:
        step: the step of the first update whose metrics will be added.
        history: the metrics of earlier updates, as returned by `to_python`.
    """

    def __init__(self, step: int, history: MetricHistory | None = None) -> None:
        self._step = step
        self._history: MetricHistory = history or {}

    def add(self, metrics: Mapping[str, torch.Tensor | float]) -> None:
        """Add the metrics of the next update. Tensors are copied, because an algorithm may overwrite its own."""
        if not isinstance(metrics, Mapping):
            raise TypeError(f"update must return a dict of metrics, not {metrics!r}")
        for name, value in metrics.items():
            if name not in self._history:
                check_name(name)
            # isinstance is slow for protocols such as SupportsFloat.
            if isinstance(value, torch.Tensor):
                is_number = value.numel() == 1
            else:
                is_number = isinstance(value, SupportsFloat) and np.ndim(value) == 0
            if not is_number:
                raise TypeError(f"metric {name!r} returned by update must be a single number, not {value!r}")
            copy = value.detach().clone() if isinstance(value, torch.Tensor) else value
            self._history.setdefault(name, []).append((self._step, copy))
        self._step += 1

    def mean(self) -> dict[str, float]:
        """Return the mean of each metric over the updates that returned it.

        Raises:
            NonFiniteError: a value is not finite; the error names the first such step.
        """
        history = self.to_python()
        problems: dict[int, list[str]] = {}
        for name, values in history.items():
            for step, value in values:
                if not math.isfinite(value):
                    problems.setdefault(step, []).append(f"{name} is {value}")
        if problems:
            step = min(problems)
            raise NonFiniteError(step, " and ".join(problems[step]))
        return {name: _mean([value for _, value in values]) for name, values in history.items()}

    def to_python(self) -> dict[str, list[tuple[int, float]]]:
        """Return the history with all values as Python floats, to be saved in a checkpoint."""
        return {
            name: list(zip([step for step, _ in values], _to_floats([value for _, value in values]), strict=True))
            for name, values in self._history.items()
        }


def _mean(values: Sequence[float]) -> float:
    """Return the mean of finite values, which is finite although their sum may not be."""
    try:
        return math.fsum(value / len(values) for value in values)
    except OverflowError:  # rounded above the largest number, next to which all values are
        return max(values, key=abs)


def check_name(name: object) -> None:
    """Raise TypeError if the name of a metric is not text, ValueError if records have another entry of this name."""
    if not isinstance(name, str):
        raise TypeError(f"names of metrics must be strings, not {name!r}")
    if name in RECORD_KEYS or SPLIT_ENTRY.fullmatch(name):
        raise ValueError(f"records have an entry called {name!r}; choose another name for this metric")


def _to_floats(values: list[torch.Tensor | float]) -> list[float]:
    """Convert to floats, in a single transfer if all values are on one device."""
    tensors = [value.reshape(()) for value in values if isinstance(value, torch.Tensor)]
    if len(tensors) == len(values) and len({tensor.device for tensor in tensors}) == 1:
        return torch.stack(tensors).double().tolist()
    return [float(value) for value in values]


def check_weights(algorithm: Algorithm, step: int) -> None:
    """Check that all weights are finite after the update of `step`, whose effect no metric shows yet.

    Raises:
        NonFiniteError: a weight is not finite.
    """
    weights = [(name, p) for name, p in algorithm.named_parameters() if p.is_floating_point()]
    finite = torch.stack([p.detach().isfinite().all() for _, p in weights]).tolist() if weights else []
    for (name, _), is_finite in zip(weights, finite, strict=True):
        if not is_finite:
            raise NonFiniteError(step, f"the weights of {name} are not finite after the update")
