"""The algorithms side by side on each dataset."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from domainbed.reporting.plots.style import FONT, WIDTH, Style, legend, on_paper, text

GROUPS = 4  # a row of the figure


@on_paper
def bars(cells: pd.DataFrame, groups: Sequence[str], algorithms: Mapping[str, Style], title: str = "") -> Figure:
    """A bar an algorithm, a group of bars a dataset, with the standard error; an X where a mean is missing.

    Args:
        cells: a row a cell: `algorithm`, `dataset`, `mean` and `error`, in percent, NaN where missing.
        groups: the datasets (or averages) in order.
        algorithms: how each looks, in the order of the bars.
    """
    rows = math.ceil(len(groups) / GROUPS)
    a_row = math.ceil(len(groups) / rows)
    figure = Figure(figsize=(WIDTH, 1.8 * rows + 0.4))
    figure.suptitle(text(title, 60))
    by_cell = cells.set_index(["algorithm", "dataset"])[["mean", "error"]].astype(float)
    wide = by_cell.reindex(pd.MultiIndex.from_product([algorithms, groups])).to_numpy()
    means, errors = wide.reshape(len(algorithms), len(groups), 2).transpose(2, 0, 1)
    top = np.nanmax(np.append(means + np.nan_to_num(errors), 1.0))
    width = 0.84 / len(algorithms)
    for row, ax in enumerate(figure.subplots(rows, 1, squeeze=False).ravel()):
        here = range(row * a_row, min((row + 1) * a_row, len(groups)))
        for i, its_look in enumerate(algorithms.values()):
            at = np.array([g - here[0] + (i + 0.5 - len(algorithms) / 2) * width for g in here])
            mean, error = means[i, here], errors[i, here]
            there = ~np.isnan(mean)
            ax.bar(
                at[there],
                mean[there],
                width,
                color=its_look.color,
                hatch=its_look.hatch,
                edgecolor="0.15",
                linewidth=0.4,
            )
            with_error = there & ~np.isnan(error)
            ax.errorbar(
                at[with_error],
                mean[with_error],
                error[with_error],
                fmt="none",
                ecolor="black",
                elinewidth=0.8,
                capsize=1.5,
            )
            for x in at[~there]:
                ax.annotate(
                    "X",
                    (x, 0),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=max(5.0, min(FONT, 60 * width)),
                    fontweight="bold",
                )
        ax.set_xticks(range(len(here)), [text(groups[g], 16) for g in here])
        ax.tick_params(axis="x", length=0)
        ax.set_xlim(-0.5, a_row - 0.5)
        ax.set_ylim(0, 1.05 * top)
        ax.grid(False, axis="x")
    figure.supylabel("Test accuracy (%)")
    samples: list[tuple[str, Artist]] = [
        (text(name), Patch(facecolor=its_look.color, hatch=its_look.hatch, edgecolor="0.15", linewidth=0.4))
        for name, its_look in algorithms.items()
    ]
    legend(figure, samples)
    return figure
