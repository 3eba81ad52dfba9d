"""How a job's updates are done: as they are written or, on a GPU, captured once and then done again by one call."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from tqdm import tqdm

from domainbed.algorithms.base import Algorithm, Minibatch
from domainbed.engine.capturable import Snapshot
from domainbed.engine.graphs import CudaGraphs, Graphs
from domainbed.errors import UsageError, one_line

UpdateMetrics: TypeAlias = Mapping[str, torch.Tensor | float]  # what an update returns


class EagerSteps:
    """The algorithm's updates as they are written."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> UpdateMetrics:
        """`Algorithm.update`."""
        return self.algorithm.update(minibatches, unlabeled)


class _Recorded(NamedTuple):
    """The updates of one phase.

    Attributes:
        inputs: the tensors that the recorded work reads the batches from, images and labels.
        shapes: theirs.
        again: does it once more.
        told: what it tells, in tensors that the next update overwrites.
        counts: by how much it raises each counter of the algorithm's.
    """

    inputs: tuple[list[torch.Tensor], list[torch.Tensor]]
    shapes: list[list[torch.Size]]
    again: Callable[[], None]
    told: UpdateMetrics
    counts: dict[str, int]


class CapturedSteps(EagerSteps):
    """One graph for each of the algorithm's phases.

    The first update of a phase is done as it is written (it may make the optimizer's state), the second likewise and
    watched, the third is recorded. An algorithm whose updates can't be recorded goes on as it is written, which is told
    in one line.

    Attributes:
        reason: why updates are not captured, or an empty string.
    """

    def __init__(self, algorithm: Algorithm, graphs: Graphs) -> None:
        super().__init__(algorithm)
        self.reason = ""
        self._graphs = graphs
        self._counts: dict[str, dict[str, int] | None] = {}  # of phases that were begun; None: not watched yet
        self._recorded: dict[str, _Recorded] = {}
        for adam in _adams(algorithm):
            _set_flags(adam, graphs.adam_flags)

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> UpdateMetrics:
        if self.reason:
            return super().update(minibatches, unlabeled)
        phase = self.algorithm.phase
        if recorded := self._recorded.get(phase):
            return self._replayed(recorded, minibatches, unlabeled)
        with self._graphs.aside():
            if phase not in self._counts:
                self._counts[phase] = None
                return super().update(minibatches, unlabeled)
            if self._counts[phase] is None:
                return self._watched(phase, minibatches, unlabeled)
            return self._captured(phase, minibatches, unlabeled)

    def _replayed(
        self, recorded: _Recorded, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None
    ) -> UpdateMetrics:
        given = _inputs(minibatches, unlabeled)
        if [[tensor.shape for tensor in of_type] for of_type in given] != recorded.shapes:
            return super().update(minibatches, unlabeled)
        for ours, theirs in zip(recorded.inputs, given, strict=True):
            torch._foreach_copy_(ours, theirs)
        recorded.again()
        for name, count in recorded.counts.items():
            setattr(self.algorithm, name, getattr(self.algorithm, name) + count)
        return recorded.told

    def _watched(
        self, phase: str, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None
    ) -> UpdateMetrics:
        """Update, and see whether that can be recorded."""
        try:
            before = Snapshot(self.algorithm, self._graphs.device)
        except UsageError as error:
            self._go_on_as_written(str(error))
            return super().update(minibatches, unlabeled)
        told: UpdateMetrics | None = None
        try:
            with self._graphs.watched():
                told = super().update(minibatches, unlabeled)
            self._counts[phase] = before.counts(self.algorithm)
        except UsageError as error:
            if told is None:
                raise  # the update's own
            self._go_on_as_written(str(error))
        return told

    def _captured(
        self, phase: str, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None
    ) -> UpdateMetrics:
        """Record the update, and do it."""
        counts = self._counts[phase] or {}
        before = {name: getattr(self.algorithm, name) for name in counts}
        labeled = [(x.clone(), y.clone()) for x, y in minibatches]
        others = None if unlabeled is None else [x.clone() for x in unlabeled]
        try:
            again, told = self._graphs.capture(lambda: self.algorithm.update(labeled, others))
            reason = self._miscount(before, counts)
        except RuntimeError as error:  # also a device whose memory is too small for it
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            if not self._graphs.survives:
                raise UsageError(
                    f"{type(self.algorithm).__name__}'s updates can't be captured ({reason}); with --engine eager they "
                    "run as they are written"
                ) from error
        if reason:  # not within `except`, where the error still holds all that the update had made
            for name, count in before.items():
                setattr(self.algorithm, name, count)
            self._go_on_as_written(reason)
            return super().update(minibatches, unlabeled)
        again()  # what was recorded has not been done yet
        inputs = _inputs(labeled, others)
        shapes = [[tensor.shape for tensor in of_type] for of_type in inputs]
        self._recorded[phase] = _Recorded(inputs, shapes, again, told, counts)
        return told

    def _miscount(self, before: Mapping[str, int], counts: Mapping[str, int]) -> str:
        """What is wrong if this update counted otherwise than the one before it, as one does that begins anew."""
        for name, count in counts.items():
            if getattr(self.algorithm, name) != before[name] + count:
                return f"its {name} does not rise by {count} each time"
        return ""

    def _go_on_as_written(self, reason: str) -> None:
        self.reason = reason
        self._recorded.clear()
        gc.collect()
        if self._graphs.device.type == "cuda":
            torch.cuda.empty_cache()  # of what was recorded
        tqdm.write(f"{type(self.algorithm).__name__}'s updates are not captured, but run as they are written: {reason}")


def _inputs(
    minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Images and labels apart: tensors of one type are copied by one call."""
    return [*(x for x, _ in minibatches), *(unlabeled or ())], [y for _, y in minibatches]


def are_captured(engine: str, device: torch.device) -> bool:
    """Whether updates shall be captured: as asked or, if that is "auto", where there is a GPU.

    Raises:
        UsageError: "captured" is asked for without a GPU.
    """
    if engine == "captured" and device.type != "cuda":
        raise UsageError("--engine captured needs a GPU; auto captures where there is one")
    return engine != "eager" and device.type == "cuda"


def make_steps(algorithm: Algorithm, device: torch.device, captured: bool) -> EagerSteps:
    """How the updates of an algorithm, whose state is loaded, are done."""
    if captured:
        return CapturedSteps(algorithm, CudaGraphs(device))
    for adam in _adams(algorithm):  # it may come from the checkpoint of a captured run
        if adam.param_groups[0]["capturable"] != adam.defaults["capturable"]:
            _set_flags(adam, {"capturable": adam.defaults["capturable"]})
    return EagerSteps(algorithm)


def _adams(algorithm: Algorithm) -> list[torch.optim.Optimizer]:
    return [value for value in vars(algorithm).values() if isinstance(value, torch.optim.Adam | torch.optim.AdamW)]


def _set_flags(adam: torch.optim.Optimizer, flags: Mapping[str, bool]) -> None:
    """Set these options, and bring step counters where they need them: to the device if any is on, else the host."""
    for group in adam.param_groups:
        group.update(flags)
        for p in group["params"]:
            if "step" in (state := adam.state.get(p, {})):
                state["step"] = state["step"].to(p.device if any(flags.values()) else "cpu")
