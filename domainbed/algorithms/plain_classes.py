"""Classes whose instances are restored from their attributes and items."""

import collections
from collections.abc import Mapping
from typing import Any

_HEAP_TYPE = 1 << 9  # the flag of classes defined in Python


def is_plain_class(cls: type) -> bool:
    """Return whether the state of the class's instances is their attributes and the items of a builtin container."""
    bases = [c for c in cls.__mro__ if c is not object and not c.__flags__ & _HEAP_TYPE]
    if any(c not in (dict, list, set, collections.deque, collections.OrderedDict) for c in bases):
        return False
    if not bases and cls.__basicsize__ > object.__basicsize__ + 8 * (2 + len(_slots(cls))):
        return False  # implemented in C
    custom = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    return not any(
        name in vars(c) and vars(c)[name].__module__ != "dataclasses"  # of classes that are frozen and have slots
        for c in cls.__mro__
        for name in custom
        if c is not object and c not in bases
    )


def _slots(cls: type) -> list[str]:
    names: list[str] = []
    for c in cls.__mro__:
        slots = vars(c).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{c.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def attributes_of(value: Any) -> Mapping[str, Any]:
    """Return the attributes of an instance of a plain class."""
    slots = {name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **slots}
