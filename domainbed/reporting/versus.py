"""A paired comparison of two algorithms."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from domainbed.reporting.cells import AVERAGE, benchmark_scores
from domainbed.reporting.statistics import paired_difference, probability_of_improvement


class Comparison(NamedTuple):
    """A paired comparison of two algorithms on one dataset, over the trials that both have completed.

    Attributes:
        dataset: the dataset, or AVERAGE.
        difference, low, high: mean difference in percentage points, and its 95% interval; NaN without trials.
        probability, p_low, p_high: the probability that a trial of the first beats one of the second, and its 95%
            interval; NaN without trials. With a single trial, both intervals are NaN.
        trials: the number of trials.
    """

    dataset: str
    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    probability: float = np.nan
    p_low: float = np.nan
    p_high: float = np.nan
    trials: int = 0


def compare_two(
    best: pd.DataFrame, environments: Mapping[str, Sequence[str]], first: str, second: str
) -> list[Comparison]:
    """Compare two algorithms on each dataset and, last, on their average.

    Args:
        best: the runs behind the cells (`model_selection.best_hparams`).
        environments: the names of each dataset's environments.
        first, second: the algorithms.
    """
    comparisons = []
    for dataset in [*environments, AVERAGE]:
        included = environments if dataset == AVERAGE else {dataset: environments[dataset]}
        first_scores, weights = benchmark_scores(best, included, first)
        second_scores, _ = benchmark_scores(best, included, second)
        trials = first_scores.index.intersection(second_scores.index)
        if len(trials):
            a, b = first_scores.loc[trials].to_numpy(), second_scores.loc[trials].to_numpy()
            difference, improvement = paired_difference(a, b, weights), probability_of_improvement(a, b, weights)
            comparisons.append(Comparison(dataset, *difference, *improvement, len(trials)))
        else:
            comparisons.append(Comparison(dataset))
    return comparisons
