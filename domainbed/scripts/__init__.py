"""Command lines: each parses its arguments, calls the package, and prints."""

import sys
from pathlib import Path
from types import TracebackType

_excepthook = sys.excepthook


def _report_interrupt(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Report Ctrl-C while a command is being imported, before `cli.run` can, the way `cli.run` does."""
    if not issubclass(kind, KeyboardInterrupt):
        _excepthook(kind, error, traceback)
        return
    if sys.stderr is not None:
        print("interrupted", file=sys.stderr)
    sys.exit(130)


# `python -m` imports this package before it sets the first argument. A program that only imports it keeps its hook.
if sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).stem == "domainbed":
    sys.excepthook = _report_interrupt


def _reject_unknown_module() -> None:
    """Report a misspelled `python -m domainbed.scripts.NAME`, which Python would report without the known names."""
    if sys.argv[:1] != ["-m"]:  # Python has not yet found the module to run
        return
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
    package, _, name = module.rpartition(".")
    if package != __name__ or name == "__main__":
        return
    from domainbed.scripts.__main__ import COMMANDS

    if name not in COMMANDS:  # also a module without a command
        from domainbed.errors import suggest

        names = ", ".join(COMMANDS)
        hint = suggest(name, COMMANDS)
        listed = "" if hint.startswith("choose") else f" Available: {names}"
        print(
            f"error: unknown command {name!r}; {hint}{listed} (see python -m domainbed.scripts --help)", file=sys.stderr
        )
        sys.exit(2)


_reject_unknown_module()
