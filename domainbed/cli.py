"""Shared by all commands: the argument parser, error messages and exit statuses."""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from domainbed import __version__
from domainbed.errors import AlgorithmError, UsageError, one_line, printable, suggest

PATHS = ("ARCHIVE", "DIR", "FILE", "PATH")  # the placeholders of options that take a path

# Of --trust_imports, an option of the commands that need the classes of others' jobs.
TRUST_IMPORTS_HELP = (
    "import all modules named in the jobs' files; unsafe if others can write there, because importing runs code"
)


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """A help formatter that shows defaults other than None, False and the empty list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.help is None or action.default is None or action.default is False or action.default == []:
            return action.help
        if isinstance(action.default, list | tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default)).replace('%', '%%')})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors as UsageError, suggests similar names, and rejects abbreviated flags.

    Attributes:
        examples: arguments of the command that --help shows.
    """

    def __init__(self, *, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, "allow_abbrev": False, **kwargs})
        self.examples = examples
        if self.add_help:
            version = f"domainbed {__version__}"
            self.add_argument("--version", action="version", version=version, help="print the version and exit")
        # An argument such as -90% (an environment) is a value, not a flag.
        self._negative_number_matcher = re.compile(r"-\d")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def format_help(self) -> str:
        examples = "".join(f"  {self.prog} {example}\n" for example in self.examples)
        return super().format_help() + (f"\nexamples:\n{examples}" if examples else "")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [word for word in unknown if word.startswith("-")]  # the other words may be their values
            message = unknown_names("argument", flags or unknown, self.flags(parsed) if flags else [])
            prog = " ".join([self.prog, *([parsed.command] if "command" in parsed else [])])
            raise UsageError(f"{message} (see {prog} --help)")
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

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string and action.metavar in PATHS:  # pathlib would take it for the current folder
            raise UsageError(f"{action.option_strings[0]} is empty; specify a path (. is the current folder)")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {suggest(value, action.choices)}")


def unknown_names(
    kind: str, names: Sequence[str], known: Sequence[str], show: Callable[[str], str] = lambda name: name
) -> str:
    """Return a message that lists all unknown names of a kind ("argument"), as shown by `show`, with similar ones."""
    hints = {name: suggest(name.partition("=")[0], known) if known else "" for name in dict.fromkeys(names)}
    if len(hints) == 1:
        ((name, hint),) = hints.items()
        return f"unknown {kind} {show(name)}" + (f"; {hint}" if hint else "")
    listed = [show(name) + (f" ({hint})" if hint.startswith("did you mean") else "") for name, hint in hints.items()]
    return f"unknown {kind}s {', '.join(listed)}"


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


def check_output(file: str | None, flag: str = "--output", can_stream: bool = False) -> None:
    """Raise UsageError if the file given with a flag cannot be written. `can_stream`: it may be a pipe or device."""
    if file is None:
        return
    if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):  # a pipe, or /dev/null
        if not can_stream:
            raise UsageError(f"{flag} {file} is not a regular file")
        if not os.access(file, os.W_OK):
            raise UsageError(f"{flag} {file} is not writable")
        return
    folder = Path(file).absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{flag} {file}: folder {folder} does not exist")
    if Path(file).is_dir():
        raise UsageError(f"{flag} {file} is a folder; specify a file")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{flag} {file}: folder {folder} is not writable")


def write_output(content: str, file: str | None) -> None:
    """Write text to the file given with --output, atomically, or to standard output if there is none."""
    from domainbed.files import atomic_write

    data = content.encode(errors="backslashreplace")  # the name of a file may not be valid text
    if file is None:
        sys.stdout.write(data.decode())
    elif os.path.exists(file) and not os.path.isfile(file):  # a pipe, or /dev/null
        Path(file).write_bytes(data)
    else:
        with atomic_write(Path(file).resolve()) as temporary:
            temporary.write(data)


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run a command and exit with its status.

    A UsageError or OSError prints one line and exits with status 2; an error in a user's algorithm prints the lines of
    the user's code and exits with 1; Ctrl-C exits with 130, a closed pipe with 1.
    """
    _open_standard_files()
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: names may contain what the terminal cannot represent
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main(None)
        sys.stdout.flush()  # an error at interpreter shutdown would print a traceback
        sys.exit(status)
    except UsageError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    except AlgorithmError as error:
        print(printable(f"{error.report}error: {error}"), file=sys.stderr)
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
        print(f"error: {printable(prefix)}{error.strerror or printable(one_line(error))}", file=sys.stderr)
        sys.exit(2)


def _open_standard_files() -> None:
    """Open the null device as each of stdin, stdout and stderr that is closed, as by `2>&-`.

    Otherwise, the next file that is opened would get its descriptor, and with it the output of C code.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
            path: str | int = os.devnull  # in use, perhaps by a file that an imported module has opened
        except OSError:
            path = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
            os.set_inheritable(path, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(path, "w" if descriptor else "r", closefd=path != descriptor))  # noqa: SIM115


def _discard_output() -> None:
    """Flush stdout. If that fails, discard its output, because Python would try again at shutdown."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
