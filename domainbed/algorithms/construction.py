"""Functions and classes to which a checkpoint refers, because the constructor of an algorithm determines them."""

import os
import sys
import sysconfig
from typing import Any

import torch
from torch import nn

_LIBRARIES = {"builtins", "torch", "domainbed"}  # whose classes and functions are known to keep no hidden state
LIBRARY_FOLDERS = tuple(  # of Python and of installed packages
    os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_BUILTINS = {cls.__name__: cls for cls in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}


class Construction:
    """What the constructor of an algorithm determines: a checkpoint refers to it instead of containing it.

    Attributes:
        references: functions and classes, by path.
        classes: the classes of objects, by name.
        class_at: the names of the classes of objects, by path.
    """

    def __init__(self, algorithm: nn.Module) -> None:
        mro = [c for c in type(algorithm).__mro__ if c is not object]
        self.references: dict[str, Any] = {}
        self.classes: dict[str, type] = {}
        self.class_at: dict[str, str] = {}
        self._own = {_package(c.__module__) for c in mro} - _LIBRARIES
        self._modules = {c.__module__ for c in mro}

    def add_class(self, cls: type, path: str) -> None:
        """Note that the constructor made an object of this class."""
        self.classes[class_name(cls)] = cls
        self.class_at[path] = class_name(cls)

    def is_own(self, module: str) -> bool:
        """Return whether a module is the user's: in a package of the algorithm's classes, or not in a library."""
        package = _package(module)
        if package in _LIBRARIES:
            return False
        file = getattr(sys.modules.get(module), "__file__", None)
        return package in self._own or (file is not None and not file.startswith(LIBRARY_FOLDERS))

    def find_class(self, name: str) -> type | None:
        """Return the class of this name if it is torch's, or defined in a module of the algorithm or of its objects."""
        if name in self.classes:
            return self.classes[name]
        found = self.find(name)
        return found if isinstance(found, type) else None

    def find(self, name: str) -> Any:
        """Return the function or class called `module:name`, or None; see `find_class`.

        What a module imports from elsewhere is not found: a forged checkpoint could name `os.system`.
        """
        module, _, path = name.partition(":")
        if module == "builtins":
            return _BUILTINS.get(path)
        if module not in self._modules | {c.__module__ for c in self.classes.values()} and not is_torch_class(name):
            return None
        found: Any = sys.modules.get(module)
        for attribute in path.split("."):
            found = getattr(found, attribute, None)
        is_defined_there = hasattr(found, "__qualname__") and class_name(found) == name
        return found if is_defined_there else None


def class_name(cls: Any) -> str:
    """Return the name under which a class or function is saved."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_torch_class(name: str) -> bool:
    """Return whether a saved name is that of an optimizer, scheduler or layer of torch."""
    return name.startswith(("torch.optim.", "torch.nn."))


def is_plain_scheduler(cls: type) -> bool:
    """Return whether this is a scheduler of torch whose state consists of all its attributes but the optimizer."""
    base = torch.optim.lr_scheduler.LRScheduler
    return (
        issubclass(cls, base)
        and is_torch_class(class_name(cls))
        and vars(cls).get("state_dict", base.state_dict) is base.state_dict
    )


def _package(module: str) -> str:
    return module.partition(".")[0]
