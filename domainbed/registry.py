"""Registries of components chosen by name: algorithms, datasets, selection methods, launchers, trackers."""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from domainbed.errors import UsageError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """An ordered mapping from names to items. Built-in items and plugins are imported on first access.

    Args:
        kind: the kind of item, used in messages ("algorithm").
        builtin: name -> "module:attribute" of the items that the package provides. Listing names imports nothing.
        group: the entry point group in which other installed packages provide more items.
    """

    def __init__(self, kind: str, builtin: dict[str, str], group: str | None = None) -> None:
        self.kind = kind
        self._builtin = builtin
        self._group = group
        self._registered: dict[str, T] = {}

    @property
    def builtin_names(self) -> tuple[str, ...]:
        """Names of the items that the package provides, in order."""
        return tuple(self._builtin)

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages, by name; a name that is already taken is skipped with a warning."""
        plugins: dict[str, EntryPoint] = {}
        for plugin in entry_points(group=self._group) if self._group else ():
            if plugin.name in self._builtin or plugins.setdefault(plugin.name, plugin).value != plugin.value:
                message = f"skipping {self.kind} {plugin.name!r} of {_package(plugin)}: the name is already taken"
                warnings.warn(message, stacklevel=2)
        return plugins

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object as `name`.

        Raises:
            UsageError: the name is already taken.
        """

        def decorate(item: T) -> T:
            if name in self._builtin or name in self._registered:
                raise UsageError(f"{self.kind} {name!r} is already registered; choose another name")
            self._registered[name] = item
            return item

        return decorate

    @contextmanager
    def temporarily(self, name: str, item: T) -> Iterator[None]:
        """Register `item` as `name` within a `with` block, hiding any item of that name."""
        hidden = {name: self._registered[name]} if name in self._registered else {}
        self._registered[name] = item
        try:
            yield
        finally:
            if hidden:
                self._registered.update(hidden)
            else:
                del self._registered[name]

    def __getitem__(self, name: str) -> T:
        """Return the item called `name`, importing it if necessary.

        Raises:
            UsageError: the name is unknown (the message suggests similar ones), or the import failed.
        """
        if name not in self._registered:
            if name in self._builtin:
                module, attribute = self._builtin[name].split(":")
                self._registered[name] = getattr(importlib.import_module(module), attribute)
            elif name in self._plugins:
                item = self._load(self._plugins[name])
                self._registered.setdefault(name, item)  # the plugin's module may have registered it itself
            else:
                raise UsageError(f"unknown {self.kind} {name!r}; {suggest(name, self)}")
        return self._registered[name]

    def _load(self, plugin: EntryPoint) -> T:
        try:
            return plugin.load()
        except UsageError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(
                f"cannot import {self.kind} {plugin.name!r} ({plugin.value}) of {_package(plugin)}: {reason}"
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._builtin or name in self._registered or name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._builtin, *self._registered, *self._plugins]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _package(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist else "an installed package"


def import_modules(names: Iterable[str]) -> None:
    """Import the user's own modules, which register algorithms, datasets and other items on import.

    The current folder is searched as well, after all others. If there are no modules to import, it is not: it may be
    someone else's, and Python and its packages look for many optional modules.

    Raises:
        UsageError: a name is not a string, or a module cannot be imported.
    """
    names = list(names)
    if names and "" not in sys.path:
        sys.path.append("")
    for name in names:
        if not isinstance(name, str):  # read from a damaged or hand-written file
            raise UsageError(f"cannot import module {name!r}: module names must be strings")
        try:
            importlib.import_module(name)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            hint = "; omit the .py suffix" if name.endswith(".py") else ""
            raise UsageError(f"cannot import module {name}: {type(error).__name__}: {error}{hint}") from error
