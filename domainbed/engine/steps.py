"""Running a job's updates: eagerly or, on a GPU, captured once per phase and then replayed."""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from tqdm import tqdm

from domainbed.algorithms.base import Algorithm, Minibatch
from domainbed.engine.capturable import Snapshot
from domainbed.engine.graphs import CudaGraphs
from domainbed.errors import UsageError, one_line
from domainbed.loading.photo_feed import find_dead_worker
from domainbed.registry import is_builtin

UpdateMetrics: TypeAlias = Mapping[str, torch.Tensor | float]  # what an update returns
Minibatches: TypeAlias = Sequence[Minibatch]
Unlabeled: TypeAlias = Sequence[torch.Tensor] | None


class EagerSteps:
    """Runs the algorithm's `update`."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> UpdateMetrics:
        """Run one update; see `Algorithm.update`."""
        return self.algorithm.update(minibatches, unlabeled)


class _CapturedUpdate(NamedTuple):
    """The captured update of a phase.

    Attributes:
        inputs: the images and labels that the captured work reads; see `_inputs`.
        replay: runs it.
        metrics: the metrics that it returns, in tensors that each replay overwrites.
        increments: by how much it increases each counter of the algorithm.
    """

    inputs: tuple[list[torch.Tensor], list[torch.Tensor]]
    replay: Callable[[], None]
    metrics: UpdateMetrics
    increments: dict[str, int]


class CapturedSteps(EagerSteps):
    """Replays one graph per phase of the algorithm.

    The first update of a phase runs eagerly, because it may initialize the optimizer's state. The second also runs
    eagerly and is checked. The third is captured. If an update cannot be captured, all run eagerly from then on, and
    one line of output states the reason.

    Attributes:
        reason: why updates are not captured, or an empty string.
    """

    def __init__(self, algorithm: Algorithm, graphs: CudaGraphs) -> None:
        super().__init__(algorithm)
        self.reason = ""
        self._graphs = graphs
        self._increments: dict[str, dict[str, int] | None] = {}  # of phases that have started; None: not checked yet
        self._captured: dict[str, _CapturedUpdate] = {}
        for adam in _adam_optimizers(algorithm):
            _set_flags(adam, graphs.adam_flags)

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> UpdateMetrics:
        if self.reason:
            return super().update(minibatches, unlabeled)
        phase = self.algorithm.phase
        if captured := self._captured.get(phase):
            return self._replay(captured, minibatches, unlabeled)
        with self._graphs.side_stream():
            if phase not in self._increments:
                self._increments[phase] = None
                return super().update(minibatches, unlabeled)
            if self._increments[phase] is None:
                return self._check(phase, minibatches, unlabeled)
            return self._capture(phase, minibatches, unlabeled)

    def _replay(self, captured: _CapturedUpdate, minibatches: Minibatches, unlabeled: Unlabeled) -> UpdateMetrics:
        inputs = _inputs(minibatches, unlabeled)
        if _shapes(inputs) != _shapes(captured.inputs):
            return super().update(minibatches, unlabeled)
        for destinations, sources in zip(captured.inputs, inputs, strict=True):
            torch._foreach_copy_(destinations, sources)
        captured.replay()
        for name, increment in captured.increments.items():
            setattr(self.algorithm, name, getattr(self.algorithm, name) + increment)
        return captured.metrics

    def _check(self, phase: str, minibatches: Minibatches, unlabeled: Unlabeled) -> UpdateMetrics:
        """Run the update eagerly, and check whether it can be captured."""
        try:
            before = Snapshot(self.algorithm, self._graphs.device)
        except UsageError as error:
            self._fall_back(str(error))
            return super().update(minibatches, unlabeled)
        metrics: UpdateMetrics | None = None
        try:
            with self._graphs.detect_sync():
                metrics = super().update(minibatches, unlabeled)
            self._increments[phase] = before.counter_increments(self.algorithm)
        except UsageError as error:
            if metrics is None:
                raise  # from the update itself
            self._fall_back(str(error))
        return metrics

    def _capture(self, phase: str, minibatches: Minibatches, unlabeled: Unlabeled) -> UpdateMetrics:
        """Capture the update, then run it by its first replay."""
        increments = self._increments[phase] or {}
        before = {name: getattr(self.algorithm, name) for name in increments}
        labeled = [(x.clone(), y.clone()) for x, y in minibatches]
        others = None if unlabeled is None else [x.clone() for x in unlabeled]
        try:
            replay, metrics = self._graphs.capture(lambda: self.algorithm.update(labeled, others))
            reason = self._check_counters(before, increments)
        except RuntimeError as error:  # including an out-of-memory error
            if find_dead_worker(error):  # its signal may interrupt any code
                raise
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            if not self._graphs.survives_failure:
                raise UsageError(
                    f"cannot capture the updates of {type(self.algorithm).__name__} ({reason}); pass --engine eager to "
                    "run them eagerly"
                ) from error
        if reason:  # outside of `except`, in which the error keeps all tensors of the update alive
            for name, count in before.items():
                setattr(self.algorithm, name, count)
            self._fall_back(reason)
            return super().update(minibatches, unlabeled)
        replay()
        self._captured[phase] = _CapturedUpdate(_inputs(labeled, others), replay, metrics, increments)
        return metrics

    def _check_counters(self, before: Mapping[str, int], increments: Mapping[str, int]) -> str:
        """Return an error if a counter changed differently in the captured update, as one that wraps around does."""
        for name, increment in increments.items():
            if getattr(self.algorithm, name) != before[name] + increment:
                return f"{name} does not increase by {increment} in every update"
        return ""

    def _fall_back(self, reason: str) -> None:
        self.reason = reason
        self._captured.clear()
        gc.collect()
        if self._graphs.device.type == "cuda":
            torch.cuda.empty_cache()  # memory of the graphs
        tqdm.write(f"{type(self.algorithm).__name__}: falling back to eager updates: {reason}")


def _inputs(minibatches: Minibatches, unlabeled: Unlabeled) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return images and labels separately, because tensors of one type are copied by a single call."""
    return [*(x for x, _ in minibatches), *(unlabeled or ())], [y for _, y in minibatches]


def _shapes(inputs: tuple[list[torch.Tensor], list[torch.Tensor]]) -> list[list[torch.Size]]:
    return [[tensor.shape for tensor in tensors] for tensors in inputs]


def should_capture(engine: str, device: torch.device) -> bool:
    """Return whether to capture updates: as requested or, if engine is "auto", on a GPU.

    Raises:
        UsageError: "captured" is requested without a GPU.
    """
    if engine == "captured" and device.type != "cuda":
        raise UsageError("--engine captured requires a GPU; auto captures updates if a GPU is available")
    return engine != "eager" and device.type == "cuda"


def make_steps(algorithm: Algorithm, device: torch.device, is_captured: bool) -> EagerSteps:
    """Return what runs the updates of an algorithm whose state has been loaded."""
    if is_captured:
        return CapturedSteps(algorithm, CudaGraphs(device))
    for adam in _adam_optimizers(algorithm):  # the checkpoint may be that of a captured run
        if adam.param_groups[0]["capturable"] != adam.defaults["capturable"]:
            _set_flags(adam, {"capturable": adam.defaults["capturable"]})
    return EagerSteps(algorithm)


def fuse_adam(algorithm: Algorithm, device: torch.device) -> None:
    """On a CPU, select Adam's fused implementation, which computes the same within rounding.

    For an MLP of 460,000 weights, it takes a third of the time of the default implementation. An algorithm that selects
    an implementation itself keeps it, and so does a user's algorithm with channels_last parameters: the fused
    implementation ignores strides, and the user's code may set gradients with others. Call this before a checkpoint is
    loaded: an optimizer that an update creates is not fused, and a checkpoint restores the implementation with the
    other options.
    """
    if device.type != "cpu":
        return
    for adam in _adam_optimizers(algorithm):
        chosen = any(adam.defaults[name] for name in ("foreach", "differentiable", "fused"))
        parameters = [p for group in adam.param_groups for p in group["params"]]
        has_known_strides = is_builtin(type(algorithm)) or all(p.is_contiguous() for p in parameters)
        if not chosen and has_known_strides and all(p.is_floating_point() for p in parameters):
            _set_flags(adam, {"fused": True})


def _adam_optimizers(algorithm: Algorithm) -> list[torch.optim.Optimizer]:
    return [value for value in vars(algorithm).values() if isinstance(value, torch.optim.Adam | torch.optim.AdamW)]


def _set_flags(adam: torch.optim.Optimizer, flags: Mapping[str, bool]) -> None:
    """Set these options, and move step counters to where the implementation that they select requires them."""
    for group in adam.param_groups:
        group.update(flags)
        is_on_device = group.get("fused") or group.get("capturable")
        for p in group["params"]:
            if "step" in (state := adam.state.get(p, {})):
                state["step"] = state["step"].to(p.device if is_on_device else "cpu")
