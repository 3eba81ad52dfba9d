"""SWAD: stochastic weight averaging, densely (Cha et al., NeurIPS 2021)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from statistics import fmean
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from domainbed.algorithms.base import Algorithm
from domainbed.engine.averaging.base import Averaging, Images, RunningMean
from domainbed.seeding import get_rng_state, seed_everything, set_rng_state

if TYPE_CHECKING:
    from domainbed.engine.config import JobConfig

N_CONVERGE = 3
N_TOLERANCE = 6
TOLERANCE_RATIO = 0.3
TOLERANCE_RATIOS = {"VLCS": 0.2}  # of the datasets with another one
BATCH_NORM_BATCHES = 500

T = TypeVar("T")


class Segment(NamedTuple):  # not Generic, which a NamedTuple of Python 3.10 cannot be
    """The updates between two evaluations.

    Attributes:
        number: the number of the evaluation that ends it, from 0.
        loss: the validation loss at its end.
        value: the mean of the weights over its updates.
    """

    number: int
    loss: float
    value: Any


class LossValley(Generic[T]):
    """The choice of the segments to average (Algorithm 1 of the paper), as in the published code.

    A segment can be chosen more than once: the segment at which the loss converges is chosen twice.

    Attributes:
        recent: the last segments.
        count: number of segments so far.
        start: number of the segment at which the loss converged; None before.
        limit: the highest loss within the valley.
        is_over: whether the loss has left the valley.
    """

    def __init__(self, tolerance_ratio: float, n_converge: int = N_CONVERGE, n_tolerance: int = N_TOLERANCE) -> None:
        self.tolerance_ratio = tolerance_ratio
        self.n_converge = n_converge
        self.n_tolerance = n_tolerance
        self.recent: list[Segment] = []
        self.count = 0
        self.start: int | None = None
        self.limit = float("inf")
        self.is_over = False

    def add(self, value: T, loss: float) -> list[T]:
        """Add a segment, and return the values of the segments to include in the average."""
        self.recent.append(Segment(self.count, loss, value))
        del self.recent[: -max(self.n_converge, self.n_tolerance)]
        self.count += 1
        if self.start is None:
            return [segment.value for segment in self._converge()]
        queue = self._queue()
        if queue[0].number < self.start:
            return []
        if min(segment.loss for segment in queue) > self.limit:
            self.is_over = True
            return []
        return [queue[0].value]

    def remaining(self) -> list[T]:
        """Return the values of the segments to include as well if training ends now."""
        if self.start is None:
            return [segment.value for segment in self.recent[-1:]]
        queue = [] if self.is_over else self._queue()[1:]
        values = []
        while queue and min(segment.loss for segment in queue) <= self.limit:
            values.append(queue.pop(0).value)
        return values

    def _queue(self) -> list[Segment]:
        return self.recent[-self.n_tolerance :]

    def _converge(self) -> list[Segment]:
        """Return the first segments to include, if the loss has been lowest n_converge segments ago."""
        last = self.recent[-self.n_converge :]
        losses = [segment.loss for segment in last]
        if len(last) < self.n_converge or losses.index(min(losses)) != 0:
            return []
        self.start = last[0].number
        self.limit = (1 + self.tolerance_ratio) * fmean(losses)
        if self.n_tolerance < self.n_converge:
            return last[1 : 1 + self.n_converge - self.n_tolerance]
        before = self._queue()[: self.n_tolerance - self.n_converge + 1]
        in_valley = list(takewhile(lambda segment: segment.loss <= self.limit, reversed(before)))
        return in_valley[::-1][1:]


class SWAD(Averaging):
    """The mean of the parameters over the updates within a valley of the validation loss; training stops at its end.

    Before the end, the average is what it would be if training ended. Segments wait for their choice in the host's
    memory. Statistics of batch norm are recomputed at the end, unless batch norm is frozen.
    """

    NEEDS_LOSS = True

    def __init__(self, config: "JobConfig", algorithm: Algorithm) -> None:
        super().__init__(config, algorithm)
        self.seed = config.seed
        self.valley: LossValley[list[torch.Tensor]] = LossValley(TOLERANCE_RATIOS.get(config.dataset, TOLERANCE_RATIO))
        self.segment = RunningMean()
        self.chosen = RunningMean()
        self.stand_in: list[torch.Tensor] = []  # the average after convergence while nothing is chosen
        self.last_step = -1  # of the last segment
        self._statistics: list[torch.Tensor] = []  # buffers of batch norm of the final average, once they are computed

    def tensors(self) -> list[torch.Tensor]:
        return [parameter for parameter in self.algorithm.parameters() if parameter.is_floating_point()]

    def add_update(self) -> None:
        self.segment.add(self.tensors())

    def end_interval(self, step: int, loss: float) -> None:
        if step == self.last_step:
            return
        self.last_step = step
        was_converged = self.valley.start is not None
        values = self.valley.add([tensor.cpu() for tensor in self.segment.tensors], loss)
        self.segment = RunningMean()
        for value in values:
            self.chosen.add(value)
        if self.chosen.count:
            self.stand_in = []
        elif self.valley.start is not None and not was_converged:
            self.stand_in = self.valley.recent[-self.valley.n_converge].value
        self.has_ended = self.valley.is_over

    def average(self) -> Sequence[torch.Tensor]:
        mean = RunningMean(self.chosen.tensors, self.chosen.count)
        for value in self.valley.remaining():
            mean.add(value)
        return mean.tensors or self.stand_in

    @contextmanager
    def applied(self, images: Images | None = None) -> Iterator[None]:
        with super().applied(images):
            if images is not None:
                self._renew_batch_norm(images)
            yield

    @torch.no_grad()
    def _renew_batch_norm(self, images: Images) -> None:
        """Compute the running statistics of batch norm, unless it is frozen, as cumulative means over images."""
        self.algorithm.train()  # frozen layers stay in evaluation mode
        layers = [
            m for m in self.algorithm.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
        ]
        if not layers:
            return
        buffers = [buffer for layer in layers for buffer in layer.buffers()]
        self._in_place += buffers
        self._replaced += [buffer.clone() for buffer in buffers]
        if self._statistics:  # training is over, so the average is still the same
            torch._foreach_copy_(buffers, self._statistics)
            return
        momenta = [layer.momentum for layer in layers]
        generators = get_rng_state()
        seed_everything(self.seed)  # the same statistics whenever they are computed
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the cumulative mean
        try:
            for x in images(BATCH_NORM_BATCHES):
                self.algorithm.predict(x)
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
            set_rng_state(generators)
        self._statistics = [buffer.clone() for buffer in buffers]

    def state_dict(self) -> dict[str, Any]:
        valley = vars(self.valley)
        return {
            "valley": {**valley, "recent": [tuple(segment) for segment in self.valley.recent]},
            "segment": self.segment.state_dict(),
            "chosen": self.chosen.state_dict(),
            "stand_in": self.stand_in,
            "last_step": self.last_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self.valley).update({**state["valley"], "recent": [Segment(*s) for s in state["valley"]["recent"]]})
        self.segment = RunningMean.restored(state["segment"], self.tensors())
        self.chosen = RunningMean([tensor.cpu() for tensor in state["chosen"]["tensors"]], state["chosen"]["count"])
        self.stand_in = state["stand_in"]
        self.last_step = state["last_step"]
        self.has_ended = self.valley.is_over
