"""Options declared once, as fields of a dataclass: parser, validation and documentation come from the field.

@dataclass(frozen=True)
class LocalOptions:
    workers: int | None = option(None, help="jobs to run at once", metavar="N", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)

add_options(parser, LocalOptions)  # --workers N
LocalOptions(workers=0)  # UsageError: --workers must be at least 1, not 0
"""

import argparse
import types
import typing
from collections.abc import Container, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from domainbed.errors import UsageError, suggest


@dataclass(frozen=True)
class Option:
    """The part of an option that its field's name, type and default do not say.

    Attributes:
        help: one phrase, without a period at its end.
        flags: all flags, the first one named like the field; by default that one alone.
        metavar: the placeholder for the value, a unit where there is one ("GIB").
        choices: the allowed values.
        at_least, at_most, above, below: bounds of a number.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None


def option(default: Any = MISSING, *, compare: bool = True, **declaration: Any) -> Any:
    """Return a dataclass field that is also a command-line option.

    Args:
        default: the field's default; without one the option is required.
        compare: as in `dataclasses.field`.
        declaration: the attributes of `Option`.
    """
    return field(default=default, compare=compare, metadata={"option": Option(**declaration)})


def add_options(parser: argparse._ActionsContainer, cls: type, skip: Container[str] = ()) -> None:
    """Add a flag for each option of a dataclass, except for the fields named in `skip`.

    A bool becomes two flags, `--x` and `--no_x`; a tuple takes one or more values.
    """
    for f, declared, value_type in _options(cls):
        if f.name in skip:
            continue
        flags = declared.flags or (f"--{f.name}",)
        default = None if f.default is MISSING else f.default
        if value_type is bool:
            parser.add_argument(*flags, action=BooleanAction, default=default, help=declared.help)
            continue
        kwargs: dict[str, Any] = {"help": declared.help, "default": default, "required": f.default is MISSING}
        item_type = value_type
        if typing.get_origin(value_type) is tuple:
            kwargs["nargs"] = "+"
            item_type = typing.get_args(value_type)[0]
            kwargs["default"] = None if default is None else list(default)
        if item_type is not str:
            kwargs["type"] = item_type
        if declared.choices:
            kwargs["metavar"] = "{" + ",".join(declared.choices) + "}"
        elif declared.metavar:
            kwargs["metavar"] = declared.metavar
        parser.add_argument(*flags, dest=f.name, **kwargs)


def from_args(cls: type, args: argparse.Namespace) -> Any:
    """Return the dataclass made of the parsed options."""
    values = {f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_options(instance: Any) -> None:
    """Check each option of a dataclass instance against its choices and bounds.

    Raises:
        UsageError: a value is not allowed; the message names its flag.
    """
    for f, declared, _ in _options(type(instance)):
        value = getattr(instance, f.name)
        if value is None:
            continue
        if declared.choices and value not in declared.choices:
            raise UsageError(f"unknown {f.name} {value!r}; {suggest(value, declared.choices)}")
        rules = _rules(declared)
        # "not", so that NaN breaks every rule.
        if rules and not all(holds(value) for _, holds in rules):
            raise UsageError(f"--{f.name} must be {' and '.join(words for words, _ in rules)}, not {value}")


def options_table(*classes: type) -> str:
    """Return a Markdown table of all options of these dataclasses."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for cls in classes:
        for f, declared, _ in _options(cls):
            default = "" if f.default in (MISSING, None, False, ()) else f"`{_shown(f.default)}`"
            meaning = declared.help.replace("%%", "%").replace("|", "\\|")
            if declared.choices:
                meaning = f"{', '.join(f'`{c}`' for c in declared.choices)}: {meaning}"
            rows.append(f"| `--{f.name}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


class BooleanAction(argparse.Action):
    """`--x` stores True and `--no_x` False; help lists only the former."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        negations = [f"--no_{flag.removeprefix('--')}" for flag in option_strings if flag.startswith("--")]
        super().__init__([*option_strings, *negations], dest, nargs=0, **kwargs)

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        setattr(namespace, self.dest, not (flag or "").startswith("--no_"))

    def format_usage(self) -> str:
        return self.option_strings[0]


def _options(cls: type) -> Iterator[tuple[Field, Option, Any]]:
    """Yield each option of a dataclass: its field, its declaration, and its type (without None)."""
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        if (declared := f.metadata.get("option")) is None:
            continue
        kind = hints[f.name]
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            (kind,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
        yield f, declared, kind


def _rules(declared: Option) -> list[tuple[str, Any]]:
    """Return each bound in words, with the function that checks it."""
    rules: list[tuple[str, Any]] = []
    for words, bound, holds in (
        ("at least", declared.at_least, lambda value, bound: value >= bound),
        ("above", declared.above, lambda value, bound: value > bound),
        ("at most", declared.at_most, lambda value, bound: value <= bound),
        ("below", declared.below, lambda value, bound: value < bound),
    ):
        if bound is not None:
            rules.append((f"{words} {bound:,}", lambda value, bound=bound, holds=holds: holds(value, bound)))
    return rules


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
