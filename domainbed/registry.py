"""One small registry for everything that is chosen by name: algorithms, datasets, selection methods, launchers."""

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from domainbed.errors import UsageError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names, in order, and what they stand for.

    Args:
        kind: what is registered here, for messages ("algorithm").
        builtin: name -> "module:attribute" of what the package brings along. It is imported when first asked for,
            so that listing the names costs no import of torch.
        group: the group of entry points under which other installed packages bring more, likewise.
    """

    def __init__(self, kind: str, builtin: dict[str, str], group: str | None = None) -> None:
        self.kind = kind
        self._builtin = builtin
        self._group = group
        self._registered: dict[str, T] = {}

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        """The entry points of installed packages, by name. Names that are taken are not theirs to give."""
        plugins: dict[str, EntryPoint] = {}
        for plugin in entry_points(group=self._group) if self._group else ():
            if plugin.name in self._builtin or plugins.setdefault(plugin.name, plugin).value != plugin.value:
                of = plugin.dist.name if plugin.dist else "an installed package"
                warnings.warn(f"{self.kind} {plugin.name!r} of {of} is left out: the name is taken", stacklevel=2)
        return plugins

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the decorated object known as `name`."""

        def decorate(item: T) -> T:
            if name in self._builtin or name in self._registered:
                raise UsageError(f"{self.kind} {name!r} is registered already; choose another name")
            self._registered[name] = item
            return item

        return decorate

    def __getitem__(self, name: str) -> T:
        """What `name` stands for. Raises UsageError, with the names near to it, where there is none."""
        if name in self._builtin and name not in self._registered:
            module, attribute = self._builtin[name].split(":")
            self._registered[name] = getattr(importlib.import_module(module), attribute)
        self.import_plugin(name)
        if name not in self._registered:
            raise UsageError(f"unknown {self.kind} {name!r}; {suggest(name, self)}")
        return self._registered[name]

    def import_plugin(self, name: str) -> None:
        """Import what an installed package brings under this name, if one does.

        As it is imported, its module may register more, such as an algorithm's hyperparameters.
        """
        if name not in self._plugins or name in self._registered:
            return
        plugin = self._plugins[name]
        try:
            item = plugin.load()
        except UsageError:
            raise
        except Exception as error:
            package = plugin.dist.name if plugin.dist else "an installed package"
            raise UsageError(
                f"can't import {self.kind} {name!r} ({plugin.value}) of {package}: {type(error).__name__}: {error}"
            ) from error
        self._registered.setdefault(name, item)  # its module may have registered it itself

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._registered or name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._builtin, *self._registered, *self._plugins]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def import_modules(names: Iterable[str]) -> None:
    """Import the user's own modules, which register algorithms and datasets as they are imported."""
    for name in names:
        if not isinstance(name, str):  # out of a file that somebody wrote
            raise UsageError(f"can't import your module {name!r}: its name must be text")
        try:
            importlib.import_module(name)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            hint = "; give its name without .py" if name.endswith(".py") else ""
            raise UsageError(f"can't import your module {name}: {type(error).__name__}: {error}{hint}") from error
