"""Text tables of one model's loss landscape, and of several algorithms compared."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
from tabulate import tabulate

from domainbed.landscape import QUANTITIES
from domainbed.landscape.distances import mean_over_pairs
from domainbed.landscape.hessian import MAX_HESSIAN_SIZE
from domainbed.landscape.measure import Landscape, score_name
from domainbed.reporting.statistics import standard_error


def format_landscape(landscape: Landscape) -> str:
    """Return the tables of one model."""
    config = landscape.config
    network = "classifier" if landscape.layers == "classifier" else "network"
    test_envs = " and ".join(landscape.environments[landscape.n_training :])
    curvature = landscape.statistics[0].curvature
    sections = [
        f"{config.algorithm} on {config.dataset}, test {test_envs}: {landscape.model}\n"
        f"{landscape.n_weights:,} weights of the {network}; {landscape.part} splits, {min(landscape.images):,} to "
        f"{max(landscape.images):,} images per environment, [test]",
        _domains_table(landscape, curvature),
        _distances_table(landscape, curvature),
        _scores_table(landscape),
    ]
    if curvature != "Hessian":
        sections.append(
            "GGN: generalized Gauss-Newton matrix; BackPACK cannot compute the Hessian diagonal of this network."
        )
    if ("all", "exact") not in landscape.scores:
        sections.append(f"No exact scores: they require the full Hessian (at most {MAX_HESSIAN_SIZE:,} weights).")
    return "\n\n".join(sections)


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
    headers = ["Environment", "risk", "accuracy", "|gradient|", "variance, sum", f"{curvature} trace", "cosine"]
    return _format_table(headers, rows) + f"\ncosine: between gradient variance and {curvature} diagonal"


def _distances_table(landscape: Landscape, curvature: str) -> str:
    labels = landscape.labels
    distances = landscape.squared_distances
    pairs = [(a, b) for a in range(len(labels)) for b in range(a + 1, len(labels))]
    rows = [
        [f"{labels[a]}, {labels[b]}", *(f"{matrix[a, b].item():.3g}" for matrix in distances.values())]
        for a, b in pairs
    ]
    if landscape.n_training > 1:
        means = [mean_over_pairs(matrix) for matrix in landscape.training_distances.values()]
        rows.append(["mean, training", *(f"{mean:.3g}" for mean in means)])
        relative = landscape.relative_training_distances.values()
        rows.append(["relative to |a|²", *(f"{value:.3g}" for value in relative)])
    headers = ["|a - b|²", *(title.replace("Hessian", curvature) for title in QUANTITIES.values())]
    return _format_table(headers, rows)


def _scores_table(landscape: Landscape) -> str:
    rows = []
    labels = landscape.labels
    for (domain_set, hessians), score in landscape.scores.items():
        a, b = score.pair
        values = [f"{score.score:.4g}", f"{labels[a]} to {labels[b]}", f"{score.risk_gap:+.4g}", f"{score.ratio:.4g}"]
        damping = f"{score.damping:.2g}" if score.damping else "none"
        rows.append([f"{domain_set} environments", hessians, *values, damping])
    headers = [f"Inconsistency, ε = {landscape.epsilon:g}", "Hessians", "score", "pair", "risk gap", "ratio", "damping"]
    return _format_table(headers, rows) + "\nscore = risk gap + ε x ratio, maximum over pairs of environments"


def compare_algorithms(landscapes: Mapping[str, Sequence[Landscape]]) -> pd.DataFrame:
    """Return the summaries of several algorithms, averaged over trials.

    Args:
        landscapes: the landscapes of each algorithm, one per trial.

    Returns:
        One row per algorithm and quantity: `algorithm`, `metric` (name of the quantity), `mean`, `error` (standard
        error), `trials`, and `damped` (number of trials in which the score used a damped Hessian).
    """
    rows = []
    for algorithm, trials in landscapes.items():
        summaries = pd.DataFrame([landscape.summary() for landscape in trials])
        damped = Counter(
            score_name(*key) for landscape in trials for key, score in landscape.scores.items() if score.damping
        )
        for name in map(str, summaries):
            values = summaries[name].dropna().to_numpy()
            rows.append(
                {
                    "algorithm": algorithm,
                    "metric": name,
                    "mean": values.mean(),
                    "error": standard_error(values) if len(values) > 1 else math.nan,
                    "trials": len(values),
                    "damped": damped[name],
                }
            )
    return pd.DataFrame(rows)


def format_comparison(comparison: pd.DataFrame, tablefmt: str = "simple") -> str:
    """Return a table with one row per quantity and one column per algorithm: mean +/- standard error over trials.

    A single trial has no error. An asterisk marks scores with a damped Hessian.
    """
    plus_minus = "+/-" if tablefmt == "simple" else "±"
    values = zip(comparison["mean"], comparison["error"], comparison["damped"], strict=True)
    cells = comparison.assign(
        cell=[
            f"{mean:.3g}{'' if math.isnan(error) else f' {plus_minus} {error:.1g}'}{'*' * bool(damped)}"
            for mean, error, damped in values
        ]
    )
    table = cells.pivot(index="metric", columns="algorithm", values="cell")
    order = list(dict.fromkeys(comparison["metric"])), list(dict.fromkeys(comparison["algorithm"]))
    table = table.loc[order].fillna("X")
    rows = [[_row_title(str(name)), *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    return _format_table(["", *map(str, table.columns)], rows, tablefmt)


def _row_title(name: str) -> str:
    quantity, _, suffix = name.partition(", ")
    if quantity in QUANTITIES:
        return f"{QUANTITIES[quantity]}, |a - b|²" + (f", {suffix}" if suffix else "")
    return name


def _format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], tablefmt: str = "simple") -> str:
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt, colalign=alignment, disable_numparse=True)
