"""Accuracy on the line: out-of-domain against in-domain accuracy on probit axes, with the line of the baseline."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator

from domainbed.reporting.on_the_line import Line, fit_runs, scale, unscale
from domainbed.reporting.plots.scatter import plot_points
from domainbed.reporting.plots.style import Style, add_legend, label_text, legend_point, make_panels, print_style

# Percent; panels show those in their range, a few of them if there are many.
TICKS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9)
MAX_TICKS = 6
EQUAL: dict[str, Any] = {"color": "0.4", "linewidth": 0.8, "linestyle": "--"}
LINE: dict[str, Any] = {"color": "black", "linewidth": 1.4}


@print_style
def plot_line(
    selected: pd.DataFrame,
    environments: Mapping[int, str],
    algorithms: Mapping[str, Style],
    baseline: str,
    title: str = "",
) -> Figure:
    """Plot the probit of the accuracy on the test environment against that on the training environments, for all runs.

    Each test environment has a panel with the identity line and the line of the baseline's runs, which is dotted
    outside their range. The title of a panel has the R² of the line through all of its runs.

    Args:
        selected: one row per run on a dataset, selected by training-domain: `algorithm`, `test_env`, `val_acc` and
            `test_acc`, in [0, 1].
        environments: the name of each environment, by number.
        algorithms: the style of each algorithm.
        baseline: the algorithm whose line is drawn, if it has one.
    """
    test_envs = sorted(selected["test_env"].unique())
    figure, axes = make_panels(len(test_envs), title, 1.75, "In-domain accuracy (%)", share="xy")
    x, y = scale(selected["val_acc"]), scale(selected["test_acc"])
    has_line = False
    for test_env, ax in zip(test_envs, axes, strict=True):
        is_shown = (selected["test_env"] == test_env).to_numpy()
        ax.axline((0, 0), slope=1, zorder=1, **EQUAL)
        for algorithm, style in algorithms.items():
            runs = is_shown & (selected["algorithm"] == algorithm).to_numpy()
            plot_points(ax, x[runs], y[runs], style)
        runs = is_shown & (selected["algorithm"] == baseline).to_numpy()
        has_line |= _draw_line(ax, x[runs], fit_runs(x[runs], y[runs]))
        r_squared = float(fit_runs(x[is_shown], y[is_shown]).r_squared)
        shown = "?" if math.isnan(r_squared) else f"{r_squared:.2f}"
        ax.set_title(f"{label_text(environments[test_env], 12)} (R² = {shown})")
    for axis, values, set_limits in ((axes[0].xaxis, x, axes[0].set_xlim), (axes[0].yaxis, y, axes[0].set_ylim)):
        margin = max(0.05, 0.04 * (values.max() - values.min()))
        set_limits(values.min() - margin, values.max() + margin)
        set_probit_ticks(axis, values.min() - margin, values.max() + margin)
    figure.supylabel("Test accuracy (%)")
    entries: list[tuple[str, Artist]] = [(label_text(name), legend_point(style)) for name, style in algorithms.items()]
    entries += [(f"line of {label_text(baseline)}", Line2D([], [], **LINE))] if has_line else []
    add_legend(figure, [*entries, ("equal", Line2D([], [], **EQUAL))])
    return figure


def _draw_line(ax: Axes, x: np.ndarray, line: Line) -> bool:
    """Draw a line within the range of `x` and, dotted, beyond it; return whether it is defined."""
    if not len(x) or math.isnan(line.slope):
        return False
    ax.axline(
        (0, float(line.intercept)), slope=float(line.slope), zorder=3, linestyle=":", color="black", linewidth=0.9
    )
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, line.intercept + line.slope * ends, zorder=3, gid="line", **LINE)
    return True


def set_probit_ticks(axis: Axis, low: float, high: float) -> None:
    """Label a probit axis in percent."""
    first, last = (float(percent) for percent in 100 * unscale(np.array([low, high])))
    ticks: list[float] = [tick for tick in TICKS if first <= tick <= last]
    if len(ticks) < 2:  # a narrow range
        decimals = max(0, math.ceil(-math.log10((last - first) / 3)))
        ticks = sorted({round(float(value), decimals) for value in np.linspace(first, last, 5)[1:-1]})
    ticks = ticks[:: math.ceil(len(ticks) / MAX_TICKS)]
    axis.set_major_locator(FixedLocator([*scale(np.array(ticks) / 100)]))
    axis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
