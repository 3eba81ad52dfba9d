"""Mistakes of the person at the keyboard, told in one line."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Something the user asked for can't be done as asked.

    The message names the offender and the way out. Command lines print it alone and end with status 2.
    """


def one_line(error: object) -> str:
    """What an error tells, in one line."""
    return " ".join(str(error).split())


def suggest(name: str, names: Iterable[str]) -> str:
    """The hint behind "unknown X": the names most like `name`, or all of them where none is."""
    names = [str(n) for n in names]
    by_lower = {n.lower(): n for n in names}
    close = [by_lower[n] for n in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(names)}" if names else "there are none"
