"""Loss landscapes: each domain's risk around trained weights, and how far apart the domains are there."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from domainbed.landscape import QUANTITIES
from domainbed.landscape.distances import pair_distances
from domainbed.landscape.measure import Landscape
from domainbed.reporting.plots.scales import logarithmic, spans_decades
from domainbed.reporting.plots.style import Style, legend, line_of, make_style, on_paper, panels, point_of, text

RISES = (0.02, 0.1, 0.5, 2.0)  # of the risk, at which a plane's contours are drawn


def landscape_figures(landscapes: Mapping[str, Sequence[Landscape]]) -> Iterator[tuple[str, str, Figure]]:
    """The pictures of one model, or of several algorithms side by side.

    Args:
        landscapes: of each algorithm one a trial; risks around the weights are drawn of the first.

    Yields:
        A stem for the file's name, a caption, and the figure.
    """
    first = {name: of_trials[0] for name, of_trials in landscapes.items()}
    labels = list(dict.fromkeys(label for landscape in first.values() for label in landscape.labels))
    looks = {label: make_style(i) for i, label in enumerate(labels)}
    if any(landscape.slices for landscape in first.values()):
        caption = (
            "Each domain's risk along lines through the trained weights (0): a filter-normalised random direction, the "
            "same for all domains, and the directions in which the training domains' risks curve most, of the weights' "
            "own length at 1. [ ]: not trained on."
        )
        yield "lines", caption, lines(first, looks)
        levels = ", ".join(f"{rise:g}" for rise in RISES)
        caption = (
            f"Each domain's risk in planes through the trained weights (the cross): contours where it is {levels} "
            "higher than there, the thicker the higher."
        )
        yield "planes", caption, planes(first, looks)
    if len(landscapes) > 1:
        rows = [{"algorithm": name, **of_trial.summary()} for name, each in landscapes.items() for of_trial in each]
        caption = "Mean squared distances over pairs of training domains, and inconsistency scores; a point a trial."
    else:
        (landscape,) = first.values()
        pairs = list(itertools.combinations(range(len(landscape.labels)), 2))
        matrices = pair_distances(landscape.statistics)
        rows = [
            {"algorithm": f"{landscape.labels[a]}, {landscape.labels[b]}"}
            | {name: matrix[a, b].item() for name, matrix in matrices.items()}
            for a, b in pairs
        ]
        caption = "Squared distances between domains, a point a pair. [ ]: not trained on."
    frame = pd.DataFrame(rows)
    names = dict.fromkeys(frame["algorithm"])
    yield "distances", caption, distances(frame, {name: make_style(i) for i, name in enumerate(names)})


@on_paper
def lines(landscapes: Mapping[str, Landscape], looks: Mapping[str, Style]) -> Figure:
    """A panel a model and direction, a line a domain; `looks` are the domains'."""
    cut = [
        (model, direction, landscape, landscape.slices.at, risks)
        for model, landscape in landscapes.items()
        if landscape.slices
        for direction, risks in landscape.slices.lines.items()
    ]
    figure, axes = panels(len(cut), "", 1.5, "Along the direction")
    for (model, direction, landscape, at, risks), ax in zip(cut, axes, strict=True):
        for label, risk in zip(landscape.labels, risks.numpy(), strict=True):
            ax.plot(at, risk, color=looks[label].color, linestyle=looks[label].line, linewidth=1.2)
        ax.axvline(0, color="0.6", linewidth=0.6, zorder=1)
        ax.set_title(_title(model, direction))
        if spans_decades(risks.flatten().tolist()):
            logarithmic(ax.yaxis, risks.flatten().tolist())
    figure.supylabel("Risk")
    legend(figure, [(text(label), line_of(its)) for label, its in looks.items()], "domain, [not trained on]")
    return figure


@on_paper
def planes(landscapes: Mapping[str, Landscape], looks: Mapping[str, Style]) -> Figure:
    """A panel a model and plane, with the contours of all domains; `looks` are the domains'."""
    cut = [
        (model, plane, landscape, landscape.slices.plane_at.numpy(), risks.numpy())
        for model, landscape in landscapes.items()
        if landscape.slices
        for plane, risks in landscape.slices.planes.items()
    ]
    figure, axes = panels(len(cut), "", 2.0, "First direction")
    for (model, plane, landscape, at, risks), ax in zip(cut, axes, strict=True):
        for label, s, risk in zip(landscape.labels, landscape.statistics, risks, strict=True):
            for width, rise in enumerate(RISES, start=1):
                if risk.min() < s.risk + rise < risk.max():
                    its = looks[label]
                    ax.contour(
                        at,
                        at,
                        risk.T,
                        [s.risk + rise],
                        colors=its.color,
                        linestyles=[its.line],
                        linewidths=0.4 * width,
                    )
        ax.plot([0], [0], marker="+", color="black", markersize=5)
        ax.set_title(_title(model, plane))
        ax.set_aspect("equal")
        ax.set_xlim(at[0], at[-1])  # also where there is no contour
        ax.set_ylim(at[0], at[-1])
    figure.supylabel("Second direction")
    legend(figure, [(text(label), line_of(its)) for label, its in looks.items()], "domain, [not trained on]")
    return figure


@on_paper
def distances(summaries: pd.DataFrame, looks: Mapping[str, Style], title: str = "") -> Figure:
    """A panel a distance between training domains and an inconsistency score, a point a row: a model, or a trial's.

    Args:
        summaries: `algorithm`, and the figures of `Landscape.summary` (others do no harm).
        looks: of the algorithms, in order.
    """
    scores = [c for c in map(str, summaries) if c.startswith("inconsistency") and summaries[c].notna().any()]
    wanted = {name: title.capitalize() for name, title in QUANTITIES.items() if name in summaries} | {
        name: name.removeprefix("inconsistency, ").replace(" domains, ", "\n") for name in scores
    }
    figure, axes = panels(len(wanted), title, 1.35)
    for (name, words), ax in zip(wanted.items(), axes, strict=True):
        for at, (algorithm, its) in enumerate(looks.items()):
            values = summaries[name][summaries["algorithm"] == algorithm].dropna()
            ax.plot([at] * len(values), values, color=its.color, marker=its.marker, linestyle="", markersize=4)
        values = summaries[name].dropna()
        if spans_decades(values):
            logarithmic(ax.yaxis, values)
        ax.set_title(words if name in QUANTITIES else f"Score, {words}")
        ax.set_xticks([])
        ax.set_xlim(-0.6, len(looks) - 0.4)
    figure.supylabel("|a - b|², score")
    legend(figure, [(text(name), point_of(its)) for name, its in looks.items()])
    return figure


def _title(model: str, direction: str) -> str:
    """A panel's: the model's name, where there are several, and the direction or plane."""
    words = text(direction.replace("leading curvature of", "curvature of"), 26)
    return f"{text(model, 12)}\n{words}" if model else words.capitalize()
