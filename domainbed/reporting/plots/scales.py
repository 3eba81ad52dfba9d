"""Logarithmic axes that have room for zero and for what is below it."""

import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

DECADES = 3  # of a symmetric axis, on each side; what is nearer to zero lies in its linear part


def spans_decades(values: Iterable[float]) -> bool:
    """Whether the sizes of these values, but for zeros, span more than two decades."""
    sizes = [abs(v) for v in values if v]
    return bool(sizes) and max(sizes) > 100 * min(sizes)


def logarithmic(axis: Axis, values: Iterable[float]) -> None:
    """Make an axis logarithmic for these values, with a linear part about zero where some are not positive."""
    values = np.array(list(values), dtype=float)
    sizes = np.abs(values[values != 0])
    low, high = sizes.min(), sizes.max()
    set_scale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    if values.min() > 0:
        set_scale("log")
        ticks = log_ticks(low, high, most=4)
    else:
        if values.min() < 0:
            low = max(low, high / 10**DECADES)
        # The linear part, from zero to the smallest, gets a share of the axis that leaves room for both their labels.
        set_scale("symlog", linthresh=low, linscale=max(0.5, 0.25 * math.log10(high / low)))
        ticks = [0.0, *(log_ticks(low, values.max(), most=2) if values.max() >= low else [])]
        below = log_ticks(low, -values.min(), most=2) if -values.min() >= low else []
        ticks = [*(-tick for tick in reversed(below)), *ticks]
        axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels(ticks)))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten from `low` to `high`; where there is no pair of these, three times these as well."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**e for e in exponents]
    ticks = [t for t in powers if 0.99 * low <= t <= 1.01 * high]
    if len(ticks) < 2:
        ticks = [t for p in powers for t in (p, 3 * p) if 0.99 * low <= t <= 1.01 * high]
    return ticks[:: math.ceil(len(ticks) / most)] if ticks else []


def labels(ticks: Iterable[float]) -> list[str]:
    """Ticks as they are written: 0.01, 1, 300 where all are such, else 0, 10⁻⁴, 3·10⁻⁴."""
    ticks = list(ticks)
    if all(t == 0 or 0.01 <= abs(t) < 10_000 for t in ticks):
        return [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks]
    return [_power(t) if t else "0" for t in ticks]


def _power(value: float) -> str:
    mantissa, exponent = f"{abs(value):.0e}".split("e")
    factor = "" if mantissa == "1" else rf"{mantissa}\cdot"
    return rf"${'-' if value < 0 else ''}{factor}10^{{{int(exponent)}}}$"
