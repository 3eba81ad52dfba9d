"""Plots of loss landscapes: each domain's risk around the trained weights, and the distances between domains."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.reporting.plots.scales import MAX_MAGNITUDE, set_log_scale, spans_decades
from domainbed.reporting.plots.style import (
    Style,
    add_legend,
    label_text,
    legend_line,
    legend_point,
    make_panels,
    make_style,
    print_style,
    set_step_ticks,
)

if TYPE_CHECKING:
    import torch

    from domainbed.landscape.measure import Landscape

CONTOUR_RISES = (0.02, 0.1, 0.5, 2.0)  # increases of the risk at which a plane's contours are drawn
LEVEL_FONT_SIZE = 6  # of the labels of contours
DOMAINS_TITLE = "domain, [not trained on]"


def landscape_figures(
    landscapes: "Mapping[str, Sequence[Landscape]]", title: str = ""
) -> Iterator[tuple[str, str, Figure]]:
    """Plot the landscape of one model, or compare those of several algorithms.

    Args:
        landscapes: the landscapes of each algorithm, one per trial; slices are drawn for the first trial only.
        title: the runs that the figures show, which ends their titles.

    Yields:
        The stem of the file name, the caption, and the figure.
    """
    end = f", {title}" if title else ""
    first_trials = {algorithm: trials[0] for algorithm, trials in landscapes.items()}
    labels = list(dict.fromkeys(label for landscape in first_trials.values() for label in landscape.labels))
    styles = {label: make_style(i) for i, label in enumerate(labels)}
    if any(landscape.slices for landscape in first_trials.values()):
        caption = (
            "Each domain's risk along lines through the trained weights (at 0): a filter-normalized random direction, "
            "shared by all domains, and the leading curvature directions of the training domains' risks, scaled to "
            "the norm of the weights, with the sign for which the training domains' mean risk is higher on the right. "
            "[ ]: not trained on."
        )
        yield "lines", caption, plot_lines(first_trials, styles, f"Risk along lines through the weights{end}")
        rises = ", ".join(f"{rise:g}" for rise in CONTOUR_RISES)
        caption = (
            f"Each domain's risk in planes through the trained weights (cross). Contours mark increases of the risk by "
            f"{rises}; thicker lines are higher. Curvature directions have the signs for which the training domains' "
            "mean risk is higher on the right, and at the top."
        )
        yield "planes", caption, plot_planes(first_trials, styles, f"Risk in planes through the weights{end}")
    if len(landscapes) > 1:
        rows = [{"series": name, **landscape.summary()} for name, trials in landscapes.items() for landscape in trials]
        caption = (
            "Mean squared distances over pairs of training domains, and inconsistency scores; one point per trial."
        )
    else:
        (landscape,) = first_trials.values()
        distances = landscape.squared_distances
        rows = [
            {"series": f"{landscape.labels[a]}, {landscape.labels[b]}"}
            | {name: matrix[a, b].item() for name, matrix in distances.items()}
            for a, b in itertools.combinations(range(len(landscape.labels)), 2)
        ]
        caption = "Squared distances between domains, one point per pair. [ ]: not trained on."
    frame = pd.DataFrame(rows)
    series = dict.fromkeys(frame["series"])
    series_styles = {name: make_style(i) for i, name in enumerate(series)}
    yield "distances", caption, plot_distances(frame, series_styles, f"Distances between domains{end}")


@print_style
def plot_lines(landscapes: "Mapping[str, Landscape]", styles: Mapping[str, Style], title: str = "") -> Figure:
    """Plot the risk along lines: one panel per model and direction, one line per domain, on the same axes.

    Args:
        landscapes: the landscape of each model.
        styles: the style of each domain label.
    """
    lines = [
        (model, direction, landscape.labels, landscape.slices.line_positions, _oriented(landscape, direction, risks))
        for model, landscape in landscapes.items()
        if landscape.slices
        for direction, risks in landscape.slices.lines.items()
    ]
    n_directions = len({direction for _, direction, *_ in lines})
    columns = n_directions if n_directions <= 3 else 0  # one row per model
    figure, axes = make_panels(len(lines), title, 1.5, "Along the direction", share="y", columns=columns)
    for (model, direction, labels, positions, risks), ax in zip(lines, axes, strict=True):
        for label, risk in zip(labels, risks, strict=True):
            ax.plot(positions, risk, color=styles[label].color, linestyle=styles[label].line, linewidth=1.2)
        ax.axvline(0, color="0.6", linewidth=0.6, zorder=1)
        ax.set_title(_panel_title(model, direction))
    values = np.concatenate([risks.ravel() for *_, risks in lines])
    values = values[np.isfinite(values)]
    if spans_decades(values):
        set_log_scale(axes[0].yaxis, values)
    figure.supylabel("Risk")
    add_legend(figure, [(label_text(label), legend_line(style)) for label, style in styles.items()], DOMAINS_TITLE)
    return figure


@print_style
def plot_planes(landscapes: "Mapping[str, Landscape]", styles: Mapping[str, Style], title: str = "") -> Figure:
    """Plot the contours of all domains' risks, labeled with the increase: one panel per model and plane.

    Args:
        landscapes: the landscape of each model.
        styles: the style of each domain label.
    """
    planes = [
        (model, plane, landscape, landscape.slices.plane_positions.numpy(), _oriented(landscape, plane, risks))
        for model, landscape in landscapes.items()
        if landscape.slices
        for plane, risks in landscape.slices.planes.items()
    ]
    figure, axes = make_panels(len(planes), title, 2.0, "First direction", columns=2)
    for (model, plane, landscape, positions, risks), ax in zip(planes, axes, strict=True):
        for label, statistics, risk in zip(landscape.labels, landscape.statistics, risks, strict=True):
            style = styles[label]
            for i, rise in enumerate(CONTOUR_RISES, start=1):
                level = statistics.risk + rise
                if risk.min() < level < risk.max():
                    line: dict[str, Any] = {"colors": style.color, "linestyles": [style.line], "linewidths": 0.4 * i}
                    contour = ax.contour(positions, positions, risk.T, [level], **line)
                    ax.clabel(contour, fmt={level: f"+{rise:g}"}, fontsize=LEVEL_FONT_SIZE)
        ax.plot([0], [0], marker="+", color="black", markersize=5)
        ax.set_title(_panel_title(model, plane))
        ax.set_aspect("equal")
        ax.set_xticks((-1, 0, 1))
        ax.set_yticks((-1, 0, 1))
        ax.set_xlim(positions[0], positions[-1])  # a panel without contours would have other limits
        ax.set_ylim(positions[0], positions[-1])
    figure.supylabel("Second direction")
    add_legend(figure, [(label_text(label), legend_line(style)) for label, style in styles.items()], DOMAINS_TITLE)
    return figure


def _oriented(landscape: "Landscape", direction: str, risks: "torch.Tensor") -> np.ndarray:
    """Return the risks on a line [domains, points] or in a plane [domains, points, points] as they are drawn.

    The sign of a curvature direction is arbitrary. It is drawn so that the training domains' mean risk is higher on the
    positive side than on the negative one, on average. The signs of random directions are the same for all models.
    """
    oriented = risks.numpy()
    if not direction.startswith("random"):
        training = oriented[: landscape.n_training].mean(axis=0)
        for axis in range(training.ndim):
            negative, positive = np.split(np.moveaxis(training, axis, 0), [training.shape[axis] // 2])
            if negative.mean() > positive[1:].mean():
                oriented = np.flip(oriented, axis + 1)
    return oriented


@print_style
def plot_distances(frame: pd.DataFrame, styles: Mapping[str, Style], title: str = "") -> Figure:
    """Plot distances and inconsistency scores: one panel per quantity, one point per row.

    Args:
        frame: column `series` and quantities of `Landscape.summary`; other columns are ignored.
        styles: the style of each series, in order.
    """
    scores = [c for c in map(str, frame) if c.startswith("inconsistency") and frame[c].notna().any()]
    titles = {name: quantity.capitalize() for name, quantity in QUANTITIES.items() if name in frame} | {
        name: "Score, " + name.removeprefix("inconsistency, ").replace(" environments, ", "\n") for name in scores
    }
    figure, axes = make_panels(len(titles), title, 1.35)
    for (name, panel_title), ax in zip(titles.items(), axes, strict=True):
        for x, (series, style) in enumerate(styles.items()):
            values = frame[name][frame["series"] == series].dropna()
            ax.plot([x] * len(values), values, color=style.color, marker=style.marker, linestyle="", markersize=4)
        values = frame[name].dropna()
        if spans_decades(values):
            set_log_scale(ax.yaxis, values)
        ax.set_title(panel_title)
        ax.set_xticks([])
        ax.set_xlim(-0.6, len(styles) - 0.4)
    figure.supylabel("|a - b|², score")
    add_legend(figure, [(label_text(series), legend_point(style)) for series, style in styles.items()])
    return figure


@print_style
def plot_distances_over_training(records: pd.DataFrame, styles: Mapping[str, Style], title: str = "") -> Figure | None:
    """Plot the distances recorded by `--track landscape`: one panel per quantity, one line per algorithm.

    Faint lines are single runs, bold lines their geometric means.

    Args:
        records: columns `algorithm`, `folder` (identifies the run), `step`, and the recorded distances.
        styles: the style of each algorithm.

    Returns:
        The figure, or None if no distance was recorded.
    """
    titles = {PREFIX + name: title for name, title in QUANTITIES.items() if PREFIX + name in records}
    if not titles:
        return None
    positive = records.reindex(columns=[*titles]).astype(float)
    positive = positive.where((positive > 0) & (positive <= MAX_MAGNITUDE))
    records = records[["algorithm", "folder", "step"]].join(positive).dropna(subset=[*titles], how="all")
    if records.empty:
        return None
    title = f"Distances between domains over training, {title}" if title else ""
    figure, axes = make_panels(len(titles), title, 1.5, "Training step")
    algorithms = [algorithm for algorithm in styles if (records["algorithm"] == algorithm).any()]
    for (name, panel_title), ax in zip(titles.items(), axes, strict=True):
        for algorithm in algorithms:
            style = styles[algorithm]
            runs = records[records["algorithm"] == algorithm].pivot(index="step", columns="folder", values=name)
            ax.plot(runs.index, runs, color=style.color, linewidth=0.5, alpha=0.3)
            mean = np.exp(np.log(runs).mean(axis=1))
            ax.plot(runs.index, mean, color=style.color, linestyle=style.line, linewidth=1.3)
        ax.set_title(panel_title.capitalize())
        set_step_ticks(ax)
        if spans_decades(records[name].dropna()):
            set_log_scale(ax.yaxis, records[name].dropna())
    figure.supylabel("|a - b|², mean over pairs")
    add_legend(figure, [(label_text(algorithm), legend_line(styles[algorithm])) for algorithm in algorithms])
    return figure


def _panel_title(model: str, direction: str) -> str:
    """Return a panel's title: the model, if there are several, and the direction or plane."""
    title = label_text(direction.replace("leading curvature of", "curvature of"), 26)
    return f"{label_text(model, 12)}\n{title}" if model else title.capitalize()
