"""Whether an update can be done again without Python: by the device alone, from what it recorded."""

import pickle
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.errors import UsageError
from domainbed.seeding import generators_state

Path = tuple[str | int, ...]


class Snapshot:
    """What lies on the host before an update, and where on the device tensors lie.

    Done again by the device alone, an update changes numbers on the device and nothing else. So tensors must stay where
    they are, and nothing may change on the host but whole numbers that count, which the engine can do for it.

    Raises:
        UsageError: the algorithm's state can't be listed.
    """

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        self._device = device
        self._host: dict[Path, Any] = {}
        self._on_device: dict[Path, torch.Tensor] = {}  # held, or another could come to lie in its place
        for path, value in chain(_leaves(algorithm.training_state()), _besides(algorithm)):
            if isinstance(value, torch.Tensor):
                if value.device.type == device.type:
                    self._on_device[path] = value
                else:
                    self._host[path] = value.clone()
            else:
                self._host[path] = _fixed(path, value)
        generators = generators_state()
        self._generators = {
            name: pickle.dumps(generators[name])
            for name in ("python", "numpy", *(["torch"] if device.type == "cuda" else []))
        }

    def counts(self, algorithm: Algorithm) -> dict[str, int]:
        """By how much the update that was done since then raised each counter, an attribute of the algorithm.

        Raises:
            UsageError: it did something else that the device alone would not do again.
        """
        after = Snapshot(algorithm, self._device)
        for name, state in self._generators.items():
            if after._generators[name] != state:
                raise UsageError(f"it draws from {name}'s random generator on the host")
        for path in {**self._on_device, **after._on_device}:
            if not _in_one_place(self._on_device.get(path), after._on_device.get(path)):
                raise UsageError(f"it keeps {_name(path)} in a new place; write into the old one, by copy_")
        counts = {}
        for path in {**self._host, **after._host}:
            old, new = self._host.get(path), after._host.get(path)
            if _same(old, new):
                continue
            if type(old) is not int or type(new) is not int or path[:-1] != ("attributes",):
                raise UsageError(f"it changes {_name(path)} on the host")
            counts[str(path[-1])] = new - old
        if counts and not _has_own_phase(type(algorithm)):
            raise UsageError(
                f"it counts on the host ({', '.join(sorted(counts))}), and {type(algorithm).__name__} has no `phase` "
                "of its own to say what depends on that"
            )
        return counts


def is_ours(algorithm_class: type[Algorithm]) -> bool:
    """Whether it comes with this package, so that what its updates do is known."""
    return algorithm_class.__module__.startswith("domainbed.algorithms.")


def _has_own_phase(algorithm_class: type[Algorithm]) -> bool:
    """An inherited `phase` knows nothing of what a subclass does with the count."""
    return "phase" in vars(algorithm_class) or is_ours(algorithm_class)


def _besides(algorithm: Algorithm) -> Iterator[tuple[Path, Any]]:
    """What an update can change besides the algorithm's state: hyperparameters, and what lies in its modules."""
    yield from _leaves(algorithm.hparams, ("hparams",))
    yield from _leaves(dict(algorithm.named_buffers()), ("buffers",))  # those that are not saved, too
    for module_name, module in algorithm.named_modules():
        for name, value in vars(module).items() if module is not algorithm else ():
            if name not in _OF_EVERY_MODULE:
                leaves = _leaves(value, (module_name, name))
                yield from ((path, leaf) for path, leaf in leaves if isinstance(leaf, _PLAIN | torch.Tensor))


_OF_EVERY_MODULE = vars(nn.Module())
_PLAIN = bool | int | float | str


def _leaves(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All that a state holds, and the way to it."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from _leaves(value, (*path, i))
    else:
        yield path, state


def _fixed(path: Path, value: Any) -> Any:
    """The value, or of an object that might be changed in place what it is now."""
    if value is None or isinstance(value, _PLAIN):
        return value
    try:
        return pickle.dumps(value)
    except Exception as error:  # of many classes
        raise UsageError(f"its {_name(path)}, a {type(value).__name__}, may change on the host unseen") from error


def _in_one_place(old: torch.Tensor | None, new: torch.Tensor | None) -> bool:
    return old is not None and new is not None and (old.data_ptr(), old.shape) == (new.data_ptr(), new.shape)


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return torch.equal(old, new)
    return type(old) is type(new) and old == new


def _name(path: Path) -> str:
    return ".".join(map(str, path[1:] if path[:1] in (("modules",), ("attributes",), ("buffers",)) else path))
