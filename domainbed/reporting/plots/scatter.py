"""Scatter plots of all runs: accuracy against each hyperparameter, and out-of-domain against in-domain accuracy."""

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

from domainbed.datasets import DATASETS
from domainbed.hparams_registry import hparams_of
from domainbed.registry import is_builtin
from domainbed.reporting.plots.scales import MAX_MAGNITUDE, set_log_scale, spans_decades
from domainbed.reporting.plots.style import (
    Style,
    add_legend,
    label_text,
    legend_point,
    make_panels,
    make_style,
    print_style,
)

RHO = "\N{GREEK SMALL LETTER RHO}"
MAX_CATEGORIES = 8  # a hyperparameter with at most this many values is categorical
SAMPLES = 200  # enough to recognize the distribution of a hyperparameter
CATEGORY_WIDTH = 0.6  # part of the distance between two categories that their points take up

# Hyperparameters of the networks for photos. Those for the package's datasets of small images ignore them.
PHOTO_NETWORK_HPARAMS = {
    *("backbone", "pretrained", "resnet18", "resnet50_augmix", "freeze_bn", "resnet_dropout"),
    *("vit", "dinov2", "vit_attn_tune", "vit_dropout"),
}


@print_style
def plot_hparams(
    selected: pd.DataFrame,
    hparams: pd.DataFrame,
    environments: Mapping[int, str],
    samples: Mapping[str, Sequence[Any]],
    title: str = "",
) -> Figure | None:
    """Plot test accuracy against each hyperparameter that differs between the runs of one algorithm on one dataset.

    Args:
        selected: one row per run (`model_selection`): `folder`, `test_env` and `test_acc`, in [0, 1].
        hparams: the runs' hyperparameters (`load.Sweep.load_hparams`), indexed by folder. A run that lacks one is
            omitted from its panel.
        environments: the name of each environment, by number.
        samples: random draws of each hyperparameter (`sample_hparams`), which determine the scale of its axis.

    Returns:
        The figure, or None if no hyperparameter differs.
    """
    shown = varying_hparams(hparams)
    if not shown:
        return None
    test_envs = sorted(selected["test_env"].unique())
    figure, axes = make_panels(len(shown), title, 1.5, share="y")
    for (name, values), ax in zip(shown.items(), axes, strict=True):
        x = _set_up_axis(ax, values, samples.get(name, ()))
        is_categorical = x is not values
        for i, test_env in enumerate(test_envs):
            runs = selected[(selected["test_env"] == test_env) & selected["folder"].isin(x.index)]
            # Within a category, each test environment has its own column of points.
            offset = CATEGORY_WIDTH * ((i + 0.5) / len(test_envs) - 0.5) if is_categorical else 0.0
            plot_points(ax, x.loc[runs["folder"]] + offset, 100 * runs["test_acc"], make_style(test_env))
        ax.set_xlabel(label_text(name))
    figure.supylabel("Test accuracy (%)")
    entries = [(label_text(environments[env]), legend_point(make_style(env))) for env in test_envs]
    add_legend(figure, entries, "test environment")
    return figure


def varying_hparams(hparams: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the usable values of each hyperparameter that differs between runs, by name; each is indexed by folder."""
    usable = {str(name): usable_values(values) for name, values in hparams.items()}
    return {name: values for name, values in usable.items() if values.nunique() > 1}


@print_style
def plot_in_and_out(
    selected: pd.DataFrame, environments: Mapping[int, str], algorithms: Mapping[str, Style], title: str = ""
) -> Figure:
    """Plot accuracy on the test environment against accuracy on the training environments, for all runs on a dataset.

    Each test environment has a panel with the identity line and Spearman's rank correlation.

    Args:
        selected: one row per run, selected by training-domain: `algorithm`, `test_env`, `val_acc` and `test_acc`, in
            [0, 1].
        environments: the name of each environment, by number.
        algorithms: the style of each algorithm.
    """
    test_envs = sorted(selected["test_env"].unique())
    figure, axes = make_panels(len(test_envs), title, 1.75, "In-domain accuracy (%)", share="xy")
    for test_env, ax in zip(test_envs, axes, strict=True):
        runs = selected[selected["test_env"] == test_env]
        ax.axline((0, 0), slope=1, color="0.4", linewidth=0.8, linestyle="--", zorder=1)
        for algorithm, style in algorithms.items():
            points = 100 * runs.loc[runs["algorithm"] == algorithm, ["val_acc", "test_acc"]]
            plot_points(ax, points["val_acc"], points["test_acc"], style)
        ax.set_title(f"{label_text(environments[test_env], 12)} ({_correlation(runs)})")
        ax.xaxis.set_major_locator(MaxNLocator(4))
    in_domain, out_of_domain = 100 * selected["val_acc"], 100 * selected["test_acc"]
    margin = max(1.0, 0.04 * (in_domain.max() - in_domain.min()))
    left, right = in_domain.min() - margin, in_domain.max() + margin
    axes[0].set_xlim(left, right)
    # The identity line is visible over the full width.
    axes[0].set_ylim(min(left, out_of_domain.min() - margin), max(right, out_of_domain.max() + margin))
    figure.supylabel("Test accuracy (%)")
    entries: list[tuple[str, Artist]] = [(label_text(name), legend_point(style)) for name, style in algorithms.items()]
    add_legend(figure, [*entries, ("equal", Line2D([], [], color="0.4", linewidth=0.8, linestyle="--"))])
    return figure


def sample_hparams(algorithm: str, dataset: str) -> dict[str, list[Any]]:
    """Return random draws of each hyperparameter in the registry, except for those that are never varied."""
    r = RandomState(0)
    return {
        name: [hparam.draw(r) for _ in range(SAMPLES)]
        for name, hparam in hparams_of(algorithm, dataset).items()
        if hparam.draw
    }


def without_ignored(hparams: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the hyperparameters without those that the runs' networks ignore.

    Args:
        hparams: the runs' hyperparameters (`load.Sweep.load_hparams`).
        dataset: the runs' dataset. The networks of datasets that are not part of the package are unknown.
    """
    if dataset not in DATASETS or not is_builtin(DATASETS[dataset]):
        return hparams
    if DATASETS[dataset].SMALL_IMAGES:
        return hparams.drop(columns=list(PHOTO_NETWORK_HPARAMS), errors="ignore")
    is_vit, is_frozen = (
        hparams[name].eq(True) if name in hparams else pd.Series(False, hparams.index) for name in ("vit", "frozen")
    )
    # The features of a frozen backbone are extracted without dropout.
    ignored = {"resnet_dropout": is_vit | is_frozen, "vit_dropout": ~is_vit | is_frozen}
    return hparams.assign(**{name: hparams[name].mask(runs) for name, runs in ignored.items() if name in hparams})


def plot_points(ax: Axes, x: pd.Series | np.ndarray, y: pd.Series | np.ndarray, style: Style) -> None:
    """Draw the runs of one category as points."""
    ax.scatter(
        x,
        y,
        s=min(14.0, max(5.0, 600 / max(1, len(x)))),  # square points, smaller if there are many
        color=style.color,
        marker=style.marker,
        edgecolors="0.2",
        linewidths=0.25,
        alpha=0.8,
        zorder=2,
    )


def _correlation(runs: pd.DataFrame) -> str:
    """Format Spearman's rank correlation of `val_acc` and `test_acc`, or a question mark if it is undefined."""
    ranks = runs[["val_acc", "test_acc"]].rank()
    if len(runs) < 2 or (ranks.nunique() == 1).any():
        return f"{RHO} = ?"
    return f"{RHO} = {ranks['val_acc'].corr(ranks['test_acc']):.2f}"


def usable_values(values: pd.Series) -> pd.Series:
    """Return the values that are present: numbers up to MAX_MAGNITUDE if all of them are numbers, else text."""
    values = values.dropna()
    if all(isinstance(v, (int, float, np.number)) and not isinstance(v, (bool, np.bool_)) for v in values):
        return values[[abs(v) <= MAX_MAGNITUDE for v in values]].astype(float)
    return values.map(str)


def _set_up_axis(ax: Axes, values: pd.Series, samples: Sequence[Any]) -> pd.Series:
    """Set up the x-axis of a panel for these values, and return their positions on it.

    Text and few distinct values are categories at 0, 1, 2, … Other numbers are their own positions (`values` itself is
    returned), and the axis is logarithmic if their draws are spread evenly on such an axis or, without draws, if they
    span more than two decades. A value of 0 is then at the left end.
    """
    levels = sorted(values.unique())
    scale = hparam_scale(values, samples)
    if scale == "category":
        labels = [f"{level:g}" if isinstance(level, float) else label_text(level, 12) for level in levels]
        is_crowded = sum(map(len, labels)) + len(labels) > 20
        ax.set_xticks(range(len(levels)), labels, rotation=90 if is_crowded else 0)
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.grid(False, axis="x")
        ax.tick_params(axis="x", length=0)
        for i in range(1, len(levels)):  # between two categories
            ax.axvline(i - 0.5, color="0.75", linewidth=0.6, zorder=0)
        return values.map({level: i for i, level in enumerate(levels)})
    if scale == "log":
        set_log_scale(ax.xaxis, values)
    return values


def hparam_scale(values: pd.Series, samples: Sequence[Any]) -> str:
    """Return the scale of an axis for a hyperparameter's values (`usable_values`): "category", "log" or "linear"."""
    levels = sorted(values.unique())
    if values.dtype.kind != "f" or len(levels) < 2 or len({*levels, *samples}) <= MAX_CATEGORIES:
        return "category"
    return "log" if _is_logarithmic(levels, samples) else "linear"


def _is_logarithmic(levels: Sequence[float], samples: Sequence[float]) -> bool:
    """Return whether numbers in ascending order require a logarithmic axis."""
    if levels[0] < 0 or not len(samples):
        return levels[0] >= 0 and spans_decades(levels)
    if levels[-1] < 3 * next(level for level in levels if level > 0):
        return False  # too narrow a range for a tick on a logarithmic axis
    # Compare how far the median is from the center of the range, on either axis.
    low, median, high = np.quantile([v for v in samples if v > 0], [0, 0.5, 1])
    linear_distance = abs(2 * median - low - high) / (high - low)
    return bool(abs(math.log(median**2 / (low * high))) / math.log(high / low) < linear_distance)
