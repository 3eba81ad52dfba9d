"""A stand-in for CUDA graphs on a CPU: what torch did is written down, operation by operation, and done again without
the Python that asked for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from domainbed.errors import UsageError
from tests.algorithms.test_all import NoWaiting


def waits(func: Any) -> bool:
    return func.name().removeprefix("aten::").removeprefix("_").startswith(NoWaiting.WAITS)


class Watch(TorchDispatchMode):
    """Sees whether the host would have waited for a GPU."""

    waited = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waited |= waits(func)
        return func(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    """Writes operations down, and what lay where they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.own: set[int] = set()  # memory that came into being here

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits(func):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        for tensor in written(func, args, kwargs):
            place = tensor.untyped_storage().data_ptr()
            if place not in self.own and place not in self.before:
                whole = tensor.new_empty(0).set_(tensor.untyped_storage())
                self.before[place] = whole, whole.clone()
        result = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        self.own |= {t.untyped_storage().data_ptr() for t in tensors(result)} - given
        self.operations.append((func, args, kwargs, result))
        return result


class Tape:
    """See domainbed.engine.graphs.Graphs."""

    device = torch.device("cpu")
    adam_flags = {"fused": True}  # of the kinds of Adam that know a CPU, the one that reads no number there

    def __init__(self, survives: bool = True) -> None:
        self.survives = survives
        self.captured = 0
        self.replayed = 0

    def aside(self):
        return nullcontext()

    @contextmanager
    def watched(self) -> Iterator[None]:
        with Watch() as watch:
            yield
        if watch.waited:
            raise UsageError("it waits for the device")

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        generator = torch.get_rng_state()
        recording = Recording()
        try:
            with recording:
                returned = work()
        finally:  # recording does nothing
            with torch.no_grad():
                for whole, value in recording.before.values():
                    whole.copy_(value)
            torch.set_rng_state(generator)
        self.captured += 1

        @torch.no_grad()
        def again() -> None:
            self.replayed += 1
            for func, args, kwargs, result in recording.operations:
                given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
                fresh = [t for t in tensors(result) if t.untyped_storage().data_ptr() not in given]
                if not fresh and not written(func, args, kwargs):
                    continue  # a view, which still is one
                for old, new in zip(tensors(result), tensors(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() not in given:
                        old.copy_(new)

        return again, returned


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def written(func: Any, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The tensors that an operation writes into."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return found
