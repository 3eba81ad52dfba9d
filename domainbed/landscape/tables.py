"""The landscape of one model, and those of several algorithms side by side, as text."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
from tabulate import tabulate

from domainbed.landscape.distances import QUANTITIES, mean_over_pairs, pair_distances, relative_distances
from domainbed.landscape.hessian import HESSIAN_LIMIT
from domainbed.landscape.measure import Landscape, score_name


def as_text(landscape: Landscape) -> str:
    """All that is known of one model, for people who read a terminal."""
    c = landscape.config
    of = "classifier" if landscape.layers == "classifier" else "network"
    tests = " and ".join(landscape.environments[landscape.n_training :])
    curvature = landscape.statistics[0].curvature
    sections = [
        f"{c.algorithm} on {c.dataset}, test {tests}: {landscape.model}\n"
        f"the {of}'s {landscape.n_weights:,} weights; {landscape.part} splits, "
        f"{min(landscape.images):,} to {max(landscape.images):,} images of each environment, [test]",
        _domains_table(landscape, curvature),
        _distances_table(landscape, curvature),
        _scores_table(landscape),
    ]
    notes = []
    if curvature != "Hessian":
        notes.append("GGN: the generalised Gauss-Newton matrix; the network is no chain of layers that BackPACK knows.")
    if ("all", "exact") not in landscape.scores:
        notes.append(f"No exact score: that takes the whole Hessian, of at most {HESSIAN_LIMIT:,} weights.")
    return "\n\n".join([*sections, *notes])


def _domains_table(landscape: Landscape, curvature: str) -> str:
    rows = [
        [
            label,
            f"{s.risk:.4f}",
            f"{100 * s.accuracy:.1f}",
            f"{s.gradient_mean.norm().item():.3g}",
            f"{s.gradient_variance.sum().item():.3g}",
            f"{s.hessian_diagonal.sum().item():.3g}",
            f"{s.cosine:.3f}",
        ]
        for label, s in zip(landscape.labels, landscape.statistics, strict=True)
    ]
    headers = ["Domain", "risk", "accuracy", "|gradient|", "variance, sum", f"{curvature} trace", "cosine"]
    return _tabulated(headers, rows) + f"\ncosine: between the gradients' variance and the {curvature}'s diagonal"


def _distances_table(landscape: Landscape, curvature: str) -> str:
    names, n = landscape.labels, landscape.n_training
    distances = pair_distances(landscape.statistics)
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    rows = [
        [f"{names[a]}, {names[b]}", *(f"{matrix[a, b].item():.3g}" for matrix in distances.values())] for a, b in pairs
    ]
    if n > 1:
        means = [mean_over_pairs(matrix[:n, :n]) for matrix in distances.values()]
        rows.append(["mean, training", *(f"{mean:.3g}" for mean in means)])
        relative = relative_distances(landscape.statistics[:n])
        rows.append(["as part of |a|²", *(f"{value:.3g}" for value in relative.values())])
    headers = ["|a - b|²", *(title.replace("Hessian", curvature) for title in QUANTITIES.values())]
    return _tabulated(headers, rows)


def _scores_table(landscape: Landscape) -> str:
    rows = []
    labels = landscape.labels
    for (of, way), score in landscape.scores.items():
        a, b = score.pair
        numbers = [f"{score.score:.4g}", f"{labels[a]} to {labels[b]}", f"{score.risk_gap:+.4g}", f"{score.ratio:.4g}"]
        rows.append([f"{of} domains", way, *numbers, f"{score.damping:.2g}" if score.damping else "none"])
    headers = [f"Inconsistency, ε = {landscape.epsilon:g}", "Hessians", "score", "at", "risk gap", "ratio", "damping"]
    return _tabulated(headers, rows) + "\nscore = risk gap + ε x ratio, the largest over pairs of domains"


def side_by_side(landscapes: Mapping[str, Sequence[Landscape]]) -> pd.DataFrame:
    """The summaries of several algorithms: a row a figure and algorithm, with `mean` and standard `error` over trials.

    `damped` tells in how many trials a score rests on a Hessian that was damped.

    Args:
        landscapes: of each algorithm one a trial.
    """
    rows = []
    for algorithm, of_trials in landscapes.items():
        figures = pd.DataFrame([landscape.summary() for landscape in of_trials])
        damped = Counter(
            score_name(of, way)
            for landscape in of_trials
            for (of, way), score in landscape.scores.items()
            if score.damping
        )
        for name in map(str, figures):
            values = figures[name]
            rows.append(
                {
                    "algorithm": algorithm,
                    "figure": name,
                    "mean": values.mean(),
                    "error": values.std(ddof=0) / math.sqrt(values.count()),
                    "trials": values.count(),
                    "damped": damped[name],
                }
            )
    return pd.DataFrame(rows)


def side_by_side_text(compared: pd.DataFrame, tablefmt: str = "simple") -> str:
    """A row a figure, a column an algorithm: mean +/- standard error over trials; * where a Hessian was damped."""
    plus_minus = "+/-" if tablefmt == "simple" else "±"
    numbers = zip(compared["mean"], compared["error"], compared["damped"], strict=True)
    cells = compared.assign(
        cell=[f"{mean:.3g} {plus_minus} {error:.1g}{'*' * bool(damped)}" for mean, error, damped in numbers]
    )
    wide = cells.pivot(index="figure", columns="algorithm", values="cell")
    wide = wide.loc[list(dict.fromkeys(compared["figure"])), list(dict.fromkeys(compared["algorithm"]))].fillna("X")
    rows = [[_title(str(name)), *row] for name, row in zip(wide.index, wide.to_numpy().tolist(), strict=True)]
    return _tabulated(["", *map(str, wide.columns)], rows, tablefmt)


def _title(name: str) -> str:
    """A figure of the summary as tables call it."""
    quantity, _, more = name.partition(", ")
    if quantity in QUANTITIES:
        return f"{QUANTITIES[quantity]}, |a - b|²" + (f", {more}" if more else "")
    return name


def _tabulated(headers: Sequence[str], rows: Sequence[Sequence[str]], tablefmt: str = "simple") -> str:
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt, colalign=alignment, disable_numparse=True)
