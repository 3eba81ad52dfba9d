"""How much the answers of a replayed sweep differ from those of the complete one, and what it saves."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from domainbed.model_selection import RUN_COLUMNS, best_hparams
from domainbed.reporting.cells import AVERAGE, benchmark_scores
from domainbed.reporting.statistics import paired_difference, probability_of_improvement

RESAMPLES = 1000  # of the trials, for the interval of a difference


class Answers(NamedTuple):
    """What the tables of a sweep say, by training-domain validation.

    Attributes:
        cells: the accuracy of each (dataset, algorithm, test environment), in percent.
        averages: the average of each (dataset, algorithm), in percent.
        differences: 1 or -1 if a (dataset or AVERAGE, algorithm) is better or worse than the baseline beyond chance,
            otherwise 0.
    """

    cells: pd.Series
    averages: pd.Series
    differences: pd.Series


class Change(NamedTuple):
    """How one replay differs from the complete sweep; all but the last three are 0 for the complete sweep itself.

    Attributes:
        cell: mean absolute difference of the cells, in percentage points; infinite if a cell is missing.
        max_cell: the largest of these differences.
        swapped: fraction of the pairs of algorithms whose order by average differs, over all datasets.
        lost, gained, reversed: numbers of differences from the baseline that are no longer, newly, or oppositely real.
        updates, evaluations, cost: fractions of those of the complete sweep.
    """

    cell: float
    max_cell: float
    swapped: float
    lost: int
    gained: int
    reversed: int
    updates: float
    evaluations: float
    cost: float


def find_answers(curves: pd.DataFrame, environments: Mapping[str, Sequence[str]], baseline: str) -> Answers:
    """Return what the tables say if these records are all that there are.

    A difference from the baseline is real if the 95% intervals of both the paired difference and the probability of
    improvement (`reporting.statistics`) exclude chance. An algorithm with fewer than two trials in common with the
    baseline is not compared.

    Args:
        curves: the records; see `policies`.
        environments: the names of each dataset's environments.
        baseline: the algorithm to compare with.
    """
    ranked = curves.sort_values(["val_acc", "step"], ascending=[False, True])
    best = best_hparams(ranked.drop_duplicates(RUN_COLUMNS))
    algorithms = sorted({baseline, *best["algorithm"]})
    averages, differences = {}, {}
    for dataset in [*environments, AVERAGE]:
        included = environments if dataset == AVERAGE else {dataset: environments[dataset]}
        scores = {algorithm: benchmark_scores(best, included, algorithm) for algorithm in algorithms}
        reference, weights = scores[baseline]
        for algorithm, (own, _) in scores.items():
            if dataset != AVERAGE:
                averages[dataset, algorithm] = own.to_numpy().mean() if len(own) else np.nan
            if algorithm != baseline:
                trials = own.index.intersection(reference.index)
                pair = own.loc[trials].to_numpy(), reference.loc[trials].to_numpy()
                if len(trials) > 1:
                    differences[dataset, algorithm] = _sign(*pair, weights)
    cells = 100 * best.groupby(["dataset", "algorithm", "test_env"])["test_acc"].mean()
    return Answers(cells, pd.Series(averages, dtype=float), pd.Series(differences, dtype=int))


def _sign(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> int:
    """Return 1 or -1 if `a` is better or worse than `b` beyond chance, otherwise 0; scores are `[trials, tasks]`."""
    difference = paired_difference(a, b, weights, resamples=RESAMPLES)
    improvement = probability_of_improvement(a, b, weights, resamples=RESAMPLES)
    if difference.low > 0 and improvement.low > 0.5:
        return 1
    return -1 if difference.high < 0 and improvement.high < 0.5 else 0


def count_computing(curves: pd.DataFrame) -> tuple[int, int]:
    """Return the numbers of updates and of evaluations of the runs with these records."""
    return int((curves.groupby(RUN_COLUMNS)["step"].max() + 1).sum()), len(curves)


def compare(
    complete: Answers,
    replayed: Answers,
    computing: tuple[int, int],
    replayed_computing: tuple[int, int],
    updates_per_evaluation: float,
) -> Change:
    """Return how the answers and the computing (`count_computing`) of a replay differ from the complete sweep's."""
    cells = (replayed.cells.reindex(complete.cells.index) - complete.cells).abs().fillna(np.inf)
    before, after = complete.differences, replayed.differences.reindex(complete.differences.index, fill_value=0)
    (updates, evaluations), (all_updates, all_evaluations) = replayed_computing, computing
    return Change(
        cell=float(cells.mean()),
        max_cell=float(cells.max()),
        swapped=_swapped(complete.averages, replayed.averages.reindex(complete.averages.index)),
        lost=int(((before != 0) & (after == 0)).sum()),
        gained=int(((before == 0) & (after != 0)).sum()),
        reversed=int((before * after == -1).sum()),
        updates=updates / all_updates,
        evaluations=evaluations / all_evaluations,
        cost=(updates + updates_per_evaluation * evaluations)
        / (all_updates + updates_per_evaluation * all_evaluations),
    )


def _swapped(before: pd.Series, after: pd.Series) -> float:
    """Return the fraction of the pairs of algorithms on a dataset whose order differs; ties count as an order."""
    orders = [
        np.sign(before[dataset][a] - before[dataset][b]) != np.sign(after[dataset][a] - after[dataset][b])
        for dataset in before.index.unique(0)
        for a, b in itertools.combinations(before[dataset].dropna().index, 2)
    ]
    return float(np.mean(orders)) if orders else 0.0
