"""Command-line options that are declared once, as fields of a dataclass.

@dataclass(frozen=True)
class LocalOptions:
    workers: int | None = option(None, help="number of jobs to run at once", metavar="N", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)

add_options(parser, LocalOptions)  # --workers N
from_args(LocalOptions, parser.parse_args(["--workers", "2"]))  # LocalOptions(workers=2)
LocalOptions(workers=0)  # UsageError: --workers must be at least 1, not 0
"""

import argparse
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Collection, Container
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any

from domainbed.errors import UsageError, suggest
from domainbed.registry import Registry

COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of a number; None stands for no bound."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def check(self, name: str, value: float) -> None:
        """Raise UsageError, which calls the value `name`, if the value is out of bounds."""
        bounds = {comparison: bound for comparison in COMPARISONS if (bound := getattr(self, comparison)) is not None}
        # NaN satisfies no bound.
        if not all(COMPARISONS[comparison](value, bound) for comparison, bound in bounds.items()):
            required = " and ".join(
                "finite" if bound == math.inf else f"{comparison.replace('_', ' ')} {bound:,}"
                for comparison, bound in bounds.items()
            )
            raise UsageError(f"{name} must be {required}, not {value}")


@dataclass(frozen=True)
class Option(Bounds):
    """The declaration of an option, in addition to its field's name, type and default.

    Attributes:
        help: a phrase without a final period.
        flags: the flags, if they differ from `--<name of the field>`; messages use the first one.
        metavar: the placeholder for the value, such as its unit ("GIB").
        choices: the allowed values, or a function that returns them. With a `metavar`, --help lists them after the
            help; otherwise they are the placeholder.
        if_unset: the meaning of the default None.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    choices: Collection[str] | Callable[[], Collection[str]] = ()
    if_unset: str | None = None

    def allowed_values(self) -> Collection[str]:
        """Return the allowed values; empty if any value is allowed."""
        return self.choices() if callable(self.choices) else self.choices


def option(default: Any = MISSING, *, compare: bool = True, **declaration: Any) -> Any:
    """Return a dataclass field that is also a command-line option.

    Args:
        default: the default of the field; an option without a default is required.
        compare: as in `dataclasses.field`.
        declaration: the attributes of `Option`.
    """
    return field(default=default, compare=compare, metadata={"option": Option(**declaration)})


def add_options(parser: argparse._ActionsContainer, cls: type, skip: Container[str] = ()) -> None:
    """Add the options of a dataclass to a parser or an argument group.

    A bool has two flags, `--x` and `--no_x`. A tuple takes one or more values; a tuple of tuples does so each time that
    its flag is given. The fields in `skip` are left out.
    """
    for f, declared, value_type in _options(cls):
        if f.name in skip:
            continue
        kwargs: dict[str, Any] = {"dest": f.name, "required": f.default is MISSING, "help": _help(declared)}
        kwargs["default"] = None if f.default is MISSING else f.default
        if value_type is bool:
            kwargs["action"] = BooleanAction
        else:
            if typing.get_origin(value_type) is tuple:
                value_type = typing.get_args(value_type)[0]
                kwargs["nargs"] = "+"
                kwargs["default"] = None if kwargs["default"] is None else list(kwargs["default"])
            if typing.get_origin(value_type) is tuple:
                value_type = typing.get_args(value_type)[0]
                kwargs["action"] = ListAction
            kwargs["type"] = value_type
            kwargs["metavar"] = _metavar(declared)
        parser.add_argument(*_flags(f, declared), **kwargs)


def from_args(cls: type, args: argparse.Namespace) -> Any:
    """Return an instance of a dataclass with the parsed values of its options."""
    values = {f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)}
    return cls(**{name: as_tuple(value) for name, value in values.items()})


def as_tuple(value: Any) -> Any:
    """Return a list, and lists in it, as tuples; any other value unchanged."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def to_args(instance: Any) -> list[str]:
    """Return command-line arguments from which `from_args` recreates `instance`; defaults are omitted."""
    args: list[str] = []
    for f, declared, _ in _options(type(instance)):  # type: ignore[arg-type]
        flag, value = _flags(f, declared)[0], getattr(instance, f.name)
        if value is None or value == f.default:
            continue
        if isinstance(value, bool):
            args.append(flag if value else _negation(flag))
        elif isinstance(value, tuple) and isinstance(value[0], tuple):
            for items in value:
                args += [flag, *map(str, items)]
        else:
            args += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return args


def check_options(instance: Any, any_value: Container[str] = ()) -> None:
    """Check the options of a dataclass instance against their choices and bounds.

    Args:
        any_value: fields whose choices are not checked.

    Raises:
        UsageError: a value is not allowed.
    """
    for f, declared, value_type in _options(type(instance)):  # type: ignore[arg-type]
        flag, value = _flags(f, declared)[0], getattr(instance, f.name)
        if value is None:
            continue
        allowed = () if f.name in any_value else declared.allowed_values()
        for item in value if isinstance(value, tuple) else (value,):
            if allowed and item not in allowed:
                if isinstance(allowed, Registry):
                    raise allowed.unknown(item)
                raise UsageError(f"invalid {flag} {item!r}; {suggest(item, allowed)}")
        if value_type in (int, float):
            allowed_type, kind = (numbers.Integral, "an integer") if value_type is int else (numbers.Real, "a number")
            if isinstance(value, bool) or not isinstance(value, allowed_type):  # from Python, or a file
                raise UsageError(f"{flag} must be {kind}, not {value!r}")
            if type(value) not in (int, float):  # a NumPy number, which neither prints nor hashes like Python's
                value = value_type(value)
                object.__setattr__(instance, f.name, value)
        declared.check(flag, value)


def options_table(*classes: type) -> str:
    """Return a Markdown table of the options of some dataclasses."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for cls in classes:
        for f, declared, value_type in _options(cls):
            placeholder = None if value_type is bool else _metavar(declared)
            flag = " ".join(filter(None, [_flags(f, declared)[0], placeholder]))
            if f.default is MISSING:
                default = "required"
            elif f.default is None or f.default is False or f.default == ():
                default = declared.if_unset or ""
            else:
                default = f"`{' '.join(f.default) if isinstance(f.default, tuple) else f.default}`"
            rows.append(f"| `{flag}` | {default} | {declared.help} |")
    return "\n".join(rows) + "\n"


class ListAction(argparse.Action):
    """An action that collects the values of each occurrence of its flag, which replace the default."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(() if before is self.default else before), values])


class BooleanAction(argparse.Action):
    """An action with flags `--x`, which stores True, and `--no_x`, which stores False."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        self.negations = [_negation(flag) for flag in option_strings]
        super().__init__([*option_strings, *self.negations], dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        setattr(namespace, self.dest, flag not in self.negations)

    def format_usage(self) -> str:
        return self.negations[0] if self.default else self.option_strings[0]


@cache  # resolving type hints takes longer than everything else that a sweep does per job
def _options(cls: type) -> tuple[tuple[Field, Option, Any], ...]:
    """Return each option of a dataclass: its field, its declaration, and its type (without None)."""
    hints, options = typing.get_type_hints(cls), []
    for f in fields(cls):
        if (declared := f.metadata.get("option")) is None:
            continue
        value_type = hints[f.name]
        if isinstance(value_type, types.UnionType) or typing.get_origin(value_type) is typing.Union:
            (value_type,) = (arg for arg in typing.get_args(value_type) if arg is not type(None))
        options.append((f, declared, value_type))
    return tuple(options)


def _flags(f: Field, declared: Option) -> tuple[str, ...]:
    return declared.flags or (f"--{f.name}",)


def _metavar(declared: Option) -> str | None:
    if declared.choices and not declared.metavar:
        return "{" + ",".join(declared.allowed_values()) + "}"
    return declared.metavar


def _negation(flag: str) -> str:
    return f"--no_{flag.removeprefix('--')}"


def _help(declared: Option) -> str:
    """Return the help of an option as argparse expects it."""
    text = declared.help
    if declared.choices and declared.metavar:
        text += f" (choices: {', '.join(declared.allowed_values())})"
    if declared.if_unset:
        text += f" (default: {declared.if_unset})"
    return text.replace("%", "%%")
