"""A stand-in for CUDA graphs on a CPU: torch operations are recorded and replayed without running the Python code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from domainbed.errors import UsageError
from tests.algorithms.test_all import NoSynchronization


def synchronizes(func: Any) -> bool:
    return func.name().removeprefix("aten::").removeprefix("_").startswith(NoSynchronization.SYNCHRONIZING)


class SyncDetector(TorchDispatchMode):
    """Detects operations that would synchronize with a GPU."""

    has_synced = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.has_synced |= synchronizes(func)
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """Records operations, and the contents of the memory that they write to."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.allocated: set[int] = set()  # memory allocated by the operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if synchronizes(func):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        for tensor in written(func, args, kwargs):
            address = tensor.untyped_storage().data_ptr()
            if address not in self.allocated and address not in self.before:
                storage = tensor.new_empty(0).set_(tensor.untyped_storage())
                self.before[address] = storage, storage.clone()
        inputs_before = alias(args), alias(kwargs)
        result = func(*args, **kwargs)
        inputs = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        self.allocated |= {t.untyped_storage().data_ptr() for t in tensors(result)} - inputs
        if torch.Tag.inplace_view not in func.tags:
            self.operations.append((func, *inputs_before, alias(result)))
        return result


class Tape:
    """Has the interface of `domainbed.engine.graphs.CudaGraphs`."""

    device = torch.device("cpu")
    adam_flags = {"fused": True}  # the Adam implementation for CPUs that does not read step counters on the host

    def __init__(self, survives_failure: bool = True) -> None:
        self.survives_failure = survives_failure
        self.captured = 0
        self.replayed = 0

    def side_stream(self):
        return nullcontext()

    @contextmanager
    def detect_sync(self) -> Iterator[None]:
        with SyncDetector() as detector:
            yield
        if detector.has_synced:
            raise UsageError("update synchronizes with the device")

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        generator = torch.get_rng_state()
        recording = Recording()
        try:
            with recording:
                result = work()
        finally:  # undo the operations, because capturing must not execute them
            with torch.no_grad():
                for storage, value in recording.before.values():
                    storage.copy_(value)
            torch.set_rng_state(generator)
        self.captured += 1

        @torch.no_grad()
        def replay() -> None:
            self.replayed += 1
            for func, args, kwargs, output in recording.operations:
                inputs = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
                outputs = [t for t in tensors(output) if t.untyped_storage().data_ptr() not in inputs]
                if not outputs and not written(func, args, kwargs):
                    continue  # a view, which is still valid
                for old, new in zip(tensors(output), tensors(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() not in inputs:
                        old.copy_(new)

        return replay, result


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def alias(tree: Any) -> Any:
    """Return tensors of the same memory, whose shapes later operations such as `squeeze_` do not change."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, tree)


def written(func: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """Return the tensors that an operation writes to."""
    targets = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            targets += tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    if func.name() == "aten::native_batch_norm" and args[5]:  # its declaration omits the running statistics
        targets += tensors(args[3:5])
    return targets
