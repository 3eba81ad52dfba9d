"""The training state of an algorithm: everything that its next updates depend on, except for the random generators."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed.algorithms.construction import Construction
from domainbed.algorithms.decoding import Decoder
from domainbed.algorithms.encoding import MODULE_ATTRIBUTES, SCALARS, Encoder
from domainbed.errors import UsageError
from domainbed.registry import is_builtin

# Attributes of nn.Module itself, and that of `Algorithm.record_construction`.
_STATELESS = {*MODULE_ATTRIBUTES, "_constructed"}
_ENGINE_ATTRIBUTES = {"is_compiled", "is_bf16"}  # of featurizers, set from the job's arguments
_LAZY = ("a lazy module", "an uninitialized parameter")  # which an update completes
_PLAIN = (*SCALARS, torch.Tensor, torch.dtype, torch.device)


class Constructed:
    """A record of a new algorithm, with which a later state is compared: a new instance must be able to load it."""

    def __init__(self, algorithm: nn.Module) -> None:
        self.objects = Construction(algorithm)
        self.structure = dict(_structure(algorithm))
        self.buffers = {name for name, _ in algorithm.named_buffers(remove_duplicate=False)}
        self.module_attributes = {
            (name, key): value
            for name, module in algorithm.named_modules()
            for key, value in vars(module).items()
            if type(value) in SCALARS
        }
        self.class_attributes = dict(_class_attributes(algorithm))
        _encode_attributes(algorithm, Encoder(algorithm, self.objects, is_new=True), self)

    def check(self, algorithm: nn.Module) -> None:
        """Check that a new instance has the same modules, parameters and class attributes.

        Raises:
            UsageError: it has not.
        """
        name = type(algorithm).__name__
        structure = dict(_structure(algorithm))
        for path in {**self.structure, **structure}:
            if structure.get(path) != self.structure.get(path) and self.structure.get(path) not in _LAZY:
                before, after = (s.get(path, "nothing") for s in (self.structure, structure))
                raise UsageError(
                    f"an update of {name} changed {path} from {before} to {after}, so the job could not be resumed; "
                    "create all modules and parameters in the constructor, and change them in place"
                )
        for (cls, attribute), value in _class_attributes(algorithm):
            if not _is_equal(self.class_attributes.get((cls, attribute)), value):
                raise UsageError(
                    f"an update of {name} changed the class attribute {cls.__name__}.{attribute}, which checkpoints do "
                    "not contain and other jobs share; make it an attribute of self"
                )


def training_state(algorithm: nn.Module, constructed: Constructed | None) -> dict[str, Any]:
    """Return the state; see `Algorithm.training_state`. Tensors share the memory of the algorithm's.

    Args:
        algorithm: the algorithm.
        constructed: the record of the algorithm after its constructor; None if only the constructor has run.

    Raises:
        UsageError: a part of the state cannot be saved, or not be loaded by a new instance.
    """
    if constructed is None:
        constructed = Constructed(algorithm)
    constructed.check(algorithm)
    encoder = Encoder(algorithm, constructed.objects, is_new=False)
    modules = algorithm.state_dict()
    # Buffers that the state_dict lacks, or that a new instance does not have yet.
    buffers = {
        name: (buffer, name in modules)
        for name, buffer in algorithm.named_buffers(remove_duplicate=False)  # the state_dict has all names of each
        if name not in modules or name not in constructed.buffers
    }
    for name, value in list(modules.items()):
        if name in buffers:
            del modules[name]
        elif not isinstance(value, torch.Tensor):  # of `get_extra_state`
            modules[name] = encoder.encode(value, f"self.<{name}>")
    state = {
        "modules": modules,
        "buffers": buffers,
        "frozen": [name for name, p in algorithm.named_parameters() if not p.requires_grad],
        "evaluating": [name for name, module in algorithm.named_modules() if not module.training],
        **_encode_attributes(algorithm, encoder, constructed),
    }
    encoder.check_overlaps()
    if not is_builtin(type(algorithm)):  # these discard the gradients of earlier updates
        state["gradients"] = {
            path: value.grad
            for path, value in encoder.objects.items()
            if isinstance(value, torch.Tensor) and value.is_leaf and value.grad is not None
        }
    return state


def load_training_state(algorithm: nn.Module, state: Mapping[str, Any], constructed: Constructed | None) -> None:
    """Restore a state into an algorithm that was constructed with the same arguments.

    Raises:
        Exception: the state is that of another class; RuntimeError, ValueError, KeyError, TypeError, AttributeError.
    """
    if constructed is None:
        constructed = Constructed(algorithm)
    decoder = Decoder(algorithm, constructed.objects)
    modules = {
        name: decoder.decode(value, None, f"self.<{name}>") if isinstance(value, dict) else value
        for name, value in state["modules"].items()
    }
    algorithm.load_state_dict(modules)
    if "frozen" not in state:  # saved by an earlier version
        for name, value in state["attributes"].items():
            setattr(algorithm, name, _restored(decoder, getattr(algorithm, name, None), value, f"self.{name}"))
        return
    for name, (buffer, is_persistent) in state["buffers"].items():
        module, _, leaf = name.rpartition(".")
        parent = algorithm.get_submodule(module)
        current = getattr(parent, leaf, None)
        saved = buffer.clone() if current is None else buffer.to(current.device, copy=True)
        if leaf in parent._buffers:
            parent._buffers[leaf] = saved
        else:
            parent.register_buffer(leaf, saved, persistent=is_persistent)
    decoder = Decoder(algorithm, constructed.objects)
    for name, parameter in algorithm.named_parameters():
        parameter.requires_grad_(name not in state["frozen"])
    for name, module in algorithm.named_modules():
        module.training = name not in state["evaluating"]
    skipped = {*_STATELESS, *getattr(algorithm, "UNSAVED", ())}
    current = {name: value for name, value in vars(algorithm).items() if name not in skipped}
    decoder.restore_attributes(algorithm, state["attributes"], current, "self")
    for name, attributes in state["module_attributes"].items():
        module, path = algorithm.get_submodule(name), f"self.{name}"
        for key, value in attributes.items():
            vars(module)[key] = decoder.decode(value, vars(module).get(key), f"{path}.{key}")
    gradients = state.get("gradients", {})
    for path, value in decoder.objects.items():
        if isinstance(value, torch.Tensor) and value.is_leaf and (value.grad is not None or path in gradients):
            gradient = gradients.get(path)
            value.grad = None if gradient is None else gradient.to(value.device, copy=True)


def check_plain(state: Any, path: str = "training_state()") -> None:
    """Check that a state consists of values that `torch.load` reads with `weights_only=True`.

    Raises:
        UsageError: it does not, because of a class of the user's.
    """
    if isinstance(state, dict):
        for key, value in state.items():
            if type(key) not in SCALARS:
                check_plain(key, f"a key of {path}")
            if type(value) not in SCALARS:
                check_plain(value, f"{path}[{key!r}]")
    elif type(state) in (list, tuple, torch.Size):
        for i, value in enumerate(state):
            if type(value) not in SCALARS:
                check_plain(value, f"{path}[{i}]")
    elif type(state) not in _PLAIN and not isinstance(state, torch.Tensor):
        raise UsageError(
            f"{path} is of type {type(state).__name__}, and loading it from a checkpoint could run code; return "
            "tensors, numbers, strings, and lists, tuples and dicts of these, or pass --trust_checkpoint"
        )


def _encode_attributes(algorithm: nn.Module, encoder: Encoder, constructed: Constructed) -> dict[str, Any]:
    """Return the attributes of the algorithm, and those of its modules that its updates may have changed."""
    # Optimizers first: other attributes may refer to their parameter groups.
    named = sorted(vars(algorithm).items(), key=lambda item: not isinstance(item[1], torch.optim.Optimizer))
    skipped = {*_STATELESS, *getattr(algorithm, "UNSAVED", ())}
    attributes = {name: encoder.encode(value, f"self.{name}") for name, value in named if name not in skipped}
    of_modules: dict[str, dict[str, Any]] = {}
    for name, module in algorithm.named_modules():
        is_own = constructed.objects.is_own(type(module).__module__)
        for key, value in vars(module).items() if module is not algorithm else ():
            if key in MODULE_ATTRIBUTES or key in _ENGINE_ATTRIBUTES:
                continue
            if type(value) in SCALARS:
                before = constructed.module_attributes.get((name, key), constructed)
                is_saved = type(before) is not type(value) or before != value
            else:
                is_saved = is_own  # the constructors of library classes may set attributes of any type
            if is_saved:
                of_modules.setdefault(name, {})[key] = encoder.encode(value, f"self.{name}.{key}")
    return {"attributes": attributes, "module_attributes": of_modules}


def _structure(algorithm: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the path of each module and parameter, and a description that a new instance must match."""
    first: dict[int, str] = {}
    for name, module in algorithm.named_modules(remove_duplicate=False):
        path = f"self.{name}"
        if (other := first.setdefault(id(module), path)) != path:
            yield path, f"the same as {other}"
        elif isinstance(module, nn.modules.lazy.LazyModuleMixin):
            yield path, _LAZY[0]
        else:
            yield path, f"{'an' if type(module).__name__[0] in 'AEIOU' else 'a'} {type(module).__name__}"
    for name, parameter in algorithm.named_parameters(remove_duplicate=False):
        path = f"self.{name}"
        if (other := first.setdefault(id(parameter), path)) != path:
            yield path, f"the same as {other}"
        elif isinstance(parameter, nn.parameter.UninitializedParameter):
            yield path, _LAZY[1]
        else:
            yield path, f"a parameter of shape {list(parameter.shape)} and type {parameter.dtype}"


def _class_attributes(algorithm: nn.Module) -> Iterator[tuple[tuple[type, str], Any]]:
    """Yield the data in the user's classes, in a form that shows whether it has changed."""
    for cls in type(algorithm).__mro__:
        if cls.__module__.partition(".")[0] not in ("builtins", "torch", "domainbed", "typing", "abc"):
            for name, value in vars(cls).items():
                if not name.startswith("__") and name != "_abc_impl" and not _is_descriptor(value):
                    yield (cls, name), _fingerprint(value)


def _is_descriptor(value: Any) -> bool:
    return hasattr(value, "__get__") or isinstance(value, type)


def _fingerprint(value: Any, depth: int = 0) -> Any:
    if isinstance(value, torch.Tensor):
        return ("tensor", id(value), None if value.is_inference() else value._version)
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.tobytes() if not value.dtype.hasobject else None)
    if depth < 20 and isinstance(value, Mapping):
        return {key: _fingerprint(item, depth + 1) for key, item in value.items()}
    if depth < 20 and isinstance(value, list | tuple | set | frozenset):
        return [_fingerprint(item, depth + 1) for item in value]
    return value if type(value) in SCALARS else id(value)


def _is_equal(first: Any, second: Any) -> bool:
    return first == second or (first != first and second != second)  # NaN


def _restored(decoder: Decoder, current: Any, saved: Any, path: str) -> Any:
    """Return an attribute saved by an earlier version, which did not distinguish kinds of objects."""
    if hasattr(current, "load_state_dict"):
        current.load_state_dict(copy.deepcopy(saved))
        return current
    if type(current) in (list, tuple) and len(current) == len(saved):
        return type(current)(_restored(decoder, c, s, path) for c, s in zip(current, saved, strict=True))
    if isinstance(current, dict) and isinstance(saved, dict):
        return {key: _restored(decoder, current.get(key), item, path) for key, item in saved.items()}
    return decoder.decode(saved, current, path)
