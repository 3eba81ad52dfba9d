"""One small registry for everything that is chosen by name: algorithms, datasets, selection methods, launchers."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from domainbed.errors import UsageError, near

T = TypeVar("T")


class Registry(Generic[T]):
    """Names, in order, and what they stand for.

    Args:
        kind: what is registered here, for messages ("algorithm").
        builtin: name -> "module:attribute" of what the package brings along. It is imported when first asked for,
            so that listing the names costs no import of torch.
    """

    def __init__(self, kind: str, builtin: dict[str, str]) -> None:
        self.kind = kind
        self._builtin = builtin
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the decorated object known as `name`."""

        def decorate(item: T) -> T:
            if name in self:
                raise UsageError(f"{self.kind} {name!r} is registered already; choose another name")
            self._registered[name] = item
            return item

        return decorate

    def __getitem__(self, name: str) -> T:
        """What `name` stands for. Raises UsageError, with the names near to it, where there is none."""
        if name in self._builtin and name not in self._registered:
            module, attribute = self._builtin[name].split(":")
            self._registered[name] = getattr(importlib.import_module(module), attribute)
        if name not in self._registered:
            raise UsageError(f"unknown {self.kind} {name!r}; {near(name, self)}")
        return self._registered[name]

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._registered

    def __iter__(self) -> Iterator[str]:
        return iter([*self._builtin, *(n for n in self._registered if n not in self._builtin)])

    def __len__(self) -> int:
        return len(list(iter(self)))


def import_modules(names: Iterable[str]) -> None:
    """Import the user's own modules, which register algorithms and datasets as they are imported."""
    for name in names:
        try:
            importlib.import_module(name)
        except UsageError:
            raise
        except Exception as error:
            hint = "; give its name without .py" if name.endswith(".py") else ""
            raise UsageError(f"can't import your module {name}: {type(error).__name__}: {error}{hint}") from error
