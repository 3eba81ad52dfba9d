"""What updates tell of themselves between two evaluations, and whether training is still sound."""

import math
from collections.abc import Mapping
from typing import SupportsFloat, TypeAlias

import torch

from domainbed.algorithms.base import Algorithm
from domainbed.errors import UsageError


class NonFiniteError(UsageError):
    """Training went astray: a figure or a weight is infinite or not a number."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"at step {step} {what}; the job ends, its records up to here stay. Smaller steps (lr) may help or, where "
            "there is a penalty, a smaller weight of it"
        )


Metrics: TypeAlias = dict[
    str, list[tuple[int, torch.Tensor | float]]
]  # name -> (step, value) of each update that told it


class MetricLog:
    """The figures of the updates from step `start` on, kept where they lie: only reading them waits for the device.

    Args:
        start: the step of the update whose figures are added first.
        told: what `numbers` gave after the updates before.
    """

    def __init__(self, start: int, told: Metrics | None = None) -> None:
        self._step = start
        self._told: Metrics = told or {}

    def add(self, figures: Mapping[str, torch.Tensor | float]) -> None:
        """Take the figures of the next update. Tensors are copied: an algorithm may write into its own again."""
        for name, value in figures.items():
            if not isinstance(value, SupportsFloat) or (isinstance(value, torch.Tensor) and value.numel() != 1):
                raise TypeError(f"update's figure {name!r} must be one number, not {value!r}")
            kept = value.detach().clone() if isinstance(value, torch.Tensor) else value
            self._told.setdefault(name, []).append((self._step, kept))
        self._step += 1

    def read(self) -> dict[str, float]:
        """The mean of each figure over the updates that told it.

        Raises:
            NonFiniteError: some are not finite, at the step that is named.
        """
        told = self.numbers()
        bad: dict[int, list[str]] = {}
        for name, values in told.items():
            for step, value in values:
                if not math.isfinite(value):
                    bad.setdefault(step, []).append(f"{name} is {value}")
        if bad:
            step = min(bad)
            raise NonFiniteError(step, " and ".join(bad[step]))
        return {name: math.fsum(value / len(values) for _, value in values) for name, values in told.items()}

    def numbers(self) -> dict[str, list[tuple[int, float]]]:
        """Every update's figures as Python's numbers, for a checkpoint."""
        return {
            name: list(zip([step for step, _ in told], _numbers([value for _, value in told]), strict=True))
            for name, told in self._told.items()
        }


def _numbers(values: list[torch.Tensor | float]) -> list[float]:
    """As Python numbers; by one transfer, where all lie on one device."""
    tensors = [value.reshape(()) for value in values if isinstance(value, torch.Tensor)]
    if len(tensors) == len(values) and len({tensor.device for tensor in tensors}) == 1:
        return torch.stack(tensors).double().tolist()
    return [float(value) for value in values]


def check_weights(algorithm: Algorithm, step: int) -> None:
    """See that the weights are finite after the update of `step`, for no figure has told of it yet.

    Raises:
        NonFiniteError: one is not.
    """
    weights = [(name, p) for name, p in algorithm.named_parameters() if p.is_floating_point()]
    finite = torch.stack([p.detach().isfinite().all() for _, p in weights]).tolist() if weights else []
    for (name, _), is_finite in zip(weights, finite, strict=True):
        if not is_finite:
            raise NonFiniteError(step, f"the update left weights of {name} that are not finite")
