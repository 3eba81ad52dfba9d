"""Logarithmic axes that also show zero and negative values."""

import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

MAX_MAGNITUDE = 1e300  # of a value in a plot; axes extend beyond the values, and may not overflow
SYMLOG_DECADES = 3  # on each side of a symmetric axis; smaller magnitudes fall into its linear part


def spans_decades(values: Iterable[float]) -> bool:
    """Return whether the magnitudes of the nonzero values span more than two decades."""
    magnitudes = [abs(v) for v in values if v]
    return bool(magnitudes) and max(magnitudes) > 100 * min(magnitudes)


def set_log_scale(axis: Axis, values: Iterable[float]) -> None:
    """Make an axis logarithmic, with a linear part around zero if some values are not positive."""
    values = np.array(list(values), dtype=float)
    magnitudes = np.abs(values[values != 0])
    low, high = magnitudes.min(), magnitudes.max()
    set_scale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    if values.min() > 0:
        set_scale("log")
        ticks = _log_ticks(low, high, max_ticks=4)
    else:
        if values.min() < 0:
            low = max(low, high / 10**SYMLOG_DECADES)
        # The linear part, from zero to `low`, is wide enough to label both its ends.
        set_scale("symlog", linthresh=low, linscale=max(0.5, 0.25 * (math.log10(high) - math.log10(low))))
        positive = _log_ticks(low, values.max(), max_ticks=2, min_ticks=1) if values.max() >= low else []
        negative = _log_ticks(low, -values.min(), max_ticks=2, min_ticks=1) if -values.min() >= low else []
        ticks = [*(-tick for tick in reversed(negative)), 0.0, *positive]
        axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(_tick_labels(ticks)))
    axis.set_minor_formatter(NullFormatter())


def _log_ticks(low: float, high: float, max_ticks: int, min_ticks: int = 2) -> list[float]:
    """Return powers of ten from `low` to `high`, plus three times each of them if there are too few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**e for e in exponents]
    ticks = [t for t in powers if 0.99 * low <= t <= 1.01 * high]
    if len(ticks) < min_ticks:
        ticks = [t for p in powers for t in (p, 3 * p) if 0.99 * low <= t <= 1.01 * high]
    return ticks[:: math.ceil(len(ticks) / max_ticks)] if ticks else []


def _tick_labels(ticks: Iterable[float]) -> list[str]:
    """Format ticks as 0.01, 1, 300 if all are in that range, else as 0, 10⁻⁴, 3·10⁻⁴."""
    ticks = list(ticks)
    if all(t == 0 or 0.01 <= abs(t) < 10_000 for t in ticks):
        return [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks]
    return [_scientific(t) if t else "0" for t in ticks]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{abs(value):.0e}".split("e")
    factor = "" if mantissa == "1" else rf"{mantissa}\cdot"
    return rf"${'-' if value < 0 else ''}{factor}10^{{{int(exponent)}}}$"
