"""Restores objects from the plain values made by `encoding.py`, into those of a newly constructed algorithm."""

import collections
import copy
import functools
import random
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.algorithms.construction import Construction, is_plain_scheduler
from domainbed.algorithms.encoding import CONTAINERS, KIND, MODULE_ATTRIBUTES, members
from domainbed.algorithms.plain_classes import attributes_of


class Decoder:
    """Restores encoded objects. Objects of the algorithm are changed in place where that is possible.

    Args:
        algorithm: newly constructed; the state of its registered modules has been restored.
        construction: what its constructor determines.

    Attributes:
        objects: the objects restored so far and the members of the algorithm, by path.
    """

    def __init__(self, algorithm: nn.Module, construction: Construction) -> None:
        self.objects: dict[str, Any] = dict(members(algorithm))
        self._construction = construction
        self._restored: dict[int, Any] = {}  # by id: the objects that have been changed in place

    def decode(self, saved: Any, current: Any, path: str) -> Any:
        """Return the saved object.

        Args:
            saved: plain values. They are not changed, and no tensor of the result shares their memory.
            current: the object at this path of the new algorithm; any other value if there is none.
            path: the path from which the object was encoded.
        """
        if type(saved) is tuple:
            return tuple(self._decode_items(saved, current, path))
        if isinstance(saved, torch.Tensor):
            return self._add(path, self._tensor(saved, current))
        if type(saved) is list:
            return self._fill_list([], saved, current, path)
        if not isinstance(saved, dict):
            return saved
        if KIND not in saved:
            return self._fill_dict({}, saved, current, path)
        return getattr(self, "_" + saved[KIND].replace(" ", "_"))(saved, current, path)

    def _add(self, path: str, value: Any) -> Any:
        self.objects[path] = value
        return value

    def _reuse(self, current: Any, cls: type) -> Any:
        """Return the current object if it is of this class and does not represent another saved object yet."""
        if type(current) is not cls or id(current) in self._restored:
            return None
        self._restored[id(current)] = current
        return current

    def _decode_items(self, saved: Iterable[Any], current: Any, path: str) -> list[Any]:
        items = list(current) if isinstance(current, list | tuple | collections.deque) else []
        return [self.decode(item, items[i] if i < len(items) else None, f"{path}[{i}]") for i, item in enumerate(saved)]

    def _fill_list(self, new: list, saved: Any, current: Any, path: str) -> Any:
        old = self._reuse(current, list)
        target = self._add(path, new if old is None else old)
        target[:] = self._decode_items(saved, list(target), path)
        return target

    def _fill_dict(self, new: dict, saved: Any, current: Any, path: str) -> Any:
        old = self._reuse(current, dict)
        target = self._add(path, new if old is None else old)
        items = {key: self.decode(item, target.get(key), f"{path}[{key!r}]") for key, item in saved.items()}
        target.clear()
        target.update(items)
        return target

    def _same(self, saved: Any, current: Any, path: str) -> Any:
        return self.objects[saved["as"]]

    def _int(self, saved: Any, current: Any, path: str) -> int:
        return int(saved["value"], 16)

    def _tensor(self, saved: torch.Tensor, current: Any) -> torch.Tensor:
        device = current.device if isinstance(current, torch.Tensor) else saved.device
        return copy.deepcopy(saved) if device == saved.device else saved.to(device)  # deepcopy copies its whole storage

    def _leaf(self, saved: Any, current: Any, path: str) -> torch.Tensor:
        """Restore a tensor that is trained, in place, because an optimizer or a closure may refer to it."""
        data, cls = saved["data"], nn.Parameter if saved["is_parameter"] else torch.Tensor
        if _has_layout(current, data) and current.is_leaf and (target := self._reuse(current, cls)) is not None:
            with torch.no_grad():
                target.copy_(data)
            return self._add(path, target.requires_grad_(saved["requires_grad"]))
        data = self._tensor(data, current)
        if saved["is_parameter"]:
            return self._add(path, nn.Parameter(data, saved["requires_grad"]))
        return self._add(path, data.requires_grad_())

    def _view(self, saved: Any, current: Any, path: str) -> torch.Tensor:
        base = self.objects[saved["of"]].detach()
        return self._add(path, base.as_strided(saved["size"], saved["stride"], saved["offset"]))

    def _array(self, saved: Any, current: Any, path: str) -> np.ndarray:
        data = np.frombuffer(saved["data"].cpu().numpy().tobytes(), dtype=np.dtype(saved["dtype"]))
        array = data.reshape(saved["shape"], order=saved["order"])
        is_alike = isinstance(current, np.ndarray) and (current.dtype, current.shape, current.strides) == (
            array.dtype,
            array.shape,
            array.strides,
        )
        if is_alike and current.flags.writeable and (old := self._reuse(current, np.ndarray)) is not None:
            old[...] = array
            return self._add(path, old)
        return self._add(path, array.copy(order=saved["order"]))

    def _scalar(self, saved: Any, current: Any, path: str) -> Any:
        return self._add(path, np.frombuffer(saved["data"].cpu().numpy().tobytes(), dtype=np.dtype(saved["dtype"]))[0])

    def _torch_generator(self, saved: Any, current: Any, path: str) -> torch.Generator:
        generator = self._reuse(current, torch.Generator) or torch.Generator(saved["device"])
        generator.set_state(saved["state"].cpu())
        return self._add(path, generator)

    def _bits(self, saved: Any, current: Any, path: str) -> np.random.BitGenerator:
        cls = getattr(np.random, saved["class"])
        bits = self._reuse(current, cls) or cls()
        bits.state = saved["state"]
        return self._add(path, bits)

    def _numpy_generator(self, saved: Any, current: Any, path: str) -> np.random.Generator:
        old = self._reuse(current, np.random.Generator)
        bits = self.decode(saved["bits"], old.bit_generator if old else None, f"{path}.bit_generator")
        return self._add(path, old if old and old.bit_generator is bits else np.random.Generator(bits))

    def _random_state(self, saved: Any, current: Any, path: str) -> np.random.RandomState:
        generator = self._reuse(current, np.random.RandomState) or np.random.RandomState()
        generator.set_state(saved["state"])
        return self._add(path, generator)

    def _python_generator(self, saved: Any, current: Any, path: str) -> random.Random:
        generator = self._reuse(current, random.Random) or random.Random()
        generator.setstate(saved["state"])
        return self._add(path, generator)

    def _enum(self, saved: Any, current: Any, path: str) -> Any:
        return self._add(path, self._class(saved)[saved["name"]])

    def _path(self, saved: Any, current: Any, path: str) -> Path:
        return self._add(path, Path(saved["value"]))

    def _value(self, saved: Any, current: Any, path: str) -> Any:
        cls = {"complex": complex, "range": range, "slice": slice}[saved["class"]]
        return self._add(path, cls(*saved["parts"]))

    def _namedtuple(self, saved: Any, current: Any, path: str) -> Any:
        return self._add(path, self._class(saved)._make(self._decode_items(saved["items"], current, path)))

    def _container(self, saved: Any, current: Any, path: str) -> Any:
        cls = CONTAINERS[saved["class"]]
        if cls is frozenset:
            return self._add(path, frozenset(self._decode_items(saved["items"], None, path)))
        target = self._reuse(current, cls)
        if isinstance(target, collections.deque) and target.maxlen != saved["maxlen"]:
            target = None
        if target is None:
            target = cls(maxlen=saved["maxlen"]) if cls is collections.deque else cls()
        self._add(path, target)
        if isinstance(target, collections.defaultdict):
            target.default_factory = self.decode(saved["default"], None, f"{path}.default_factory")
        return self._fill(target, saved["items"], path)

    def _fill(self, target: Any, saved: Any, path: str) -> Any:
        """Replace the content of a container."""
        if isinstance(target, bytearray):
            target[:] = saved
        elif isinstance(target, dict):
            values = list(target.values())
            pairs = [
                (
                    self.decode(key, None, f"{path}.<key {i}>"),
                    self.decode(item, values[i] if i < len(values) else None, f"{path}.<{i}>"),
                )
                for i, (key, item) in enumerate(saved)
            ]
            mapping = collections.OrderedDict if isinstance(target, collections.OrderedDict) else dict
            mapping.clear(target)
            for key, item in pairs:
                mapping.__setitem__(target, key, item)
        else:
            items = self._decode_items(saved, target, path)
            base: Any = next(c for c in (list, set, collections.deque) if isinstance(target, c))
            base.clear(target)
            for item in items:
                (base.add if base is set else base.append)(target, item)
        return target

    def _class(self, saved: Any) -> Any:
        if (cls := self._construction.find_class(saved["class"])) is None:
            raise KeyError(f"unknown class {saved['class']}")
        return cls

    def _object(self, saved: Any, current: Any, path: str) -> Any:
        cls = self._class(saved)
        target = self._reuse(current, cls)
        if target is None:
            bases = (collections.OrderedDict, dict, list, set, collections.deque, object)
            target = next(c for c in bases if issubclass(cls, c)).__new__(cls)
        self._add(path, target)
        self.restore_attributes(target, saved["attributes"], attributes_of(target), path)
        return self._fill(target, saved["items"], path) if "items" in saved else target

    def restore_attributes(self, target: Any, saved: Any, current: Any, path: str) -> None:
        """Restore the attributes of an object, and delete those among `current` that were not saved."""
        for name in current.keys() - saved.keys():
            object.__delattr__(target, name)
        for name, item in saved.items():
            value = self.decode(item, current.get(name), f"{path}.{name}")
            if hasattr(target, "__dict__") and name not in _slot_names(type(target)):
                vars(target)[name] = value  # also if the class is frozen
            else:
                object.__setattr__(target, name, value)

    def _module(self, saved: Any, current: Any, path: str) -> nn.Module:
        cls = self._class(saved)
        target = self._reuse(current, cls)
        is_new = target is None
        if is_new:
            target = cls.__new__(cls)
            nn.Module.__init__(target)
        self._add(path, target)
        for kind in ("_parameters", "_buffers", "_modules"):
            old = getattr(target, kind)
            items = {name: self.decode(item, old.get(name), f"{path}.{name}") for name, item in saved[kind].items()}
            old.clear()
            old.update(items)
        current_attributes = {name: item for name, item in vars(target).items() if name not in MODULE_ATTRIBUTES}
        kept = {} if is_new else {n: v for n, v in current_attributes.items() if n in saved["attributes"]}
        self.restore_attributes(target, saved["attributes"], kept, path)
        target.training = saved["training"]
        return target

    def _optimizer(self, saved: Any, current: Any, path: str) -> torch.optim.Optimizer:
        cls = self._class(saved)
        target = self._reuse(current, cls)
        if target is None:
            target = cls.__new__(cls)
            target.__setstate__({"defaults": {}, "state": collections.defaultdict(dict), "param_groups": []})
        self._add(path, target)
        groups = f"{path}.param_groups"
        parameters = []
        for i, of_group in enumerate(saved["parameters"]):
            old = target.param_groups[i]["params"] if i < len(target.param_groups) else []
            old = old + [None] * len(of_group)
            parameters.append([self.decode(p, old[j], f"{groups}[{i}].<{j}>") for j, p in enumerate(of_group)])
        target.param_groups = [{"params": of_group} for of_group in parameters]
        for i, values in enumerate(saved.get("group_values", ())):
            target.param_groups[i] |= {k: self.decode(v, None, f"{groups}[{i}].{k}") for k, v in values.items()}
        keys = saved.get("keys", ("state", "param_groups"))  # earlier versions did not save them
        target.load_state_dict({key: self.decode(saved[key], None, f"{path}.<{key}>") for key in keys})
        if saved["groups"] != groups:  # shared with another optimizer
            target.param_groups = self.objects[saved["groups"]]
        self._add(groups, target.param_groups)
        for i, group in enumerate(target.param_groups):
            self._add(f"{groups}[{i}]", group)
        for name, item in saved["attributes"].items():
            setattr(target, name, self.decode(item, getattr(target, name, None), f"{path}.{name}"))
        target.defaults = self.decode(saved["defaults"], target.defaults, f"{path}.defaults")
        return target

    def _state_dict(self, saved: Any, current: Any, path: str) -> Any:
        cls = self._class(saved)
        target = self._reuse(current, cls)
        if target is None:
            if not is_plain_scheduler(cls):
                raise ValueError(f"{path} was saved from an object that the constructor does not make")
            target = cls.__new__(cls)
        self._add(path, target)
        for name, item in saved["optimizers"].items():
            setattr(target, name, self.decode(item, getattr(target, name, None), f"{path}.{name}"))
        target.load_state_dict(self.decode(saved["state"], None, f"{path}.<state>"))
        return target

    def _partial(self, saved: Any, current: Any, path: str) -> functools.partial:
        old = current if type(current) is functools.partial else functools.partial(int)
        function = self.decode(saved["function"], old.func, f"{path}.function")
        args = self.decode(saved["args"], old.args, f"{path}.args")
        keywords = self.decode(saved["keywords"], old.keywords, f"{path}.keywords")
        return self._add(path, functools.partial(function, *args, **keywords))

    def _method(self, saved: Any, current: Any, path: str) -> Any:
        owner = self.decode(saved["of"], getattr(current, "__self__", None), f"{path}.__self__")
        return self._add(path, getattr(owner, saved["name"]))

    def _reference(self, saved: Any, current: Any, path: str) -> Any:
        known = self._construction.references
        value = known[saved["to"]] if saved["to"] in known else self._construction.find(saved["to"])
        if value is None:
            raise KeyError(f"unknown function or class {saved['to']}")
        self._add(path, value)
        if isinstance(value, types.FunctionType):
            cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
            for name, item in saved.get("variables", {}).items():
                if name in cells:
                    cells[name].cell_contents = self.decode(item, _content(cells[name]), f"{path}.<{name}>")
                else:  # a mutable default value
                    self.decode(item, (value.__defaults__ or ())[int(name)], f"{path}.<{name}>")
            for name, item in saved.get("attributes", {}).items():
                vars(value)[name] = self.decode(item, vars(value).get(name), f"{path}.{name}")
        return value


def _slot_names(cls: type) -> set[str]:
    return {name for c in cls.__mro__ for name, item in vars(c).items() if isinstance(item, types.MemberDescriptorType)}


def _has_layout(current: Any, saved: torch.Tensor) -> bool:
    """Return whether the saved values can be copied to a tensor bit for bit, including its memory format."""
    return (
        isinstance(current, torch.Tensor)
        and current.layout == saved.layout == torch.strided
        and (current.dtype, current.shape, current.stride()) == (saved.dtype, saved.shape, saved.stride())
    )


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
