"""Errors that are reported to the user on one line, and hints for misspelled names."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """A request that cannot be carried out as given.

    The message names the offending argument or file and suggests a fix. Commands print it without a traceback and exit
    with status 2.
    """


class AlgorithmError(Exception):
    """An error in the code of a user's algorithm. Commands print its report and exit with status 1.

    Attributes:
        report: the traceback, with the lines of the user's own code only.
    """

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


def one_line(error: object) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())


def suggest(name: str, names: Iterable[str]) -> str:
    """Return the second half of an "unknown X" message: the names most similar to `name`, or all of them."""
    names = [str(n) for n in names]
    by_lower = {n.lower(): n for n in names}
    close = [by_lower[n] for n in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(names)}" if names else "none are available"
