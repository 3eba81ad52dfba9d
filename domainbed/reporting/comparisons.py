"""Comparisons of all algorithms of a sweep: with a baseline, paired by trial, and by their mean ranks."""

from __future__ import annotations  # pandas is imported when it is needed, so that --help is fast

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from domainbed.reporting.cells import AVERAGE, SUMMARIES, Cell, benchmark_scores
from domainbed.reporting.significance import (
    ALPHA,
    Friedman,
    compare_with_baseline,
    critical_difference,
    friedman,
    mean_ranks,
    rank_groups,
)

if TYPE_CHECKING:
    import pandas as pd

MIN_DATASETS = 5  # to rank over datasets; with fewer, blocks are their test environments


@dataclass(frozen=True)
class BaselineComparison:
    """The comparison of an algorithm with the baseline on one dataset. The fields are the columns of the CSV.

    Attributes:
        dataset: the dataset, or AVERAGE.
        algorithm, baseline: the names.
        difference: mean of the algorithm minus that of the baseline, in percentage points.
        low, high: 95% interval, simultaneously for all algorithms on the dataset; NaN with a single trial.
        p_value, corrected_p_value: of no difference; NaN with a single trial.
        paired_p_value: that of the paired t-test with the baseline alone, uncorrected; NaN with a single trial.
        pairs_won: number of pairs (trial and test environment) in which the algorithm is better.
        pairs: number of pairs.
        trials: number of trials.
        compared: number of algorithms that the p-value is corrected for.
    """

    dataset: str
    algorithm: str
    baseline: str
    difference: float
    low: float
    high: float
    p_value: float
    corrected_p_value: float
    paired_p_value: float
    pairs_won: int
    pairs: int
    trials: int
    compared: int

    @property
    def is_significant(self) -> bool:
        return self.corrected_p_value <= ALPHA


@dataclass(frozen=True)
class DatasetComparisons:
    """The comparisons of all algorithms with the baseline on one dataset.

    Attributes:
        dataset: the dataset, or AVERAGE.
        n_datasets: the number of datasets, if the dataset is AVERAGE.
        excluded: the algorithms that lack a result in a trial and test environment in which the baseline has one.
        trials: the number of trials in which the baseline has a result in every test environment.
    """

    dataset: str
    n_datasets: int
    comparisons: list[BaselineComparison]
    excluded: list[str]
    trials: int


@dataclass(frozen=True)
class RankComparison:
    """The mean ranks of algorithms over blocks, and Friedman's and Nemenyi's tests of them.

    Attributes:
        ranks: the mean rank of each algorithm that has a result in every block, best first.
        unit: what a block is: "dataset", or "test environment" (of any dataset).
        blocks: the number of blocks.
        n_datasets: the number of datasets that they belong to.
        excluded: the algorithms that lack a block.
        test: Friedman's test; None with fewer than three algorithms or two blocks.
        critical_difference: Nemenyi's, between two mean ranks; NaN without a test.
        groups: largest groups of algorithms that do not differ significantly; all are one if Friedman's test finds
            nothing.
    """

    ranks: dict[str, float]
    unit: str
    blocks: int
    n_datasets: int
    excluded: list[str]
    test: Friedman | None
    critical_difference: float
    groups: list[list[str]]

    @property
    def is_significant(self) -> bool:
        """Whether Friedman's test finds that ranks differ."""
        return self.test is not None and self.test.p_value <= ALPHA

    def separates(self, first: str, second: str) -> bool:
        """Return whether the tests find that two ranked algorithms differ."""
        return self.is_significant and abs(self.ranks[first] - self.ranks[second]) >= self.critical_difference


@dataclass(frozen=True)
class Significance:
    """All comparisons of a selection method's results: on each dataset, over several of them, and of ranks."""

    baseline: str
    datasets: list[DatasetComparisons]
    ranks: RankComparison


def compare_all(
    best: pd.DataFrame,
    cells: Sequence[Cell],
    environments: Mapping[str, Sequence[str]],
    algorithms: Sequence[str],
    baseline: str,
) -> Significance:
    """Compare all algorithms with the baseline, and their mean ranks.

    Args:
        best: the best run of each trial (`model_selection.best_hparams`).
        cells: the cells of the datasets' tables (`cells.make_cells`).
        environments: the names of each dataset's environments.
        algorithms: the rows of the tables.
        baseline: one of the algorithms.
    """
    datasets = [*environments, *([AVERAGE] if len(environments) > 1 else [])]
    compared = [
        compare_dataset(best, environments if name == AVERAGE else {name: environments[name]}, algorithms, baseline)
        for name in datasets
    ]
    return Significance(baseline, compared, rank_algorithms(cells, algorithms))


def compare_dataset(
    best: pd.DataFrame, environments: Mapping[str, Sequence[str]], algorithms: Sequence[str], baseline: str
) -> DatasetComparisons:
    """Compare all algorithms with the baseline on one dataset, or on the average over several.

    The arguments are those of `compare_all`.
    """
    scores, weights = {}, np.zeros(0)
    for algorithm in algorithms:
        scores[algorithm], weights = benchmark_scores(best, environments, algorithm)
    trials = scores[baseline].index
    others = [name for name in algorithms if name != baseline]
    compared = [name for name in others if len(trials) and trials.isin(scores[name].index).all()]
    dataset = AVERAGE if len(environments) > 1 else next(iter(environments))
    comparisons: list[BaselineComparison] = []
    if compared:
        pairs = {name: scores[name].loc[trials].to_numpy() for name in [baseline, *compared]}
        by_trial = np.column_stack([pairs[name] @ weights / weights.sum() for name in pairs])
        comparisons = [
            BaselineComparison(
                *(dataset, name, baseline, *contrast),
                pairs_won=int((pairs[name] > pairs[baseline]).sum()),
                pairs=pairs[name].size,
                trials=len(trials),
                compared=len(compared),
            )
            for name, contrast in zip(compared, compare_with_baseline(by_trial, 0), strict=True)
        ]
    excluded = [name for name in others if name not in compared]
    return DatasetComparisons(dataset, len(environments), comparisons, excluded, len(trials))


def rank_algorithms(cells: Sequence[Cell], algorithms: Sequence[str]) -> RankComparison:
    """Rank the algorithms within each dataset if there are MIN_DATASETS of them, otherwise in each test environment.

    Args:
        cells: the cells of the datasets' tables (`cells.make_cells`).
        algorithms: the rows of the tables.
    """
    datasets = dict.fromkeys(cell.table for cell in cells)
    by_dataset = len(datasets) >= MIN_DATASETS
    blocks: dict[tuple[str, str], dict[str, float]] = {}
    for cell in cells:
        if (cell.column == AVERAGE) if by_dataset else (cell.column not in SUMMARIES):
            blocks.setdefault((cell.table, cell.column), {})[cell.algorithm] = cell.mean
    # A test environment that no algorithm has is not part of the sweep.
    blocks = {block: means for block, means in blocks.items() if not all(map(math.isnan, means.values()))}
    shown = [*blocks.values()]
    ranked = [name for name in algorithms if not any(math.isnan(means[name]) for means in shown)] if shown else []
    scores = np.array([[means[name] for name in ranked] for means in shown]).reshape(len(shown), len(ranked))
    ranks = dict(zip(ranked, map(float, mean_ranks(scores)), strict=True)) if ranked else {}
    test, difference, groups = None, math.nan, []
    if len(ranked) >= 3 and len(shown) >= 2:
        test = friedman(scores)
        difference = critical_difference(len(ranked), len(shown))
        distance = difference if test.p_value <= ALPHA else math.inf
        groups = [[ranked[i] for i in group] for group in rank_groups([*ranks.values()], distance)]
    return RankComparison(
        ranks={name: ranks[name] for name in sorted(ranks, key=lambda name: ranks[name])},
        unit="dataset" if by_dataset else "test environment",
        blocks=len(shown),
        n_datasets=len({dataset for dataset, _ in blocks}),
        excluded=[name for name in algorithms if name not in ranked],
        test=test,
        critical_difference=difference,
        groups=groups,
    )
