"""Bar chart of the algorithms on each dataset."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from domainbed.reporting.plots.style import (
    Style,
    add_legend,
    current_look,
    label_text,
    print_style,
    set_title,
)

MAX_GROUPS = 4  # per row of the figure
LABELS_LENGTH = 64  # characters below a row


@print_style
def plot_bars(
    accuracies: Mapping[tuple[str, str], tuple[float, float]],
    groups: Sequence[str],
    algorithms: Mapping[str, Style],
    title: str = "",
    marks: Mapping[tuple[str, str], str] | None = None,
    meanings: str = "",
) -> Figure:
    """Plot one group of bars per dataset and one bar per algorithm, with the standard error.

    A missing mean is marked X.

    Args:
        accuracies: (algorithm, group) -> mean and standard error, in percent; NaN or absent if missing.
        groups: the datasets (or averages), in order.
        algorithms: the style of each algorithm, in order.
        title: the title.
        marks: (algorithm, group) -> what to print above the bar, such as that of incomplete results.
        meanings: what the marks mean.
    """
    look = current_look()
    rows = math.ceil(len(groups) / MAX_GROUPS)
    columns = math.ceil(len(groups) / rows)
    figure = Figure(figsize=(look.width, 1.8 * rows + 0.4))
    set_title(figure, title)
    missing = (np.nan, np.nan)
    grid = np.array([[accuracies.get((algorithm, group), missing) for group in groups] for algorithm in algorithms])
    means, errors = grid[..., 0], grid[..., 1]  # [algorithms, groups]
    top = np.nanmax(np.append(means + np.nan_to_num(errors), 1.0))
    width = 0.84 / len(algorithms)
    error_bars: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 0.8, "capsize": 1.5}
    cross: dict[str, Any] = {"ha": "center", "va": "bottom", "fontweight": "bold"}
    cross["fontsize"] = max(5.0, min(look.font_size, 60 * width))
    for row, ax in enumerate(figure.subplots(rows, 1, squeeze=False).ravel()):
        shown = range(row * columns, min((row + 1) * columns, len(groups)))
        for i, (algorithm, style) in enumerate(algorithms.items()):
            x = np.arange(len(shown)) + (i + 0.5 - len(algorithms) / 2) * width
            mean, error = means[i, shown], errors[i, shown]
            has_mean = ~np.isnan(mean)
            ax.bar(x[has_mean], mean[has_mean], width, **_patch(style))
            has_error = has_mean & ~np.isnan(error)
            ax.errorbar(x[has_error], mean[has_error], error[has_error], **error_bars)
            for position, group, height in zip(x, shown, mean + np.nan_to_num(error), strict=True):
                mark = (marks or {}).get((algorithm, groups[group]))
                if mark and not np.isnan(height):
                    ax.annotate(mark, (position, height), (0, 1), textcoords="offset points", **cross)
            for position in x[~has_mean]:
                ax.annotate("X", (position, 0), (0, 2), textcoords="offset points", **cross)
        ax.set_xticks(range(len(shown)), [label_text(groups[i], LABELS_LENGTH // columns) for i in shown])
        ax.tick_params(axis="x", length=0)
        ax.set_xlim(-0.5, columns - 0.5)
        ax.set_ylim(0, 1.05 * top)
        ax.grid(False, axis="x")
    figure.supylabel("Test accuracy (%)")
    entries: list[tuple[str, Artist]] = [
        (label_text(name), Patch(**_patch(style))) for name, style in algorithms.items()
    ]
    add_legend(figure, entries, meanings or None)
    return figure


def _patch(style: Style) -> dict[str, Any]:
    return {"facecolor": style.color, "hatch": style.hatch, "edgecolor": "0.15", "linewidth": 0.4}
