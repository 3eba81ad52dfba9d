"""Print the completion script of a shell: `domainbed completion bash`."""

import argparse
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from domainbed import cli
from domainbed.algorithms import ALGORITHMS, GROUPS
from domainbed.datasets import DATASETS
from domainbed.errors import UsageError

SHELLS = ("bash", "zsh")
NAMES: dict[str, Iterable[str]] = {
    "dataset": DATASETS,
    "datasets": DATASETS,
    "algorithm": ALGORITHMS,
    "algorithms": [*ALGORITHMS, *GROUPS],
}


def parser() -> cli.Parser:
    p = cli.Parser(
        prog=cli.command_name("completion"),
        description="Print a script with which a shell completes the commands, options, and names of datasets and "
        "algorithms of `domainbed`. Requires shtab (the extra `completion`).",
        examples=("bash > ~/.local/share/bash-completion/completions/domainbed", "zsh > ~/.zfunc/_domainbed"),
    )
    p.add_argument("shell", choices=SHELLS, help="the shell")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        import shtab
    except ImportError:
        raise UsageError("shtab is not installed; run `pip install shtab`") from None
    print(shtab.complete(complete_parser(shtab.FILE, shtab.DIRECTORY), args.shell))


def complete_parser(file: Mapping[str, Any], folder: Mapping[str, Any]) -> cli.Parser:
    """Return a parser of all commands, whose options suggest their values.

    Args:
        file: shtab's completion of files.
        folder: shtab's completion of folders.
    """
    from domainbed.scripts.__main__ import ALIASES, COMMANDS
    from domainbed.scripts.__main__ import parser as top_parser

    p = top_parser()
    (commands,) = (action for action in p._actions if isinstance(action, argparse._SubParsersAction))
    for name in COMMANDS:
        commands.choices[name] = importlib.import_module(f"domainbed.scripts.{name}").parser()
    for alias, name in ALIASES.items():
        commands.choices[alias] = commands.choices[name]
    _add_suggestions(p, file, folder)
    return p


def _add_suggestions(p: argparse.ArgumentParser, file: Mapping[str, Any], folder: Mapping[str, Any]) -> None:
    for action in p._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _add_suggestions(command, file, folder)
        elif action.metavar in cli.PATHS:
            action.complete = folder if action.metavar == "DIR" else file  # type: ignore[attr-defined]
        elif action.choices is None and action.nargs != 0:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            listed = metavar[1:-1].split(",") if metavar.startswith("{") else None
            action.choices = listed or list(NAMES.get(action.dest, ())) or None


if __name__ == "__main__":
    cli.run(main)
