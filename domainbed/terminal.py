"""Output for people: warnings, progress bars, which are lines where stderr is not a terminal, and colors."""

import os
import sys
import time
from collections.abc import Iterator
from typing import IO, Any, TypeVar

from tqdm import tqdm

from domainbed.errors import printable

T = TypeVar("T")

LINE_INTERVAL = 30.0  # seconds between lines of progress where stderr is not a terminal
COLORS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a stream is a terminal; False if it is closed."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def colored(text: str, color: str | None, stream: IO[str] | None = None) -> str:
    """Return text in a color if a stream shows colors. Otherwise, return it as it is.

    A stream shows colors if it is a terminal that is not "dumb", unless NO_COLOR is set (https://no-color.org).

    Args:
        text: the text.
        color: one of COLORS, or None.
        stream: where the text will be printed (default: stdout).
    """
    shows_colors = is_terminal(stream or sys.stdout) and os.environ.get("TERM") != "dumb"
    if color is None or not shows_colors or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{COLORS[color]}m{text}\033[0m"


def warn(*messages: str) -> None:
    """Print a warning on stderr for each message, above any progress bar."""
    for message in messages:
        tqdm.write(f"warning: {printable(message)}", file=sys.stderr)


class ProgressBar(tqdm):
    """A progress bar on stderr. Where stderr is not a terminal, it prints a line every LINE_INTERVAL seconds instead.

    It takes the arguments of `tqdm`, such as `for file in ProgressBar(files, "verifying", unit=" files")`.
    """

    def __init__(self, iterable: Any = None, desc: str | None = None, total: float | None = None, **kwargs: Any):
        super().__init__(iterable, desc, total, **{"disable": None, **kwargs})
        self._prints_lines = self.disable and kwargs.get("disable") is None
        self._prefix = f"{desc}: " if desc else ""
        self._unit = kwargs.get("unit", "it").strip()
        self._start = self._last_line = time.monotonic()
        self._initial = self.n

    def __iter__(self) -> Iterator[Any]:
        if not self._prints_lines:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        if not self._prints_lines:
            return super().update(n)
        self.n += n or 0
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL:
            self._last_line = now
            print(self._line(now - self._start), file=sys.stderr, flush=True)
        return None

    def _line(self, seconds: float) -> str:
        """Return a line such as "verifying: 120 of 480 files after 30 s, 90 s left"."""
        shown = f"{tqdm.format_sizeof(self.n)}{self._unit}" if self._unit == "B" else f"{self.n:,}"
        if self.total:
            total = f"{tqdm.format_sizeof(self.total)}{self._unit}" if self._unit == "B" else f"{self.total:,}"
            shown += f" of {total}"
        left = ""
        if self.total and self.n > self._initial:
            rate = (self.n - self._initial) / seconds
            left = f", {duration(max(0.0, self.total - self.n) / rate)} left"
        unit = "" if self._unit == "B" else f" {self._unit}{'' if self._unit.endswith('s') else 's'}"
        return f"{self._prefix}{shown}{unit} after {duration(seconds)}{left}"


def duration(seconds: float) -> str:
    """Return a readable duration.

    >>> duration(45), duration(125), duration(7500), duration(200_000)
    ('45 s', '2 min', '2 h 05 min', '2 d 07 h')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
