"""Figures of an analysis, each with the data that it shows."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from domainbed.analysis.analysis import Section
from domainbed.analysis.line import fit_scaled_line
from domainbed.analysis.line_table import ACCURACY, AGREEMENT, SAME_TRIAL, select_points
from domainbed.analysis.measures import Measured
from domainbed.analysis.metrics import calibration_bins
from domainbed.analysis.tables import AVERAGE, Table
from domainbed.reporting.on_the_line import scale
from domainbed.reporting.plots import Plot
from domainbed.reporting.plots.gallery import file_stem
from domainbed.reporting.plots.line import EQUAL, set_probit_ticks
from domainbed.reporting.plots.scatter import plot_points
from domainbed.reporting.plots.style import (
    add_legend,
    label_text,
    legend_point,
    make_panels,
    make_style,
    print_style,
)

MAX_LABELED = 12  # classes on an axis


def draw_section(section: Section) -> Iterator[Plot]:
    """Draw the figures of a section with all tables."""
    tables = {table.name: table for table in section.tables}

    def stem(kind: str, *names: str) -> str:
        return file_stem([kind, section.dataset, *names, section.selection])

    for algorithm in section.algorithms:
        title = f"{algorithm} on {section.title}"
        frame = reliability(section, algorithm)
        caption = "Accuracy against confidence, in 15 bins of equal mass over all trials, before and after scaling."
        yield Plot(stem("reliability", algorithm), caption, plot_reliability(frame, title), frame)
        confusion = tables["confusion"].frame
        frame = confusion[confusion["algorithm"] == algorithm].reset_index(drop=True)
        caption = "Share of the images of each class (rows) by predicted class (columns), over all trials."
        yield Plot(stem("confusion", algorithm), caption, plot_confusion(frame, title), frame)
    frame = tables["classes"].frame
    frame = frame[frame["environment"] != AVERAGE].reset_index(drop=True)
    caption = "Accuracy on each class of the test environment, with standard errors over trials."
    yield Plot(stem("classes"), caption, plot_classes(frame, section.title, section.algorithms), frame)
    if "agreement" in tables:
        frame = agreement_matrix(tables["agreement"], section.algorithms)
        caption = "Percentage of test images on which two algorithms predict the same class."
        yield Plot(stem("agreement"), caption, plot_agreement(frame, section.title, section.algorithms), frame)
    caption = "Accuracy of runs and agreement of pairs of runs, out of domain against in domain, with their lines."
    yield Plot(stem("line"), caption, plot_lines(section.points, section.title), section.points)


def reliability(section: Section, algorithm: str) -> pd.DataFrame:
    """Return the bins of an algorithm's reliability diagrams, of each environment, over the runs of all trials."""
    frames = []
    for environment in section.environments:
        runs = [r for r in section.runs if (r.run["algorithm"], r.run["environment"]) == (algorithm, environment)]
        for is_scaled in (False, True) if runs else ():
            confidence, is_correct = _pool(runs, is_scaled)
            bins = pd.DataFrame(calibration_bins(confidence, is_correct)._asdict())
            frames.append(bins.assign(environment=environment, scaled=is_scaled))
    return pd.concat(frames, ignore_index=True)[["environment", "scaled", "confidence", "accuracy", "size"]]


def _pool(runs: Sequence[Measured], is_scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    confidence = np.concatenate([run.confidence[is_scaled] for run in runs])
    return confidence, np.concatenate([run.outputs.is_correct for run in runs])


@print_style
def plot_reliability(frame: pd.DataFrame, title: str) -> Figure:
    """Plot reliability diagrams (`reliability`)."""
    environments = list(frame["environment"].unique())
    figure, axes = make_panels(len(environments), title, 1.9, "Confidence", share="xy")
    names = {False: "before scaling", True: "after scaling"}
    styles = {is_scaled: make_style(int(is_scaled)) for is_scaled in names}
    for ax, environment in zip(axes, environments, strict=True):
        ax.plot([0, 1], [0, 1], color="0.5", linewidth=0.7)
        for is_scaled, style in styles.items():
            bins = frame[(frame["environment"] == environment) & (frame["scaled"] == is_scaled)]
            ax.plot(bins["confidence"], bins["accuracy"], color=style.color, marker=style.marker, markersize=3)
        ax.set_title(label_text(environment))
        ax.set_xlim(0, 1.02)
        ax.set_ylim(0, 1.02)
    axes[0].set_ylabel("Accuracy")
    entries = [(names[is_scaled], legend_point(style)) for is_scaled, style in styles.items()]
    add_legend(figure, entries, "bins of equal mass on the test environment; gray: perfect calibration")
    return figure


@print_style
def plot_confusion(frame: pd.DataFrame, title: str) -> Figure:
    """Plot confusion matrices: shares of the images of each class."""
    environments, classes = list(frame["environment"].unique()), list(frame["class"].unique())
    figure, axes = make_panels(len(environments), title, 2.2, "Predicted class")
    for ax, environment in zip(axes, environments, strict=True):
        share = frame.loc[frame["environment"] == environment, "share"].to_numpy()
        _draw_matrix(ax, share.reshape(len(classes), len(classes)), classes, 100)
        ax.set_title(label_text(environment))
    axes[0].set_ylabel("Class")
    return figure


@print_style
def plot_classes(frame: pd.DataFrame, title: str, algorithms: Sequence[str]) -> Figure:
    """Plot the accuracies of classes, with standard errors; one panel per test environment."""
    environments, classes = list(frame["environment"].unique()), list(frame["class"].unique())
    figure, axes = make_panels(len(environments), title, 2.1, share="y")
    for i, algorithm in enumerate(algorithms):
        style = make_style(i)
        offset = 0.6 * ((i + 0.5) / len(algorithms) - 0.5)
        for ax, environment in zip(axes, environments, strict=True):
            rows = frame[(frame["environment"] == environment) & (frame["algorithm"] == algorithm)]
            ax.errorbar(
                np.array([classes.index(name) for name in rows["class"]]) + offset,
                100 * rows["accuracy"],
                100 * rows["accuracy_error"],
                color=style.color,
                marker=style.marker,
                markersize=3,
                linestyle="",
                elinewidth=0.6,
            )
    for ax, environment in zip(axes, environments, strict=True):
        ax.set_title(label_text(environment))
        ax.set_ylim(0, 102)
        _label_classes(ax.xaxis, classes, rotation=90)
    axes[0].set_ylabel("Accuracy (%)")
    entries = [(label_text(name), legend_point(make_style(i))) for i, name in enumerate(algorithms)]
    add_legend(figure, entries, "mean and standard error over trials")
    return figure


def agreement_matrix(table: Table, algorithms: Sequence[str]) -> pd.DataFrame:
    """Return the agreement of all ordered pairs of algorithms, of each environment and on average."""
    frame = table.frame[["algorithm", "other", "environment", "agreement"]]
    mirrored = frame.rename(columns={"algorithm": "other", "other": "algorithm"})
    diagonal = [
        {"algorithm": name, "other": name, "environment": environment, "agreement": 1.0}
        for environment in frame["environment"].unique()
        for name in algorithms
    ]
    return pd.concat([frame, mirrored, pd.DataFrame(diagonal)], ignore_index=True)[list(frame.columns)]


@print_style
def plot_agreement(frame: pd.DataFrame, title: str, algorithms: Sequence[str]) -> Figure:
    """Plot the agreement of algorithms (`agreement_matrix`)."""
    environments = list(frame["environment"].unique())
    figure, axes = make_panels(len(environments), title, 2.0)
    for ax, environment in zip(axes, environments, strict=True):
        values = frame[frame["environment"] == environment].pivot(
            index="algorithm", columns="other", values="agreement"
        )
        _draw_matrix(ax, values.reindex(index=algorithms, columns=algorithms).to_numpy(dtype=float), algorithms, 100)
        ax.set_title(label_text(environment))
    return figure


@print_style
def plot_lines(points: pd.DataFrame, title: str) -> Figure:
    """Plot accuracies and agreement (`line_table.line_points`) on probit axes; one panel per test environment."""
    environments = list(points["environment"].unique())
    figure, axes = make_panels(len(environments), title, 1.75, "In domain (%)", share="xy")
    x, y = scale(points["in_domain"]), scale(points["out_of_domain"])
    # The few runs are above the many pairs. Pairs of the same trial are drawn in their own color.
    styles = {AGREEMENT: make_style(2), SAME_TRIAL: make_style(1), ACCURACY: make_style(0)}
    for ax, environment in zip(axes, environments, strict=True):
        ax.axline((0, 0), slope=1, zorder=1, **EQUAL)
        for name, style in styles.items():
            shown = select_points(points[points["environment"] == environment], name)
            plot_points(ax, x[shown.index], y[shown.index], style)
            line = fit_scaled_line(shown["in_domain"], shown["out_of_domain"])
            if not np.isnan(line.slope):
                ax.axline((0, float(line.intercept)), slope=float(line.slope), color=style.color, linewidth=1.2)
        ax.set_title(label_text(environment))
    for axis, values, set_limits in ((axes[0].xaxis, x, axes[0].set_xlim), (axes[0].yaxis, y, axes[0].set_ylim)):
        margin = max(0.05, 0.04 * (values.max() - values.min()))
        set_limits(values.min() - margin, values.max() + margin)
        set_probit_ticks(axis, values.min() - margin, values.max() + margin)
    figure.supylabel("On the test environment (%)")
    names = {ACCURACY: "accuracy", AGREEMENT: "agreement, all pairs", SAME_TRIAL: "agreement, same trial"}
    entries: list[tuple[str, Artist]] = [(name, legend_point(styles[line])) for line, name in names.items()]
    add_legend(figure, [*entries, ("equal", Line2D([], [], **EQUAL))])
    return figure


def _draw_matrix(ax: Axes, values: np.ndarray, names: Sequence[str], scale: float) -> None:
    """Draw a matrix of values in [0, 1], with numbers if there is space for them."""
    ax.grid(False)
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MAX_LABELED:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = "white" if value > 0.6 else "black"
                ax.text(j, i, f"{scale * value:.0f}", ha="center", va="center", fontsize=5, color=color)
    _label_classes(ax.xaxis, names, rotation=90)
    _label_classes(ax.yaxis, names)


def _label_classes(axis: Axis, names: Sequence[str], rotation: float = 0) -> None:
    if len(names) <= MAX_LABELED:
        axis.set_ticks(range(len(names)), [label_text(name, 12) for name in names], rotation=rotation, fontsize=6)
    else:
        axis.set_ticks([])
