"""Checks whether an update can be replayed by the device alone, without running its Python code again."""

import pickle
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.errors import UsageError
from domainbed.registry import is_builtin
from domainbed.seeding import get_rng_state

Path: TypeAlias = tuple[str | int, ...]  # the keys that lead to a value of the state


class Snapshot:
    """The state of an algorithm before an update: values on the host, and addresses of tensors on the device.

    A replayed update changes the contents of existing tensors on the device and nothing else. Therefore, tensors must
    stay in place, and on the host nothing may change except integer counters, which the engine can increment.

    Raises:
        UsageError: a part of the state cannot be compared.
    """

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        self._device = device
        self._host: dict[Path, Any] = {}
        self._on_device: dict[Path, torch.Tensor] = {}  # kept alive, so that no other tensor reuses the memory
        self._gradients: dict[Path, tuple[torch.Tensor, torch.Tensor]] = {}  # kept alive, too, and their values
        for path, value in chain(_flatten(algorithm.training_state()), _state_outside_training_state(algorithm)):
            if path[:1] == ("gradients",):  # each replay writes to those that its captured update allocated
                if isinstance(value, torch.Tensor):
                    self._gradients[path] = value, value.clone()
                continue
            if isinstance(value, torch.Tensor):
                if value.device.type == device.type:
                    self._on_device[path] = value
                else:
                    self._host[path] = value.clone()
            else:
                self._host[path] = _freeze(path, value)
        generators = get_rng_state()
        self._generators = {
            name: pickle.dumps(generators[name])
            for name in ("python", "numpy", *(["torch"] if device.type == "cuda" else []))
        }

    def counter_increments(self, algorithm: Algorithm) -> dict[str, int]:
        """Return by how much the update since this snapshot increased each counter (an attribute of the algorithm).

        Raises:
            UsageError: the update did something that a replay would not repeat.
        """
        after = Snapshot(algorithm, self._device)
        for name, state in self._generators.items():
            if after._generators[name] != state:
                raise UsageError(f"update draws from {name}'s random generator on the host")
        for path, (gradient, value) in self._gradients.items():
            new, _ = after._gradients.get(path, (None, None))
            if new is None or (_is_same_memory(gradient, new) and not torch.equal(value, new)):
                raise UsageError("update accumulates into the gradients of a previous update; call zero_grad() first")
        for path in {**self._on_device, **after._on_device}:
            if not _is_same_memory(self._on_device.get(path), after._on_device.get(path)):
                raise UsageError(f"update replaces the tensor {_name(path)}; write to it in place (copy_)")
        increments = {}
        for path in {**self._host, **after._host}:
            old, new = self._host.get(path), after._host.get(path)
            if _is_equal(old, new):
                continue
            if type(old) is not int or type(new) is not int or path[:-1] != ("attributes",):
                raise UsageError(f"update changes {_name(path)} on the host")
            increments[str(path[-1])] = new - old
        if increments and not _defines_phase(type(algorithm)):
            raise UsageError(
                f"update counts on the host ({', '.join(sorted(increments))}), but {type(algorithm).__name__} does not "
                "define a `phase` of its own that shows what depends on the count"
            )
        return increments


def _defines_phase(algorithm_class: type[Algorithm]) -> bool:
    """An inherited `phase` does not reflect what a subclass does with a counter."""
    return "phase" in vars(algorithm_class) or is_builtin(algorithm_class)


def _state_outside_training_state(algorithm: Algorithm) -> Iterator[tuple[Path, Any]]:
    """Yield what else an update can change: hyperparameters, unsaved buffers, and attributes of modules."""
    yield from _flatten(algorithm.hparams, ("hparams",))
    yield from _flatten(dict(algorithm.named_buffers()), ("buffers",))
    for module_name, module in algorithm.named_modules():
        for name, value in vars(module).items() if module is not algorithm else ():
            if name not in _MODULE_ATTRIBUTES:
                leaves = _flatten(value, (module_name, name))
                yield from ((path, leaf) for path, leaf in leaves if isinstance(leaf, _IMMUTABLE | torch.Tensor))


_MODULE_ATTRIBUTES = vars(nn.Module())
_SECTIONS = (("modules",), ("attributes",), ("buffers",), ("module_attributes",))
_IMMUTABLE = bool | int | float | str


def _flatten(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield all values of a nested state with their paths."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _flatten(value, (*path, key))
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from _flatten(value, (*path, i))
    else:
        yield path, state


def _freeze(path: Path, value: Any) -> Any:
    """Return the value or, if it is mutable, its current state as bytes."""
    if value is None or isinstance(value, _IMMUTABLE):
        return value
    try:
        return pickle.dumps(value)
    except Exception as error:  # pickle raises errors of many classes
        raise UsageError(f"{_name(path)} ({type(value).__name__}) may be mutated without being detected") from error


def _is_same_memory(old: torch.Tensor | None, new: torch.Tensor | None) -> bool:
    return old is not None and new is not None and (old.data_ptr(), old.shape) == (new.data_ptr(), new.shape)


def _is_equal(old: Any, new: Any) -> bool:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return torch.equal(old, new)
    return type(old) is type(new) and old == new


def _name(path: Path) -> str:
    return ".".join(map(str, path[1:] if path[:1] in _SECTIONS else path))
