"""The answers of a sweep, and the differences between those of a replayed sweep and the complete one."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from domainbed.model_selection import RUN_COLUMNS, best_hparams
from domainbed.reporting.cells import benchmark_scores
from domainbed.reporting.comparisons import compare_dataset


class Answers(NamedTuple):
    """The answers in the tables of a sweep, by training-domain validation.

    Attributes:
        cells: the accuracy of each (dataset, algorithm, test environment), in percent.
        averages: the average of each (dataset, algorithm), in percent.
        differences: 1 or -1 if a (dataset or AVERAGE, algorithm) is significantly better or worse than the baseline,
            otherwise 0.
    """

    cells: pd.Series
    averages: pd.Series
    differences: pd.Series


class Change(NamedTuple):
    """The change from the complete sweep to a replay; all but the last three are 0 for the complete sweep itself.

    Attributes:
        cell: mean absolute difference of the cells that both have, in percentage points; NaN if there are none.
        max_cell: the largest of these differences.
        missing: number of cells that the replay lacks.
        swapped: fraction of the pairs of algorithms whose order by average differs, over all datasets, of those whose
            averages both have; NaN if there are none.
        lost, gained, reversed: numbers of differences from the baseline that lose significance, gain it, or change
            sign.
        untested: number of differences from the baseline that the replay lacks the runs to test; they count as not
            significant.
        updates, evaluations, cost: fractions of those of the complete sweep.
    """

    cell: float
    max_cell: float
    missing: int
    swapped: float
    lost: int
    gained: int
    reversed: int
    untested: int
    updates: float
    evaluations: float
    cost: float


def find_answers(curves: pd.DataFrame, environments: Mapping[str, Sequence[str]], baseline: str) -> Answers:
    """Return the answers in the tables of a sweep with these records.

    The differences from the baseline are those of `collect_results --significance`, on each dataset and, if there are
    several, on average. Nothing is compared if the baseline has a single trial, nor is an algorithm that lacks one.

    Args:
        curves: the records; see `policies`.
        environments: the names of each dataset's environments.
        baseline: the algorithm to compare with.
    """
    ranked = curves.dropna(subset=["test_acc"]).sort_values(["val_acc", "step"], ascending=[False, True])
    best = best_hparams(ranked.drop_duplicates(RUN_COLUMNS))
    algorithms = sorted({baseline, *best["algorithm"]})
    parts: list[Mapping[str, Sequence[str]]] = [{dataset: names} for dataset, names in environments.items()]
    averages, differences = {}, {}
    for part, algorithm in itertools.product(parts, algorithms):
        scores, _ = benchmark_scores(best, part, algorithm)
        averages[next(iter(part)), algorithm] = scores.to_numpy().mean() if len(scores) else np.nan
    for part in [*parts, *([environments] if len(environments) > 1 else [])]:
        for c in compare_dataset(best, part, algorithms, baseline).comparisons:
            if c.trials > 1:
                differences[c.dataset, c.algorithm] = int(np.sign(c.difference)) if c.is_significant else 0
    cells = 100 * best.groupby(["dataset", "algorithm", "test_env"])["test_acc"].mean()
    return Answers(cells, pd.Series(averages, dtype=float), pd.Series(differences, dtype=int))


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
    cells = (replayed.cells.reindex(complete.cells.index) - complete.cells).abs()
    before, after = complete.differences, replayed.differences.reindex(complete.differences.index, fill_value=0)
    (updates, evaluations), (all_updates, all_evaluations) = replayed_computing, computing
    return Change(
        cell=float(cells.mean()),
        max_cell=float(cells.max()),
        missing=int(cells.isna().sum()),
        swapped=_swapped(complete.averages, replayed.averages.reindex(complete.averages.index)),
        lost=int(((before != 0) & (after == 0)).sum()),
        gained=int(((before == 0) & (after != 0)).sum()),
        reversed=int((before * after == -1).sum()),
        untested=len(set(complete.differences.index) - set(replayed.differences.index)),
        updates=updates / all_updates,
        evaluations=evaluations / all_evaluations,
        cost=(updates + updates_per_evaluation * evaluations)
        / (all_updates + updates_per_evaluation * all_evaluations),
    )


def _swapped(before: pd.Series, after: pd.Series) -> float:
    """Return the fraction of the pairs of algorithms on a dataset whose order differs; ties count as an order.

    Pairs with a missing average are omitted; NaN if no pair is left.
    """
    is_known = before.notna() & after.notna()
    before, after = before[is_known], after[is_known]
    orders = [
        np.sign(before[dataset][a] - before[dataset][b]) != np.sign(after[dataset][a] - after[dataset][b])
        for dataset in before.index.unique(0)
        for a, b in itertools.combinations(before[dataset].index, 2)
    ]
    return float(np.mean(orders)) if orders else np.nan
