"""Errors that are reported to the user on one line, and hints for misspelled names."""

import difflib
from collections.abc import Iterable, Sequence


class UsageError(ValueError):
    """A request that cannot be carried out as given.

    The message names the offending argument or file and suggests a fix. Commands print it without a traceback and exit
    with status 2.
    """


# Control characters except for line feed and tab, line and paragraph separators, and marks that reverse text.
_CONTROLS = [*range(9), *range(11, 32), *range(127, 160), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F)]
_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in [*_CONTROLS, *range(0x2066, 0x206A)]}


def printable(text: object) -> str:
    r"""Return text that is safe to print and to encode: control characters and lone surrogates as `\x1b`, `\ud800`.

    Names of files, environments and hyperparameters, and messages of other programs, may contain sequences that move a
    terminal's cursor or change its title.
    """
    return str(text).translate(_ESCAPES).encode(errors="backslashreplace").decode()


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


def list_some(items: Sequence[object], limit: int, separator: str = ", ") -> str:
    """Return the first items and how many follow: "a, b and 3 more"."""
    others = len(items) - limit
    return separator.join(map(str, items[:limit])) + (f" and {others:,} more" if others > 0 else "")


def suggest(name: str, names: Iterable[str]) -> str:
    """Return the second half of an "unknown X" message: the names most similar to `name`, or all of them."""
    names = [str(n) for n in names]
    by_lower = {n.lower(): n for n in names}
    close = [by_lower[n] for n in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(names)}" if names else "none are available"
