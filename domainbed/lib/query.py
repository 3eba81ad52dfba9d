"""Lists of records with DomainBed's query methods: `Q(records).group("args.algorithm")`."""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

# A function, or a string: "x.y" is obj["x"]["y"], and "x,y" is (obj["x"], obj["y"]).
Selector: TypeAlias = str | Callable[[Any], Any]


def make_selector_fn(selector: Selector) -> Callable[[Any], Any]:
    """Return the function that a selector stands for."""
    if callable(selector):
        return selector
    if "," in selector:
        parts = [make_selector_fn(part) for part in selector.split(",")]
        return lambda obj: tuple(part(obj) for part in parts)

    def select(obj: Any) -> Any:
        for key in selector.split("."):
            obj = obj[key.strip()]
        return obj

    return select


def hashable(obj: Any) -> Any:
    """Return the object itself or, if it cannot be hashed, its JSON."""
    try:
        hash(obj)
        return obj
    except TypeError:
        return json.dumps({"_": obj}, sort_keys=True)


class Q:
    """A list with query methods. Methods that return several items return a Q."""

    def __init__(self, list_: Iterable[Any]) -> None:
        self._list = list_ if isinstance(list_, list) else list(list_)

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, key: Any) -> Any:
        return self._list[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list)

    def __eq__(self, other: object) -> bool:
        return self._list == (other._list if isinstance(other, Q) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._list)

    def group(self, selector: Selector) -> "Q":
        """Return a pair (key, items) for each value of the selector, sorted by key."""
        select = make_selector_fn(selector)
        groups: dict[Any, tuple[Any, list[Any]]] = {}
        for item in self._list:
            key = select(item)
            groups.setdefault(hashable(key), (key, []))[1].append(item)
        return Q([(groups[key][0], Q(groups[key][1])) for key in sorted(groups)])

    def group_map(self, selector: Selector, fn: Callable[..., Any]) -> "Q":
        """Return `fn(key, items)` of each group."""
        return self.group(selector).map(fn)

    def map(self, fn: Callable[..., Any]) -> "Q":
        """Return `fn` of each item; a function with several parameters receives the elements of the item."""
        is_starred = len(inspect.signature(fn).parameters) > 1
        return Q([fn(*item) if is_starred else fn(item) for item in self._list])

    def select(self, selector: Selector) -> "Q":
        return Q(list(map(make_selector_fn(selector), self._list)))

    def min(self) -> Any:
        return min(self._list)

    def max(self) -> Any:
        return max(self._list)

    def sum(self) -> Any:
        return sum(self._list)

    def len(self) -> int:
        return len(self._list)

    def mean(self) -> float:
        return float(np.mean(self._list)) if self._list else math.nan

    def std(self) -> float:
        return float(np.std(self._list)) if self._list else math.nan

    def mean_std(self) -> tuple[float, float]:
        return self.mean(), self.std()

    def argmax(self, selector: Selector) -> Any:
        """Return the first item with the largest value of the selector."""
        return max(self._list, key=make_selector_fn(selector))

    def filter(self, fn: Callable[[Any], Any]) -> "Q":
        return Q([item for item in self._list if fn(item)])

    def filter_equals(self, selector: Selector, value: Any) -> "Q":
        """Return the items for which the selector equals `value`."""
        select = make_selector_fn(selector)
        # A tuple of values equals a list of values, as in JSON.
        return self.filter(lambda item: _listed(select(item)) == _listed(value))

    def filter_not_none(self) -> "Q":
        return self.filter(lambda item: item is not None)

    def filter_not_nan(self) -> "Q":
        return self.filter(lambda item: not np.isnan(item))

    def flatten(self) -> "Q":
        """Return the items of the items."""
        return Q([element for item in self._list for element in item])

    def unique(self) -> "Q":
        """Return each item once, in the order of their first occurrence."""
        firsts: dict[Any, Any] = {}
        for item in self._list:
            firsts.setdefault(hashable(item), item)
        return Q(list(firsts.values()))

    def sorted(self, key: Callable[[Any], Any] = lambda item: item) -> "Q":
        """Return the items by ascending key; NaN comes first."""
        keys = [key(item) for item in self._list]
        ranks = [-math.inf if isinstance(k, float | np.floating) and math.isnan(k) else k for k in keys]
        return Q([self._list[i] for i in sorted(range(len(ranks)), key=ranks.__getitem__)])


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
