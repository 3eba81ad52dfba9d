"""How many trials does a comparison need? The smallest difference that a number of trials and draws can show."""

from __future__ import annotations  # pandas is imported when it is needed, so that --help is fast

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from domainbed.model_selection import best_hparams
from domainbed.reporting.cells import AVERAGE, benchmark_scores
from domainbed.reporting.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd

POWER = 0.8
TRIALS = (3, 5, 10, 20)
RESAMPLES = 20  # random subsets of the draws


@dataclass(frozen=True)
class SmallestDifference:
    """The smallest difference between two algorithms' averages that a sweep of this size shows.

    Attributes:
        dataset: the dataset, or AVERAGE.
        draws: the number of hyperparameter draws.
        trials: the number of trials.
        deviation: standard deviation over trials of the paired difference, in percentage points.
        difference: the smallest difference, in percentage points.
    """

    dataset: str
    draws: int
    trials: int
    deviation: float
    difference: float


def smallest_difference(deviation: float, trials: int, power: float = POWER, level: float = ALPHA) -> float:
    """Return the true difference whose sign a two-sided paired t-test detects with probability `power`.

    Args:
        deviation: standard deviation over trials of the paired difference.
        trials: number of trials, at least 2.
        power: probability of detection, above `level`.
        level: probability of a false detection.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = t.ppf(1 - level / 2, trials - 1)

    def missing_power(shift: float) -> float:
        """`shift` is the noncentrality: the difference in standard errors."""
        return nct.sf(critical, trials - 1, shift) - power  # without detections of the wrong sign

    high = 1.0
    while missing_power(high) < 0:
        high *= 2
    return float(deviation * brentq(missing_power, 0, high) / np.sqrt(trials))


def difference_deviation(averages: pd.DataFrame) -> float:
    """Return the standard deviation over trials of the difference between two algorithms, from all pairs.

    It is the root of the mean variance (ddof 1) over pairs, each over the trials that both have, so what makes a trial
    easy or hard for all algorithms cancels.

    Args:
        averages: `[trials, algorithms]`.

    Returns:
        The deviation in units of `averages`; NaN if no two algorithms have two trials in common.
    """
    variances = [(averages[a] - averages[b]).var() for a, b in itertools.combinations(averages.columns, 2)]
    known = [variance for variance in variances if not np.isnan(variance)]
    return float(np.sqrt(np.mean(known))) if known else float("nan")


def smallest_differences(
    selected: pd.DataFrame, environments: Mapping[str, Sequence[str]], algorithms: Sequence[str]
) -> list[SmallestDifference]:
    """Return the smallest differences on each dataset and on average, for all, half and a quarter of the draws.

    Datasets without two algorithms with two trials on all environments have none.

    Args:
        selected: the record selected from each run (`model_selection`).
        environments: the names of each dataset's environments.
        algorithms: the rows of the tables.
    """
    n_draws = selected["hparams_seed"].nunique()
    results = []
    for draws in sorted({n_draws, max(1, n_draws // 2), max(1, n_draws // 4)}, reverse=True):
        rng = np.random.RandomState(0)
        variances: dict[str, list[float]] = {dataset: [] for dataset in (*environments, AVERAGE)}
        for _ in range(RESAMPLES if draws < n_draws else 1):
            best = best_hparams(_keep_draws(selected, rng, draws))
            for dataset, values in variances.items():
                included = environments if dataset == AVERAGE else {dataset: environments[dataset]}
                values.append(difference_deviation(_averages(best, included, algorithms)) ** 2)
        for dataset, values in variances.items():
            deviation = float(np.sqrt(np.mean(values)))
            if not np.isnan(deviation):
                results += [
                    SmallestDifference(dataset, draws, n, deviation, smallest_difference(deviation, n)) for n in TRIALS
                ]
    order = {dataset: i for i, dataset in enumerate((*environments, AVERAGE))}
    return sorted(results, key=lambda result: order[result.dataset])


def _averages(best: pd.DataFrame, environments: Mapping[str, Sequence[str]], algorithms: Sequence[str]) -> pd.DataFrame:
    """Return the average of each trial and algorithm, in percent, `[trials, algorithms]`."""
    import pandas as pd

    averages = {}
    for algorithm in algorithms:
        scores, weights = benchmark_scores(best, environments, algorithm)
        averages[algorithm] = scores @ (weights / weights.sum())
    return pd.DataFrame(averages)


def _keep_draws(selected: pd.DataFrame, rng: np.random.RandomState, n: int) -> pd.DataFrame:
    """Return the runs of n draws of each trial: the defaults (draw 0) if present, and random ones."""
    import pandas as pd

    kept = []
    for _, runs in selected.groupby("trial_seed"):
        draws = rng.permutation(np.unique(runs["hparams_seed"]))
        kept.append(runs[runs["hparams_seed"].isin(sorted(draws, key=bool)[:n])])  # stable: 0 first
    return pd.concat(kept)
