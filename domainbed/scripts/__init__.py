"""Command lines: each parses its arguments, calls the package, and prints."""

import sys
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


sys.excepthook = _report_interrupt
