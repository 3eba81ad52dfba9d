"""Uncertainty of benchmark results: standard errors, and bootstrap intervals over all tasks at once.

A task is a test environment of a dataset; scores have the shape `[trials, tasks]`. A statistic is a weighted mean over
tasks of means over trials. With the weights 1 / (number of environments of the task's dataset) it is the mean over
datasets of the datasets' means.

Intervals are percentiles of a stratified bootstrap, which resamples trials with replacement, independently for each
task, as in "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal et al., NeurIPS 2021;
rliable). They describe other trials of the same tasks, not other tasks. They are too narrow for few trials, because
the variance of a resample is (n - 1) / n of the true one: with normally distributed scores, 95% intervals cover the
truth in 75% of cases with 3 trials of one task, about 89% with 3 trials of 31 independent tasks, and 94% with 30 trials
of one task. The tasks of a trial share hyperparameter draws, so real coverage is lower.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95  # of intervals
RESAMPLES = 10_000

CHUNK = 2**18  # numbers to resample at once; limits memory to a few MiB for any number of trials, tasks and resamples


class MeanDifference(NamedTuple):
    """A mean difference, in units of the scores, and its interval."""

    difference: float
    low: float
    high: float


class Improvement(NamedTuple):
    """The probability that one algorithm beats another, in [0, 1], and its interval."""

    probability: float
    low: float
    high: float


def standard_error(scores: np.ndarray) -> float:
    """Return the standard error of the mean of `scores`, `[trials]`.

    As in DomainBed, it is the population standard deviation (not the sample's) divided by the square root of n.

    Raises:
        ValueError: `scores` is empty, not finite, or not a vector.
    """
    scores = _finite(scores, ndim=1)
    return float(scores.std() / np.sqrt(len(scores)))


def bootstrap_interval(
    scores: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of the mean score. With a single trial, both bounds are NaN: every resample is the same.

    Args:
        scores: `[trials, tasks]`.
        weights: non-negative weights of the tasks, `[tasks]`; normalized to sum to 1. Equal by default.
        level: the central share of the bootstrap distribution that the interval covers, between 0 and 1.
        resamples: the number of resamples.
        seed: the random seed; equal seeds give equal results.

    Raises:
        ValueError: `scores` is empty, not finite, or not `[trials, tasks]`; or another argument is invalid.
    """
    scores = _finite(scores, ndim=2)
    weights = _normalize(weights, scores.shape[1])

    def means(rng: np.random.RandomState, count: int) -> np.ndarray:
        resampled = np.take_along_axis(scores[None], _resample(rng, count, scores), axis=1)
        return resampled.mean(axis=1) @ weights

    return _percentiles(means, len(scores), scores.size, level, resamples, seed)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MeanDifference:
    """Return the mean of `a - b`, if trial i of both used the same data and splits.

    The differences of the trials are resampled. What makes a trial easy or hard for both cancels, and the interval is
    narrower than that of two independent samples.

    Args:
        a, b: scores of the same trials and tasks, `[trials, tasks]`.
        weights, level, resamples, seed: as in `bootstrap_interval`.

    Raises:
        ValueError: as in `bootstrap_interval`; or the shapes of `a` and `b` differ.
    """
    a, b = _finite(a, ndim=2), _finite(b, ndim=2)
    if a.shape != b.shape:
        raise ValueError(f"paired scores must have the same shape, not {a.shape} and {b.shape}")
    difference = (a - b).mean(axis=0) @ _normalize(weights, a.shape[1])
    return MeanDifference(float(difference), *bootstrap_interval(a - b, weights, level, resamples, seed))


def probability_of_improvement(
    a: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Improvement:
    """Return the probability that a trial of `a` beats a trial of `b`.

    It is P(A > B) + P(A = B) / 2 over all pairs of trials, averaged over tasks, and does not depend on the size of the
    difference. The interval resamples `a` and `b` independently; with a single trial of each, its bounds are NaN.

    Args:
        a: scores, `[trials of a, tasks]`.
        b: scores on the same tasks, `[trials of b, tasks]`.
        weights, level, resamples, seed: as in `bootstrap_interval`.

    Raises:
        ValueError: as in `bootstrap_interval`; or the numbers of tasks differ.
    """
    a, b = _finite(a, ndim=2), _finite(b, ndim=2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"scores must have the same tasks, not {a.shape[1]} and {b.shape[1]} of them")
    weights = _normalize(weights, a.shape[1])
    wins = (np.sign(a[:, None] - b[None]) + 1) / 2  # [trials of a, trials of b, tasks]
    tasks = np.arange(a.shape[1])
    probability = float(wins.mean(axis=(0, 1)) @ weights)

    def probabilities(rng: np.random.RandomState, count: int) -> np.ndarray:
        rows_a, rows_b = _resample(rng, count, a), _resample(rng, count, b)
        return wins[rows_a[:, :, None], rows_b[:, None], tasks].mean(axis=(1, 2)) @ weights

    trials = max(len(a), len(b))
    return Improvement(probability, *_percentiles(probabilities, trials, wins.size, level, resamples, seed))


def _resample(rng: np.random.RandomState, count: int, scores: np.ndarray) -> np.ndarray:
    """Return the rows of `scores`, `[trials, tasks]`, in `count` resamples: `[count, trials, tasks]`."""
    return rng.randint(len(scores), size=(count, *scores.shape))


def _percentiles(
    statistics: Callable[[np.random.RandomState, int], np.ndarray],
    trials: int,
    size: int,
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return the interval of the values `statistics(rng, count)`, `[count]`, each of `size` resampled numbers."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    if trials == 1:
        return np.nan, np.nan
    rng = np.random.RandomState(seed)  # unlike Generator, its stream is the same in all versions of NumPy
    batch = max(1, CHUNK // size)
    values = [statistics(rng, min(batch, resamples - start)) for start in range(0, resamples, batch)]
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(scores: np.ndarray, ndim: int) -> np.ndarray:
    """Return valid scores as float64."""
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != ndim:
        raise ValueError(f"scores must be {['[trials]', '[trials, tasks]'][ndim - 1]}, not of shape {scores.shape}")
    if not scores.size:
        raise ValueError(f"scores must not be empty (shape {scores.shape})")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; leave out missing tasks or trials")
    return scores


def _normalize(weights: np.ndarray | None, tasks: int) -> np.ndarray:
    """Return valid weights, `[tasks]`, that sum to 1."""
    weights = np.ones(tasks) if weights is None else np.asarray(weights, dtype=float)
    if weights.shape != (tasks,):
        raise ValueError(f"weights must have shape ({tasks},), one per task, not {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("weights must be finite, non-negative, and not all 0")
    return weights / weights.sum()
