"""The interface of an averaging scheme, and the running mean that schemes share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch

from domainbed.algorithms.averaging import WeightAverage
from domainbed.algorithms.base import Algorithm
from domainbed.engine.averaging import AVERAGINGS, NO_AVERAGING
from domainbed.errors import UsageError

if TYPE_CHECKING:
    from domainbed.engine.config import JobConfig

Images: TypeAlias = Callable[[int], Iterator[torch.Tensor]]  # returns this many batches of training images


class Averaging:
    """No averaging: the algorithm's current weights are evaluated and saved.

    A scheme subclasses this class. It reads the weights after each update, outside of captured updates, and its average
    replaces them while the algorithm is evaluated and saved. The updates themselves do not change.

    Args:
        config: the job.
        algorithm: the algorithm that is trained, on its device.

    Attributes:
        NEEDS_LOSS: whether `end_interval` reads the validation loss.
        has_ended: whether the average is complete, so that training stops.
    """

    NEEDS_LOSS: ClassVar[bool] = False

    def __init__(self, config: "JobConfig", algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.has_ended = False
        self._in_place: list[torch.Tensor] = []  # the tensors that hold the average at the moment
        self._replaced: list[torch.Tensor] = []  # their values during training

    def tensors(self) -> list[torch.Tensor]:
        """Return those of the algorithm's tensors that are averaged."""
        return []

    def add_update(self) -> None:
        """Read the weights after an update, without synchronizing with the device."""

    def end_interval(self, step: int, loss: float) -> None:
        """Note that the update of `step` is evaluated next. If it was noted before, nothing happens.

        Args:
            step: the last update's step.
            loss: the mean over training domains of the current weights' loss on the out split; NaN unless NEEDS_LOSS.
        """

    def average(self) -> Sequence[torch.Tensor]:
        """Return the average of each of the `tensors`; nothing to evaluate the current weights."""
        return []

    @contextmanager
    def applied(self, images: Images | None = None) -> Iterator[None]:
        """Put the average in place of the algorithm's weights.

        Args:
            images: reads training images, if training is finished.
        """
        if average := self.average():
            self._in_place = self.tensors()
            self._replaced = [
                value.to(tensor.device, copy=True) for tensor, value in zip(self._in_place, average, strict=True)
            ]
        self._exchange()
        try:
            yield
        finally:
            self._exchange()
            self._in_place, self._replaced = [], []

    @contextmanager
    def training_weights(self) -> Iterator[None]:
        """Put the weights of training back in place, within or outside of `applied`."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for tensor, value in zip(self._in_place, self._replaced, strict=True):
            copy = tensor.clone()
            tensor.copy_(value)
            value.copy_(copy)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must contain; tensors are not copied."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of an averaging of the same job."""


class RunningMean:
    """The uniform mean of successive values of some tensors.

    Attributes:
        tensors: the mean of each tensor; empty before the first value.
        count: number of values in the mean.
    """

    def __init__(self, tensors: Sequence[torch.Tensor] = (), count: int = 0) -> None:
        self.tensors = [tensor.clone() for tensor in tensors]
        self.count = count

    @torch.no_grad()
    def add(self, values: Sequence[torch.Tensor]) -> None:
        """Include one more value of each tensor."""
        self.count += 1
        if self.count == 1:
            self.tensors = [value.detach().clone() for value in values]
        else:
            torch._foreach_lerp_(self.tensors, list(values), 1 / self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": self.tensors, "count": self.count}

    @classmethod
    def restored(cls, state: Mapping[str, Any], like: Sequence[torch.Tensor]) -> "RunningMean":
        """Return the mean that `state_dict` saved, on the devices of `like`, the tensors whose values it averages."""
        tensors = [saved.to(tensor.device) for saved, tensor in zip(state["tensors"], like, strict=False)]
        return cls(tensors, state["count"])


def make_averaging(config: "JobConfig", algorithm: Algorithm) -> Averaging:
    """Return the scheme that `config.averaging` names.

    Raises:
        UsageError: the algorithm averages its weights itself, or a checkpoint would lack the average.
    """
    if config.averaging == NO_AVERAGING:
        return Averaging(config, algorithm)
    if any(isinstance(module, WeightAverage) for module in algorithm.modules()):
        raise UsageError(
            f"--averaging {config.averaging}: {config.algorithm} already averages its weights; choose another algorithm"
        )
    averaging = AVERAGINGS[config.averaging](config, algorithm)
    cls = type(averaging)
    has_state = cls.add_update is not Averaging.add_update or cls.end_interval is not Averaging.end_interval
    saves_state = cls.state_dict is not Averaging.state_dict and cls.load_state_dict is not Averaging.load_state_dict
    if has_state and not saves_state:
        raise UsageError(
            f"--averaging {config.averaging}: {cls.__name__} must implement state_dict and load_state_dict; otherwise, "
            "a resumed job would start its average again"
        )
    return averaging
