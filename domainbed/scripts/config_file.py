"""The configuration file of `sweep launch`: options in YAML or TOML."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from domainbed.cli import unknown_names
from domainbed.errors import UsageError, one_line
from domainbed.files import read_regular
from domainbed.options import BooleanAction, ListAction

MAX_SIZE = 2**16  # bytes
NOT_IN_FILE = ("help", "version", "launcher_config")


def load(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the options in a configuration file as defaults, ready for `parser.set_defaults`.

    Args:
        file: a YAML or TOML file of lines `option: value`; options have the names of the parser's flags.
        parser: the parser, which determines the types.

    Raises:
        UsageError: the file cannot be read, or contains an unknown option or an invalid value.
    """
    flags = {flag.removeprefix("--"): action for action in parser._actions for flag in action.option_strings}
    options = {name: action for name, action in flags.items() if name not in NOT_IN_FILE}
    defaults: dict[str, Any] = {}
    content = read(file)
    if unknown := [name for name in content if name not in options]:
        raise UsageError(f"{file}: {unknown_names('option', unknown, list(options), show=repr)}")
    for name, value in content.items():
        action = options[name]
        if action.dest in defaults:
            raise UsageError(f"{file}: {name!r} sets an option that another line also sets; delete one of them")
        if action.nargs == 0:
            defaults |= _flag_default(file, name, value, action)
        elif value in ("", [], [""]):  # a line without a value leaves the option unset
            continue
        elif isinstance(action, ListAction):
            several = value if isinstance(value, list) and isinstance(value[0], list) else [value]
            defaults[action.dest] = [_typed_value(file, name, values, action, parser) for values in several]
        else:
            defaults[action.dest] = _typed_value(file, name, value, action, parser)
    return defaults


def _flag_default(file: Path, name: str, value: Any, action: argparse.Action) -> dict[str, Any]:
    is_true = {"true": True, "false": False}.get(str(value).lower())
    if is_true is None:
        raise UsageError(f"{file}: {name} must be true or false, not {value!r}")
    if isinstance(action, BooleanAction):
        return {action.dest: is_true != (f"--{name}" in action.negations)}
    return {action.dest: action.const} if is_true else {}


def _typed_value(file: Path, name: str, value: Any, action: argparse.Action, parser: argparse.ArgumentParser) -> Any:
    if isinstance(value, dict):  # such as slurm_extra, which takes key=value words, or hparams, which takes JSON
        value = list(_pairs(value)) if action.nargs else json.dumps(_parse_scalars(value))
    if isinstance(value, list) and not action.nargs:
        raise UsageError(f"{file}: {name} takes one value, not {value!r}")
    items = value if isinstance(value, list) else [value]
    try:
        items = [parser._get_value(action, str(item)) for item in items]
        for item in items:
            parser._check_value(action, item)
    except argparse.ArgumentError as error:
        raise UsageError(f"{file}: {error}") from error
    return items if action.nargs else items[0]


def _pairs(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield `key=value` for each option; the key alone if the value is empty or true, nothing if it is false."""
    for key, value in options.items():
        text = str(value)
        if text.lower() in ("", "true"):
            yield key
        elif text.lower() != "false":
            yield f"{key}={text}"


def _parse_scalars(value: Any) -> Any:
    """Parse numbers and booleans, which `read` returns as strings, inside lists and mappings as well."""
    if isinstance(value, list):
        return [_parse_scalars(item) for item in value]
    if isinstance(value, dict):
        return {key: _parse_scalars(item) for key, item in value.items()}
    if value in ("True", "TRUE", "False", "FALSE"):  # as YAML writes them, too
        return value.lower() == "true"
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return value


def read(file: Path) -> dict[str, Any]:
    """Return the contents of a YAML or TOML file. Scalars in YAML are strings: YAML would read 1:30:00 as 5400.

    Raises:
        UsageError: the file cannot be read or parsed.
    """
    if file.suffix not in (".toml", ".yaml", ".yml"):
        raise UsageError(f"--launcher_config {file}: the name must end in .yaml or .toml")
    try:
        text = read_regular(file, MAX_SIZE).decode("utf-8")
        if file.suffix == ".toml":
            if sys.version_info >= (3, 11):
                import tomllib
            else:
                import tomli as tomllib
            return tomllib.loads(text)
        import yaml

        options = yaml.load(text, Loader=yaml.BaseLoader)
        # Printed, aliases of aliases would take exponential space.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("aliases such as *name are not supported; repeat the value")
        if not isinstance(options, dict):
            raise ValueError("expected lines of the form `option: value`")
        return options
    except OSError as error:
        raise UsageError(f"--launcher_config {file}: {error.strerror}") from error
    except Exception as error:  # a syntax error of either format
        raise UsageError(f"--launcher_config {file}: {one_line(error)}") from error
