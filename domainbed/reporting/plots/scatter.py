"""All runs as points: accuracy against each hyperparameter, and out-of-domain against in-domain accuracy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.random import RandomState

from domainbed.hparams_registry import hparams_of
from domainbed.reporting.plots.scales import logarithmic, spans_decades
from domainbed.reporting.plots.style import Style, legend, make_style, on_paper, panels, point_of, text

RHO = "\N{GREEK SMALL LETTER RHO}"
LEVELS = 8  # a hyperparameter of no more values than this is shown by categories
DRAWS = 200  # from which one sees how a hyperparameter is drawn


@on_paper
def hparams_scatter(
    chosen: pd.DataFrame,
    hparams: pd.DataFrame,
    environments: Mapping[int, str],
    drawn: Mapping[str, Sequence[Any]],
    title: str = "",
) -> Figure | None:
    """Test accuracy against each hyperparameter that differs between the runs of one algorithm on one dataset.

    Args:
        chosen: a row a run (`model_selection`): `folder`, `test_env` and `test_acc`, in [0, 1].
        hparams: the runs' hyperparameters (`load.Sweep.hparams`): a row a folder; where a run lacks one, it is missing
            in that panel.
        environments: the names of all, by number.
        drawn: values as the registry draws them (`draws`), which tell how to show the runs'.

    Returns:
        The figure, or None where no hyperparameter differs.
    """
    shown = {str(name): known(values) for name, values in hparams.items()}
    shown = {name: values for name, values in shown.items() if values.nunique() > 1}
    if not shown:
        return None
    test_envs = sorted(chosen["test_env"].unique())
    figure, axes = panels(len(shown), title, 1.5, share="y")
    for (name, values), ax in zip(shown.items(), axes, strict=True):
        at = positions(ax, values, drawn.get(name, ()))
        is_category = at is not values
        for i, test_env in enumerate(test_envs):
            runs = chosen[(chosen["test_env"] == test_env) & chosen["folder"].isin(at.index)]
            # Categories have a column of points for each test environment, side by side.
            aside = 0.7 * ((i + 0.5) / len(test_envs) - 0.5) if is_category else 0.0
            points(ax, at.loc[runs["folder"]] + aside, 100 * runs["test_acc"], make_style(test_env))
        ax.set_xlabel(text(name))
    figure.supylabel("Test accuracy (%)")
    legend(figure, [(text(environments[env]), point_of(make_style(env))) for env in test_envs], "test environment")
    return figure


@on_paper
def in_and_out(
    chosen: pd.DataFrame, environments: Mapping[int, str], algorithms: Mapping[str, Style], title: str = ""
) -> Figure:
    """Accuracy in the test environment against that in the training environments, over all runs on one dataset.

    A panel a test environment, with the line where both are equal and Spearman's rank correlation over its points.

    Args:
        chosen: a row a run, chosen by training-domain: `algorithm`, `test_env`, `val_acc` and `test_acc`, in [0, 1].
        environments: the names of all, by number.
        algorithms: how each looks.
    """
    test_envs = sorted(chosen["test_env"].unique())
    figure, axes = panels(len(test_envs), title, 1.75, "In-domain accuracy (%)", share="xy")
    for test_env, ax in zip(test_envs, axes, strict=True):
        runs = chosen[chosen["test_env"] == test_env]
        ax.axline((0, 0), slope=1, color="0.4", linewidth=0.8, linestyle="--", zorder=1)
        for algorithm, its_look in algorithms.items():
            of_algorithm = runs[runs["algorithm"] == algorithm]
            points(ax, 100 * of_algorithm["val_acc"], 100 * of_algorithm["test_acc"], its_look)
        ax.set_title(f"{text(environments[test_env], 12)} ({correlation(runs)})")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    inside, outside = 100 * chosen["val_acc"], 100 * chosen["test_acc"]
    margin = max(1.0, 0.04 * (inside.max() - inside.min()))
    left, right = inside.min() - margin, inside.max() + margin
    axes[0].set_xlim(left, right)
    axes[0].set_ylim(min(left, outside.min() - margin), max(right, outside.max() + margin))  # with the line in full
    figure.supylabel("Test accuracy (%)")
    samples: list[tuple[str, Artist]] = [(text(name), point_of(its_look)) for name, its_look in algorithms.items()]
    legend(figure, [*samples, ("equal", Line2D([], [], color="0.4", linewidth=0.8, linestyle="--"))])
    return figure


def points(ax: Axes, x: pd.Series, y: pd.Series, its_look: Style) -> None:
    """One category's points, smaller where they are many."""
    size = min(14.0, max(5.0, 600 / max(1, len(x))))  # square points
    ax.scatter(
        x,
        y,
        s=size,
        color=its_look.color,
        marker=its_look.marker,
        edgecolors="0.2",
        linewidths=0.25,
        alpha=0.8,
        zorder=2,
    )


def correlation(runs: pd.DataFrame) -> str:
    """Spearman's rank correlation of `val_acc` and `test_acc`; a ? where it is not defined."""
    ranks = runs[["val_acc", "test_acc"]].rank()
    if len(runs) < 2 or (ranks.nunique() == 1).any():
        return f"{RHO} = ?"
    return f"{RHO} = {ranks['val_acc'].corr(ranks['test_acc']):.2f}"


def draws(algorithm: str, dataset: str) -> dict[str, list[Any]]:
    """Values of each hyperparameter as the registry draws them; none for what it does not know or does not vary."""
    r = RandomState(0)
    return {n: [h.draw(r) for _ in range(DRAWS)] for n, h in hparams_of(algorithm, dataset).items() if h.draw}


def known(values: pd.Series) -> pd.Series:
    """The values of one hyperparameter that are there, numbers as they are if all are, else everything as text."""
    values = values.dropna()
    if all(isinstance(v, (int, float, np.number)) and not isinstance(v, (bool, np.bool_)) for v in values):
        numbers = values.astype(float)
        return numbers[np.isfinite(numbers)]
    return values.map(str)


def positions(ax: Axes, values: pd.Series, drawn: Sequence[Any]) -> pd.Series:
    """Make a panel's axis fit for these values, and tell where on it they lie.

    Few values are categories, at 0, 1, 2, …; many are numbers, which lie at themselves. The axis is logarithmic where
    they are drawn evenly on such an axis or, of a hyperparameter that the registry does not draw, span more than two
    decades; a value of 0 (a default, say) then lies at the left end, one step before the smallest.
    """
    levels = sorted(values.unique())
    if values.dtype.kind != "f" or len({*levels, *drawn}) <= LEVELS:
        labels = [f"{level:g}" if isinstance(level, float) else text(level, 12) for level in levels]
        crowded = sum(map(len, labels)) + len(labels) > 20
        ax.set_xticks(range(len(levels)), labels, rotation=90 if crowded else 0)
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.grid(False, axis="x")
        return values.map({level: i for i, level in enumerate(levels)})
    if is_logarithmic(levels, drawn):
        logarithmic(ax.xaxis, values)
    return values


def is_logarithmic(levels: Sequence[float], drawn: Sequence[float]) -> bool:
    """Whether numbers, sorted, belong on a logarithmic axis."""
    if levels[0] < 0 or not len(drawn):
        return levels[0] >= 0 and spans_decades(levels)
    if levels[-1] < 3 * next(level for level in levels if level > 0):
        return False  # too little for such an axis to have a tick
    low, median, high = np.quantile([v for v in drawn if v > 0], [0, 0.5, 1])
    from_middle = abs(2 * median - low - high) / (high - low)
    return bool(abs(math.log(median**2 / (low * high))) / math.log(high / low) < from_middle)
