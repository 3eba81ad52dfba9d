"""Shared by all commands: the argument parser, error messages and exit statuses."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from domainbed.errors import AlgorithmError, UsageError, one_line, suggest


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """A help formatter that shows defaults other than None, False and the empty list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or action.default is None or action.default is False or action.default == []:
            return action.help
        if isinstance(action.default, list | tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default)).replace('%', '%%')})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as UsageError, suggests similar names, and rejects abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, "allow_abbrev": False, **kwargs})
        # An argument such as -90% (an environment) is a value, not a flag.
        self._negative_number_matcher = re.compile(r"-\d")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            hint = f"; {suggest(word.split('=')[0], self.flags(parsed))}" if word.startswith("-") else ""
            prog = " ".join([self.prog, *([parsed.command] if "command" in parsed else [])])
            raise UsageError(f"unknown argument {word}{hint} (see {prog} --help)")
        return parsed

    def set_defaults(self, **defaults: Any) -> None:
        """Set defaults by destination. An option with a default is no longer required."""
        super().set_defaults(**defaults)
        for action in self._actions:
            if action.dest in defaults:
                action.required = False

    def flags(self, parsed: argparse.Namespace) -> list[str]:
        """Return all flags, including those of the chosen subcommand."""
        flags: list[str] = []
        for action in self._actions:
            flags += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                flags += self.command(getattr(parsed, action.dest)).flags(parsed)
        return flags

    def command(self, name: str) -> "Parser":
        """Return the parser of a subcommand."""
        choices = [a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return choices[0][name]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {suggest(value, action.choices)}")


def add_import_option(p: argparse.ArgumentParser) -> None:
    """Add --import."""
    p.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="your modules to import first, such as my_algorithms",
    )


def command_name(name: str) -> str:
    """Return a command as the user called it: `domainbed NAME` or `python -m domainbed.scripts.NAME`."""
    if Path(sys.argv[0]).stem == "domainbed":
        return f"domainbed {name}"
    return f"python -m domainbed.scripts.{name}"


def check_output(file: str | None, flag: str = "--output") -> None:
    """Raise UsageError if the file given with a flag cannot be written."""
    if file is None:
        return
    folder = Path(file).absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{flag} {file}: folder {folder} does not exist")
    if Path(file).is_dir():
        raise UsageError(f"{flag} {file} is a folder; specify a file")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{flag} {file}: folder {folder} is not writable")


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run a command and exit with its status.

    A UsageError or OSError prints one line and exits with status 2; an error in a user's algorithm prints the lines of
    the user's code and exits with 1; Ctrl-C exits with 130, a closed pipe with 1.
    """
    if sys.stdout is None:  # closed by `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        status = main(None)
        sys.stdout.flush()  # an error at interpreter shutdown would print a traceback
        sys.exit(status)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except AlgorithmError as error:
        print(f"{error.report}error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has exited (`| head`)
        _discard_output()
        sys.exit(1)
    except OSError as error:  # such as a full disk or a missing permission
        _discard_output()
        prefix = f"{error.filename}: " if error.filename else ""
        print(f"error: {prefix}{error.strerror or one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _discard_output() -> None:
    """Flush stdout. If that fails, discard its output, because Python would try again at shutdown."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
