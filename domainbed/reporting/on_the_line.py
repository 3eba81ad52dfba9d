"""Accuracy on the line: does out-of-domain accuracy follow in-domain accuracy, and which algorithms are above the line?

Over many models, the two are often linearly related once they are scaled by the probit, the inverse of the normal
distribution function ("Accuracy on the Line", Miller et al., ICML 2021). The effective robustness of a model is its
out-of-domain accuracy minus that which the line of baseline models predicts from its in-domain accuracy
("Measuring Robustness to Natural Distribution Shifts in Image Classification", Taori et al., NeurIPS 2020).

Intervals are percentiles of a bootstrap over groups of runs. A group is a hyperparameter draw of a trial: its runs
share hyperparameters and splits. The intervals describe other draws, not other trials or environments.
"""

from __future__ import annotations  # pandas is imported when it is needed, so that --help is fast

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from domainbed.reporting.statistics import CONFIDENCE

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000
# Accuracies are clipped to half an image from 0 and 1 of 1,000 images; records lack the number of images.
CLIP = 0.0005
MIN_POINTS = 3  # for a line: two points are always on one
MIN_GROUPS = 5  # for an interval, and for a baseline
ALL = "all"  # the line over the runs of all algorithms
BETTER_HALF = "better half"  # the line over those of ALL whose in-domain accuracy is at least the median


class Line(NamedTuple):
    """Least-squares lines of scaled accuracies, out of domain on in domain: scalars or arrays; NaN if undefined."""

    slope: np.ndarray
    intercept: np.ndarray
    r_squared: np.ndarray


NO_LINE = Line(*np.full(3, math.nan))


class Interval(NamedTuple):
    """A 95% interval; NaN if it is undefined."""

    low: float
    high: float


UNDEFINED = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class LineResult:
    """The runs of an algorithm on one test environment, compared with the line. The fields are columns of the CSV.

    Attributes:
        dataset, test_env: the dataset, and the number of the test environment.
        algorithm: the algorithm, or ALL or BETTER_HALF.
        runs: the number of runs.
        slope, intercept, r_squared: of the line through these runs; NaN if it is undefined, or with fewer than
            MIN_POINTS.
        slope_low, slope_high, r_squared_low, r_squared_high: their 95% intervals; NaN with few groups of runs.
        effective_robustness: the runs' mean accuracy above the line of the baseline, in percentage points; NaN of
            ALL, BETTER_HALF and the baseline, and without MIN_GROUPS groups of the baseline's runs.
        effective_robustness_low, effective_robustness_high: its 95% interval.
        outside: number of runs whose in-domain accuracy is outside the range of the baseline's runs. The line says
            nothing about them, and effective robustness ignores them.
    """

    dataset: str
    test_env: int
    algorithm: str
    runs: int
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    r_squared: float
    r_squared_low: float
    r_squared_high: float
    effective_robustness: float = math.nan
    effective_robustness_low: float = math.nan
    effective_robustness_high: float = math.nan
    outside: int = 0


def scale(accuracy: np.ndarray | pd.Series) -> np.ndarray:
    """Return the probit of accuracies in [0, 1], which are clipped to [CLIP, 1 - CLIP]."""
    from scipy.special import ndtri

    return ndtri(np.clip(np.asarray(accuracy, dtype=float), CLIP, 1 - CLIP))


def unscale(probit: np.ndarray) -> np.ndarray:
    """Return the accuracies, in [0, 1], of probits."""
    from scipy.special import ndtr

    return ndtr(probit)


def fit_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> Line:
    """Fit a line by weighted least squares.

    Args:
        x, y: coordinates, `[n]`.
        weights: `[..., n]`; 1 by default.

    Returns:
        The line of each vector of weights: arrays `[...]`. They are NaN where fewer than two values of x or, for R²,
        of y have weight.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weights.sum(axis=-1)
        mean_x, mean_y = weights @ x / total, weights @ y / total
        # Centered by the unweighted means first, which keeps the rounding errors of the sums of squares small.
        dx, dy = (v - (v.mean() if len(v) else 0.0) for v in (x, y))
        shift_x, shift_y = weights @ dx / total, weights @ dy / total
        xx = weights @ dx**2 / total - shift_x**2
        yy = weights @ dy**2 / total - shift_y**2
        xy = weights @ (dx * dy) / total - shift_x * shift_y
        xx, yy = (np.where(v > 1e-12, v, np.nan) for v in (xx, yy))
        slope = xy / xx
        return Line(slope, mean_y - slope * mean_x, xy**2 / (xx * yy))


def fit_runs(x: np.ndarray, y: np.ndarray) -> Line:
    """Return the line through runs; NO_LINE with fewer than MIN_POINTS."""
    return fit_line(x, y) if len(x) >= MIN_POINTS else NO_LINE


def effective_robustness(
    in_domain: np.ndarray, out_of_domain: np.ndarray, line: Line, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean accuracy of runs above a line, in [-1, 1].

    Args:
        in_domain, out_of_domain: accuracies in [0, 1], `[n]`.
        line: with scalars, or with arrays `[resamples]`.
        weights: `[n]` or `[resamples, n]`; 1 by default. NaN results where they are all 0.
    """
    predicted = unscale(line.intercept[..., None] + line.slope[..., None] * scale(in_domain))
    weights = np.ones(len(in_domain)) if weights is None else weights
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights * (np.asarray(out_of_domain) - predicted)).sum(axis=-1) / weights.sum(axis=-1)


def resample_groups(groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return how often each run occurs in resamples of the groups with replacement, `[resamples, n]`.

    Args:
        groups: the number of each run's group, from 0, `[n]`.
    """
    n = int(groups.max()) + 1
    draws = np.random.RandomState(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    return draws[:, groups]


def compare_with_line(
    selected: pd.DataFrame, environments: Mapping[str, Sequence[str]], algorithms: Sequence[str], baseline: str
) -> list[LineResult]:
    """Compare all runs of each test environment with the line through the runs of a baseline.

    Args:
        selected: one row per run, selected by training-domain: RUN_COLUMNS, `val_acc` and `test_acc` in [0, 1].
        environments: the datasets.
        algorithms: the algorithms, in order.
        baseline: the algorithm whose line predicts the accuracies of the others.
    """
    results = []
    for dataset in environments:
        on_dataset = selected[(selected["dataset"] == dataset) & selected["algorithm"].isin(algorithms)]
        for test_env in sorted(on_dataset["test_env"].unique()):
            runs = on_dataset[on_dataset["test_env"] == test_env]
            results += _compare_runs(dataset, int(test_env), runs, algorithms, baseline)
    return results


def _compare_runs(
    dataset: str, test_env: int, runs: pd.DataFrame, algorithms: Sequence[str], baseline: str
) -> list[LineResult]:
    in_domain, out_of_domain = (runs[name].to_numpy(dtype=float) for name in ("val_acc", "test_acc"))
    x, y, names = scale(in_domain), scale(out_of_domain), runs["algorithm"].to_numpy()
    groups = runs.groupby(["trial_seed", "hparams_seed"]).ngroup().to_numpy()
    weights = resample_groups(groups)
    is_baseline = names == baseline
    line = fit_line(x[is_baseline], y[is_baseline])
    lines = fit_line(x[is_baseline], y[is_baseline], weights[:, is_baseline])
    results = []
    has_baseline = len(np.unique(groups[is_baseline])) >= MIN_GROUPS and not math.isnan(line.slope)
    sets = {ALL: np.full(len(names), True), BETTER_HALF: in_domain >= np.median(in_domain)}
    for algorithm, own in [*sets.items(), *((name, names == name) for name in algorithms)]:
        if not own.any():
            continue
        has_interval = len(np.unique(groups[own])) >= MIN_GROUPS
        fit = fit_runs(x[own], y[own])
        fits = fit_line(x[own], y[own], weights[:, own])
        slope_interval, r_squared_interval = (
            _percentiles(values) if has_interval else UNDEFINED for values in (fits.slope, fits.r_squared)
        )
        robustness, interval, outside = math.nan, UNDEFINED, 0
        if algorithm not in (*sets, baseline) and has_baseline:
            inside = own & (x >= x[is_baseline].min()) & (x <= x[is_baseline].max())
            outside = int(own.sum() - inside.sum())
            args = (in_domain[inside], out_of_domain[inside])
            robustness = 100 * float(effective_robustness(*args, line))
            if len(np.unique(groups[inside])) >= MIN_GROUPS:
                interval = _percentiles(100 * effective_robustness(*args, lines, weights[:, inside]))
        results.append(
            LineResult(
                *(dataset, test_env, algorithm, int(own.sum()), float(fit.slope), *slope_interval),
                *(float(fit.intercept), float(fit.r_squared), *r_squared_interval),
                *(robustness, *interval, outside),
            )
        )
    return results


def _percentiles(values: np.ndarray) -> Interval:
    """Return the interval of the resampled values that are defined."""
    values = values[np.isfinite(values)]
    if not len(values):
        return UNDEFINED
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
