"""Encodes the objects that an algorithm refers to as plain values, which `torch.load` reads with `weights_only=True`.

Plain values are None, bool, int, float, str, bytes, tensors, torch's dtype, device and Size, and lists, tuples and
dicts of these. Any other object is a dict whose key KIND names its kind. An object that is referenced more than once is
encoded once; further references are its path, a Python expression such as `self.queues[0]`.
"""

import collections
import enum
import functools
import itertools
import logging
import random
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.algorithms.construction import Construction, class_name, is_plain_scheduler, is_torch_class
from domainbed.algorithms.plain_classes import attributes_of, is_plain_class
from domainbed.errors import UsageError

KIND = "__kind__"

SCALARS = (bool, int, float, str, bytes, type(None))
_ATOMS = (*SCALARS, torch.dtype, torch.device, torch.Size)
CONTAINERS: dict[str, type] = {
    c.__name__: c
    for c in (
        dict,
        collections.OrderedDict,
        collections.defaultdict,
        collections.Counter,
        set,
        frozenset,
        collections.deque,
        bytearray,
        list,
    )
}
_REFERENCED = (type, types.ModuleType, logging.Logger, torch.utils.hooks.RemovableHandle)  # without state of their own
# Attributes that torch itself gives to modules and optimizers.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_OPTIMIZER_ATTRIBUTES = {
    *vars(torch.optim.SGD([torch.zeros(1)], lr=0.1)),
    *("step", "grad_scale", "found_inf", "_opt_called"),
    *("_need_device_dtype_check_for_fused", "_step_supports_amp_scaling"),
}
_MAX_INT_BITS = 2000  # longer integers are pickled in a way that `weights_only` rejects


def members(algorithm: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the algorithm and its registered modules, parameters and buffers with their paths, each once."""
    yield "self", algorithm
    named = (algorithm.named_modules(), algorithm.named_parameters(), algorithm.named_buffers())
    for name, member in itertools.chain.from_iterable(named):
        if name:
            yield f"self.{name}", member


class Encoder:
    """Encodes objects that belong to an algorithm.

    Args:
        algorithm: its registered modules, parameters and buffers are encoded as references.
        construction: what its constructor determines.
        is_new: whether only the constructor has run: `construction` is then filled, and objects that cannot be encoded
            are skipped.

    Attributes:
        objects: the objects encoded so far and the members of the algorithm, by path.
    """

    def __init__(self, algorithm: nn.Module, construction: Construction, is_new: bool) -> None:
        self.objects: dict[str, Any] = {}
        self._construction = construction
        self._is_new = is_new
        self._paths: dict[int, str] = {}
        self._storages: dict[int, str] = {}  # address -> path of a tensor
        self._arrays: dict[str, np.ndarray] = {}
        self._references = {id(value): path for path, value in construction.references.items()}
        for path, member in members(algorithm):
            self._remember(member, path)
            if is_new and isinstance(member, nn.Module):
                construction.add_class(type(member), path)
            if isinstance(member, torch.Tensor) and (storage := _storage(member)):
                self._storages.setdefault(storage.data_ptr(), path)

    def encode(self, value: Any, path: str) -> Any:
        """Return the plain values of an object. Tensors share the memory of the originals.

        Raises:
            UsageError: the object cannot be saved.
        """
        if isinstance(value, _ATOMS) and type(value) in _ATOMS:
            if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
                return {KIND: "int", "value": hex(value)}
            return value
        if type(value) is tuple:
            return tuple(self.encode(item, f"{path}[{i}]") for i, item in enumerate(value))
        if (known := self._paths.get(id(value))) is not None:
            return {KIND: "same", "as": known}
        self._remember(value, path)
        try:
            return self._encode_new(value, path)
        except RecursionError:
            return self._reject(value, path[:100], "is nested too deeply")

    def _encode_new(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, torch.Generator):
            return {KIND: "torch generator", "device": str(value.device), "state": value.get_state()}
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, path)
        if isinstance(value, np.random.BitGenerator):
            return {KIND: "bits", "class": type(value).__name__, "state": self._fixed(value.state, path)}
        if isinstance(value, np.random.Generator):
            return {KIND: "numpy generator", "bits": self.encode(value.bit_generator, f"{path}.bit_generator")}
        if isinstance(value, np.random.RandomState):
            return {KIND: "random state", "state": self._fixed(value.get_state(legacy=False), path)}
        if type(value) is random.Random:
            return {KIND: "python generator", "state": value.getstate()}
        if isinstance(value, enum.Enum) and value.name in type(value).__members__:
            return {KIND: "enum", "class": self._class(value, path), "name": value.name}
        if type(value) is type(Path()):
            return {KIND: "path", "value": str(value)}
        if type(value) in (complex, range, slice):
            parts = (value.real, value.imag) if type(value) is complex else (value.start, value.stop, value.step)
            return {KIND: "value", "class": type(value).__name__, "parts": parts}
        if type(value) in CONTAINERS.values():
            return self._container(value, path)
        if isinstance(value, _REFERENCED):
            return self._reference(value, path)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return {KIND: "namedtuple", "class": self._class(value, path), "items": items}
        return self._stateful(value, path)

    def _stateful(self, value: Any, path: str) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value, path)
        if isinstance(value, torch.optim.Optimizer):
            return self._optimizer(value, path)
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            return self._with_state_dict(value, path)
        if type(value) is functools.partial:
            parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
            return {KIND: "partial", **{name: self.encode(part, f"{path}.{name}") for name, part in parts.items()}}
        if _is_method_of_object(value):
            return {KIND: "method", "of": self.encode(value.__self__, f"{path}.__self__"), "name": value.__name__}
        if is_plain_class(type(value)):
            return self._object(value, path)
        if callable(value):
            return self._reference(value, path)
        return self._reject(value, path, "cannot be saved in a checkpoint")

    def _remember(self, value: Any, path: str) -> None:
        self._paths[id(value)] = path
        self.objects[path] = value  # keeps it alive, so that no other object has its id

    def _reject(self, value: Any, path: str, problem: str) -> None:
        if not self._is_new:
            raise UsageError(
                f"{path} (of type {type(value).__name__}) {problem}, so the job could not be resumed; use tensors, "
                "numbers, containers of these, or objects with only such attributes, and create them in the "
                "constructor; or name it in UNSAVED, and save what it needs in training_state"
            )

    def _fixed(self, state: Any, path: str) -> Any:
        """Encode the state of a generator, a new object in each call, and therefore never shared."""
        if isinstance(state, dict):
            return {key: self._fixed(item, path) for key, item in state.items()}
        return state.tolist() if isinstance(state, np.ndarray | np.generic) else state

    def _class(self, value: Any, path: str) -> str:
        """Return the name of an object's class."""
        cls = type(value)
        if self._is_new:
            self._construction.add_class(cls, path)
        elif self._construction.find_class(class_name(cls)) is not cls:
            self._reject(value, path, "was created after the constructor ran, and its class cannot be found")
        return class_name(cls)

    def _reference(self, value: Any, path: str) -> Any:
        """Encode a function or class as the path at which the constructor set it, or as its name."""
        if self._is_new:
            self._construction.references[path] = value
            known = path
        elif (found := self._references.get(id(value))) is not None:
            known = found
        else:
            known = class_name(value) if hasattr(value, "__qualname__") and hasattr(value, "__module__") else ""
            if not known or self._construction.find(known) is not value:
                self._reject(value, path, "is a function or class that the constructor did not set")
        encoded: dict[str, Any] = {KIND: "reference", "to": known}
        if isinstance(value, types.FunctionType):
            encoded |= self._function_state(value, path)
        return encoded

    def _function_state(self, function: types.FunctionType, path: str) -> dict[str, Any]:
        """Return the variables of a function that persist between its calls."""
        if not self._construction.is_own(function.__globals__.get("__name__", "")):
            wrapped = getattr(function, "__wrapped__", None)  # a library's decorator
            return {"attributes": {"__wrapped__": self.encode(wrapped, f"{path}.__wrapped__")}} if wrapped else {}
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        variables = {name: cell.cell_contents for name, cell in cells.items() if not _is_empty(cell)}
        variables |= {str(i): item for i, item in enumerate(function.__defaults__ or ()) if type(item) not in _ATOMS}
        state = {}
        if variables:
            state["variables"] = {name: self.encode(item, f"{path}.<{name}>") for name, item in variables.items()}
        if vars(function):
            state["attributes"] = {name: self.encode(item, f"{path}.{name}") for name, item in vars(function).items()}
        return state

    def _tensor(self, tensor: torch.Tensor, path: str) -> Any:
        if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            return self._reject(tensor, path, "is a subclass of torch.Tensor that cannot be saved")
        if storage := _storage(tensor):
            base = self._storages.setdefault(storage.data_ptr(), path)
            if base != path:
                if self.objects[base].dtype != tensor.dtype:
                    self._reject(tensor, path, f"shares memory with {base} of another dtype and cannot be saved")
                layout = {"size": tensor.size(), "stride": tensor.stride(), "offset": tensor.storage_offset()}
                return {KIND: "view", "of": base, **layout}
        if isinstance(tensor, nn.Parameter) or (tensor.requires_grad and tensor.is_leaf):
            is_parameter = isinstance(tensor, nn.Parameter)
            return {
                KIND: "leaf",
                "data": tensor.detach(),
                "is_parameter": is_parameter,
                "requires_grad": tensor.requires_grad,
            }
        return tensor.detach() if tensor.requires_grad else tensor

    def _array(self, array: Any, path: str) -> Any:
        if (isinstance(array, np.ndarray) and type(array) is not np.ndarray) or array.dtype.hasobject:
            return self._reject(array, path, f"of dtype {array.dtype} cannot be saved")
        if array.dtype.names:
            return self._reject(array, path, "is a structured array, which cannot be saved")
        is_scalar = isinstance(array, np.generic)
        if not is_scalar and array.nbytes:
            self._arrays[path] = array
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        data = bytearray(array.tobytes(order))
        return {
            KIND: "scalar" if is_scalar else "array",
            "dtype": array.dtype.str,
            "shape": tuple(array.shape),
            "order": order,
            "data": torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8),
        }

    def check_overlaps(self) -> None:
        """Check that no array shares memory with another array or tensor.

        Raises:
            UsageError: one does.
        """
        blocks = [(*_bounds(array), path) for path, array in self._arrays.items()]
        for path in self._storages.values() if blocks else ():
            if (tensor := self.objects[path]).device.type == "cpu":
                start = tensor.untyped_storage().data_ptr()
                blocks.append((start, start + tensor.untyped_storage().nbytes(), path))
        end, previous = 0, ""
        for block_start, block_end, path in sorted(blocks):
            if block_start < end:
                self._reject(self.objects[path], path, f"shares memory with {previous} and cannot be saved")
            if block_end > end:
                end, previous = block_end, path

    def _container(self, value: Any, path: str) -> Any:
        if type(value) is list:
            if set(map(type, value)) <= {float, str, bool}:  # a long history of metrics
                return list(value)
            return [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if type(value) is dict and KIND not in value and all(map(_is_plain_key, value)):
            return {key: self.encode(item, f"{path}[{key!r}]") for key, item in value.items()}
        encoded = {KIND: "container", "class": type(value).__name__, "items": self._items(value, path)}
        if isinstance(value, collections.defaultdict):
            encoded["default"] = self.encode(value.default_factory, f"{path}.default_factory")
        if isinstance(value, collections.deque):
            encoded["maxlen"] = value.maxlen
        return encoded

    def _items(self, value: Any, path: str) -> Any:
        """Encode the content of a container."""
        if isinstance(value, bytearray):
            return bytes(value)
        if isinstance(value, dict):
            pairs = enumerate(value.items())
            return [(self.encode(k, f"{path}.<key {i}>"), self.encode(v, f"{path}.<{i}>")) for i, (k, v) in pairs]
        return [self.encode(item, f"{path}[{i}]") for i, item in enumerate(value)]

    def _object(self, value: Any, path: str) -> Any:
        attributes = {name: self.encode(item, f"{path}.{name}") for name, item in attributes_of(value).items()}
        encoded = {KIND: "object", "class": self._class(value, path), "attributes": attributes}
        if isinstance(value, dict | list | set | collections.deque):
            encoded["items"] = self._items(value, path)
        return encoded

    def _module(self, module: nn.Module, path: str) -> Any:
        """Encode a module that is not registered in the algorithm."""
        encoded: dict[str, Any] = {KIND: "module", "class": self._class(module, path), "training": module.training}
        for kind in ("_parameters", "_buffers", "_modules"):
            encoded[kind] = {name: self.encode(m, f"{path}.{name}") for name, m in getattr(module, kind).items()}
        # A library's module may have attributes of any type, which its constructor sets.
        names = vars(module).keys() - MODULE_ATTRIBUTES
        is_constructed = self._is_new or self._construction.class_at.get(path) == encoded["class"]
        if is_constructed and not self._construction.is_own(type(module).__module__):
            names = {name for name in names if type(vars(module)[name]) in SCALARS}
        encoded["attributes"] = {
            name: self.encode(item, f"{path}.{name}") for name, item in vars(module).items() if name in names
        }
        return encoded

    def _optimizer(self, optimizer: torch.optim.Optimizer, path: str) -> Any:
        """Encode an optimizer as its `state_dict`, its parameters and, if the class is not torch's, its attributes."""
        groups = f"{path}.param_groups"
        encoded: dict[str, Any] = {"groups": self._paths.get(id(optimizer.param_groups), groups)}
        if encoded["groups"] == groups:
            self._remember(optimizer.param_groups, groups)
        parameters = [
            [self.encode(p, f"{groups}[{i}].<{j}>") for j, p in enumerate(group["params"])]
            for i, group in enumerate(optimizer.param_groups)
        ]
        for i, group in enumerate(optimizer.param_groups):
            if self._paths.setdefault(id(group), f"{groups}[{i}]") != f"{groups}[{i}]" and encoded["groups"] == groups:
                self._reject(group, f"{groups}[{i}]", "is also referenced elsewhere and cannot be saved")
            self.objects.setdefault(f"{groups}[{i}]", group)
        name = self._class(optimizer, path)
        state = optimizer.state_dict()  # wrappers of optimizers have other keys than torch's
        encoded |= {key: self.encode(item, f"{path}.<{key}>") for key, item in state.items()} | {"keys": list(state)}
        if "param_groups" not in state:
            encoded["group_values"] = [
                {key: self.encode(item, f"{groups}[{i}].{key}") for key, item in group.items() if key != "params"}
                for i, group in enumerate(optimizer.param_groups)
            ]
        extra = {} if is_torch_class(name) else vars(optimizer)
        encoded["attributes"] = {
            name: self.encode(item, f"{path}.{name}")
            for name, item in extra.items()
            if name not in _OPTIMIZER_ATTRIBUTES
        }
        defaults = self.encode(optimizer.defaults, f"{path}.defaults")
        return {**encoded, KIND: "optimizer", "class": name, "parameters": parameters, "defaults": defaults}

    def _with_state_dict(self, value: Any, path: str) -> Any:
        """Encode an object that defines its state itself, such as a scheduler, and the optimizers that it refers to."""
        name = self._class(value, path)
        if not self._is_new and self._construction.class_at.get(path) != name and not is_plain_scheduler(type(value)):
            self._reject(value, path, "was created after the constructor ran, and cannot be recreated")
        optimizers = {
            key: self.encode(item, f"{path}.{key}")
            for key, item in (vars(value).items() if hasattr(value, "__dict__") else ())
            if isinstance(item, torch.optim.Optimizer)
        }
        state = self.encode(value.state_dict(), f"{path}.<state>")
        return {KIND: "state_dict", "class": name, "optimizers": optimizers, "state": state}


def _bounds(array: np.ndarray) -> tuple[int, int]:
    """Return the first address of an array's memory, and the one after its last."""
    offsets = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    start = array.__array_interface__["data"][0]
    return start + sum(min(0, o) for o in offsets), start + sum(max(0, o) for o in offsets) + array.itemsize


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """Return the memory of a tensor, or None if it has none of its own."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return None
    if (
        isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer)
        or not tensor.untyped_storage().nbytes()
    ):
        return None
    return tensor.untyped_storage()


def _is_method_of_object(value: Any) -> bool:
    if not isinstance(value, types.MethodType | types.BuiltinMethodType):
        return False
    owner = value.__self__
    return owner is not None and not isinstance(owner, _REFERENCED) and getattr(owner, value.__name__, None) == value


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _is_plain_key(key: Any) -> bool:
    return type(key) in SCALARS or (type(key) is tuple and all(map(_is_plain_key, key)))
