"""Registries of components chosen by name: algorithms, datasets, selection methods, launchers, trackers."""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from domainbed.errors import UsageError, suggest

T = TypeVar("T")

_imported: dict[str, None] = {}  # the user's own modules, for messages


def is_builtin(cls: type) -> bool:
    """Return whether a class is part of this package, so that what its code does is known."""
    return cls.__module__.startswith("domainbed.")


class Registry(Generic[T]):
    """An ordered mapping from names to items. Built-in items and plugins are imported on first access.

    Args:
        kind: the kind of item, used in messages ("algorithm").
        builtin: name -> "module:attribute" of the items that the package provides. Listing names imports nothing.
        group: the entry point group in which other installed packages provide more items.
        path: the module and name of the registry, for messages.
        accept: called with the name and the object that a user or a plugin registers; returns the item, or raises
            UsageError.
    """

    def __init__(
        self,
        kind: str,
        builtin: dict[str, str],
        group: str | None = None,
        path: str = "REGISTRY",
        accept: Callable[[str, Any], T] | None = None,
    ) -> None:
        self.kind = kind
        self._builtin = builtin
        self._group = group
        self._path = path
        self._accept = accept
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
            UsageError: the name is already taken, or is missing (`@register` without parentheses).
        """
        if not isinstance(name, str):
            raise UsageError(f"{self._path}.register requires a name: {self._registration(name.__name__)}")

        def decorate(item: T) -> T:
            if name in self._builtin or name in self._registered:
                example = f", such as 'My{name}'" if name in self._builtin else ""
                module = getattr(self._registered.get(name), "__module__", "")
                by = f" by module {module}" if module and name not in self._builtin else ""
                raise UsageError(f"{self.kind} {name!r} is already registered{by}; choose another name{example}")
            self._registered[name] = self._checked(name, item)
            return item

        return decorate

    def _checked(self, name: str, item: Any) -> T:
        return self._accept(name, item) if self._accept else item

    def __setitem__(self, name: str, item: T) -> None:
        """Register an object, as `register` does: `REGISTRY["mine"] = item`."""
        self.register(name)(item)

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
                item = self._checked(name, self._load(self._plugins[name]))
                self._registered.setdefault(name, item)  # the plugin's module may have registered it itself
            else:
                raise self.unknown(name)
        return self._registered[name]

    def unknown(self, name: str, others: Iterable[str] = ()) -> UsageError:
        """Return the error of a name that is not registered: it lists similar names, all names, and how to add one.

        Args:
            name: the unknown name.
            others: what may be named instead of an item, such as groups of items.
        """
        if module := self._defined_in(name):
            how = f"module {module} defines it, but does not register it: add {self._registration(name)}"
            return UsageError(f"unknown {self.kind} {name!r}; {how}")
        names = [*self, *others]
        hint = suggest(name, names)
        listed = "" if hint.startswith("choose") else f" Available: {', '.join(names)}"
        return UsageError(f"unknown {self.kind} {name!r}; {hint}{listed} (--import MODULE adds your own)")

    def homonym_warning(self, name: str) -> str:
        """Return a warning if one of the user's modules defines an item called like a built-in one; otherwise ""."""
        module = self._defined_in(name) if name in self._builtin else ""
        if not module:
            return ""
        return (
            f"{self.kind} {name!r} is the built-in one, not that of module {module}; to use yours, add "
            f"{self._registration(name, f'My{name}')} there"
        )

    def _defined_in(self, name: str) -> str:
        """Return the user's module that defines something called `name` and does not register it, or ""."""
        for module in _imported:
            item = getattr(sys.modules.get(module), name, None)
            if getattr(item, "__module__", None) == module and item not in self._registered.values():
                return module
        return ""

    def _registration(self, name: str, registered_name: str | None = None) -> str:
        """Return the line of code that registers the object called `name`."""
        return f'{self._path}.register("{registered_name or name}")({name})'

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

    def is_plugin(self, name: str) -> bool:
        """Return whether an installed package provides the item called `name`, by an entry point."""
        return name in self._plugins

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
            _imported[name] = None
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            hint = "; omit the .py suffix" if name.endswith(".py") else ""
            raise UsageError(f"cannot import module {name}: {type(error).__name__}: {error}{hint}") from error
