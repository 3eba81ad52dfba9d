"""Hypothesis tests on benchmark results: comparisons of all algorithms with a baseline, and of their mean ranks.

The functions take arrays, apart from any file. Trials are the unit of the comparisons with a baseline: a trial's splits
and hyperparameter draws are shared by all its test environments, so their results are not independent of each other.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ALPHA = 0.05  # the probability of a false detection
ROUNDING = 1e-9  # differences up to this are rounding errors


class Contrast(NamedTuple):
    """The difference between an algorithm and the baseline, in units of the scores.

    Attributes:
        difference: the mean over trials.
        low, high: simultaneous confidence interval of all contrasts; NaN with a single trial.
        p_value: of the null hypothesis that the difference is 0; NaN with a single trial.
        corrected_p_value: the p-value, corrected for the number of contrasts (`holm`).
        paired_p_value: of the paired t-test of this contrast alone, uncorrected; NaN with a single trial.
    """

    difference: float
    low: float
    high: float
    p_value: float
    corrected_p_value: float
    paired_p_value: float


class Friedman(NamedTuple):
    """Friedman's test of whether some algorithms rank higher than others."""

    statistic: float
    p_value: float


def compare_with_baseline(scores: np.ndarray, baseline: int, level: float = ALPHA) -> list[Contrast]:
    """Compare all algorithms with one of them, given the average of each trial.

    The model is a two-way layout with trials as blocks: score = trial + algorithm + error. The variance of the errors
    is estimated from all algorithms, with (trials - 1)(algorithms - 1) degrees of freedom. This assumes that the
    differences between any two algorithms vary equally over trials (sphericity), unlike the paired t-test of each
    contrast, which has only trials - 1 degrees of freedom. With two algorithms, both are the same.

    Args:
        scores: `[trials, algorithms]`. Trial i of all algorithms used the same data and splits.
        baseline: the column of the baseline.
        level: the probability of any false detection; the intervals (Bonferroni) all cover with probability 1 - level.

    Returns:
        The contrasts of the other columns with the baseline, in their order.

    Raises:
        ValueError: `scores` is not a finite matrix with at least one row and two columns.
    """
    from scipy.stats import t

    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or not len(scores) or scores.shape[1] < 2 or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, [trials, algorithms >= 2], not of shape {scores.shape}")
    trials, algorithms = scores.shape
    differences = np.delete(scores.mean(axis=0) - scores[:, baseline].mean(), baseline)
    differences[np.abs(differences) < ROUNDING] = 0.0
    if trials == 1:
        return [Contrast(float(d), *[math.nan] * 5) for d in differences]
    freedom = (trials - 1) * (algorithms - 1)
    residuals = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    error = math.sqrt(2 * (residuals**2).sum() / freedom / trials)  # standard error of a difference
    p_values = _p_values(differences, np.full(len(differences), error), freedom)
    own_errors = np.delete(scores - scores[:, [baseline]], baseline, axis=1).std(axis=0, ddof=1) / math.sqrt(trials)
    paired = _p_values(differences, own_errors, trials - 1)
    margin = t.ppf(1 - level / 2 / len(differences), freedom) * error
    return [
        Contrast(float(d), float(d - margin), float(d + margin), float(p), float(corrected), float(own))
        for d, p, corrected, own in zip(differences, p_values, holm(p_values), paired, strict=True)
    ]


def _p_values(differences: np.ndarray, errors: np.ndarray, freedom: int) -> np.ndarray:
    """Return two-sided p-values of differences with these standard errors."""
    from scipy.stats import t

    exact = errors < ROUNDING
    p_values = 2 * t.sf(np.abs(differences) / np.where(exact, 1.0, errors), freedom)
    return np.where(exact, np.where(differences == 0, 1.0, 0.0), p_values)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number, in the same order (Holm, 1979).

    Rejecting those up to a level makes any false rejection at most as probable as the level, whatever their dependence.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(corrected, 1.0)


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Return the mean rank of each algorithm over blocks; 1 is the highest score, ties share their mean rank.

    Args:
        scores: `[blocks, algorithms]`.
    """
    return _ranks(scores).mean(axis=0)


def friedman(scores: np.ndarray) -> Friedman:
    """Test whether the algorithms' ranks within blocks differ significantly.

    Args:
        scores: `[blocks, algorithms]`, with at least two blocks and three algorithms.
    """
    from scipy.stats import friedmanchisquare

    ranks = _ranks(scores)
    if (ranks == ranks[0, 0]).all():
        return Friedman(0.0, 1.0)  # all scores of each block are equal
    result = friedmanchisquare(*ranks.T)
    return Friedman(float(result.statistic), float(result.pvalue))


def critical_difference(algorithms: int, blocks: int, level: float = ALPHA) -> float:
    """Return the difference between two mean ranks from which on they differ by the Nemenyi test (Demšar, 2006).

    The probability that it finds any difference between algorithms that do not differ is `level`.
    """
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - level, algorithms, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(algorithms * (algorithms + 1) / (6 * blocks)))


def rank_groups(ranks: Sequence[float] | np.ndarray, difference: float) -> list[list[int]]:
    """Return the largest groups of algorithms whose mean ranks differ by less than the critical difference.

    Groups of one are omitted. Algorithms are numbered as in `ranks`, and sorted by rank within a group.
    """
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    groups: list[list[int]] = []
    end = 0  # of the previous group
    for start in range(len(order)):
        new_end = start
        while new_end < len(order) and ranks[order[new_end]] - ranks[order[start]] < difference:
            new_end += 1
        if new_end > end and new_end - start > 1:
            groups.append(order[start:new_end])
        end = max(end, new_end)
    return groups


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Return the rank of each algorithm within each block; scores that differ by rounding errors are tied."""
    from scipy.stats import rankdata

    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, [blocks, algorithms], not of shape {scores.shape}")
    return rankdata(-np.round(scores, 9), axis=1)
