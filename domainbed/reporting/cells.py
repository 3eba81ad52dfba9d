"""Cells of the tables: accuracies in percent, and the runs behind them."""

from __future__ import annotations  # pandas is imported when it is needed, so that --help is fast

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.model_selection import WITH_PAIRS, best_hparams
from domainbed.reporting.published import AVERAGE, PublishedResult, find_published, find_published_average
from domainbed.reporting.statistics import bootstrap_interval, standard_error
from domainbed.sweep.status import FINISHED, JobState

if TYPE_CHECKING:
    import pandas as pd

AVERAGES = "Averages"  # the table of averages over datasets
RANK = "Rank"
RELATIVE = "vs."  # the difference of AVERAGE from that of another algorithm; printed with the algorithm's name
SUMMARIES = (AVERAGE, RELATIVE, RANK)  # columns that are no environments and no datasets
PARTIAL_MARK = "*"
UNFINISHED_MARK = "~"
PRUNED_MARK = "^"


@dataclass(frozen=True)
class Cell:
    """One cell of a table, from model selection to the printed page. The fields are named like the columns of the CSV.

    Attributes:
        selection: the selection method.
        table: the dataset, or AVERAGES.
        algorithm: the row.
        column: an environment (in AVERAGES, a dataset), or one of SUMMARIES.
        mean: mean test accuracy over trials, in percent (of RELATIVE, the difference; of RANK, the mean rank); NaN if
            missing.
        standard_error: standard error over trials, in percent; NaN if undefined.
        low, high: bounds of the 95% interval, in percent; NaN if not computed.
        trials: number of trials behind `mean`.
        trials_requested: number of requested trials.
        runs: number of requested runs in each state; these are the runs that the method selects from.
        runs_unusable: number of finished runs that the method cannot select from.
        unfinished_selected: number of selected runs that are not done.
        reference: the published result, if any.
        place: 1 for the best of the column as printed, 2 for the second best, otherwise 0.
    """

    selection: str
    table: str
    algorithm: str
    column: str
    mean: float
    standard_error: float
    low: float
    high: float
    trials: int
    trials_requested: int
    runs: Counter[JobState]
    runs_unusable: int
    unfinished_selected: int
    reference: PublishedResult | None
    place: int = 0

    @property
    def runs_requested(self) -> int:
        return self.runs.total()

    @property
    def runs_done(self) -> int:
        return self.runs[JobState.DONE]

    @property
    def difference(self) -> float:
        """The mean minus the published accuracy; NaN if either is missing."""
        return self.mean - self.reference.accuracy if self.reference else np.nan

    @property
    def is_missing(self) -> bool:
        return bool(np.isnan(self.mean))

    @property
    def is_partial(self) -> bool:
        """True if requested trials or runs are missing, neither done nor pruned, or unusable."""
        return (
            sum(self.runs[state] for state in FINISHED) < self.runs_requested
            or self.trials < self.trials_requested
            or self.runs_unusable > 0
        )

    @property
    def mark(self) -> str:
        """The marks after the number; the notes below the table explain them."""
        if self.is_missing:
            return ""
        marks = {
            PARTIAL_MARK: self.is_partial,
            UNFINISHED_MARK: self.unfinished_selected,
            PRUNED_MARK: self.runs[JobState.PRUNED],
        }
        return "".join(mark for mark, is_set in marks.items() if is_set)

    @property
    def counts(self) -> str:
        """The trials and runs behind the cell: "1 of 2 trials, 3 of 4 runs done (1 failed)"."""
        if not self.runs_requested:
            return "not requested"
        text = f"{self.trials} of {self.trials_requested} trials, {self.runs_done} of {self.runs_requested} runs done"
        others = [f"{self.runs[s]} {s.value}" for s in JobState if self.runs[s] and s != JobState.DONE]
        text += f" ({', '.join(others)})" if others else ""
        return text + (f", {self.runs_unusable} not usable by this method" if self.runs_unusable else "")


def environment_numbers(names: Mapping[int, str]) -> dict[str, int]:
    """Return environment numbers by name and by number as text; on a conflict, the number takes precedence."""
    return {name: env for env, name in names.items()} | {str(env): env for env in names}


def environment_names(jobs: pd.DataFrame, dataset: str) -> list[str]:
    """Return the names of a dataset's environments: the dataset's own, those in the records, or env0, env1, ….

    Names are unique, and none is in SUMMARIES. `jobs` is `load.Sweep.jobs`.
    """
    if dataset in DATASETS and DATASETS[dataset].ENVIRONMENTS:
        return DATASETS[dataset].ENVIRONMENTS
    jobs = jobs[jobs["dataset"] == dataset]
    if recorded := [names for names in jobs["environments"].unique() if names]:
        names = list(recorded[-1])
        return [f"{name} ({i})" if names.count(name) > 1 or name in SUMMARIES else name for i, name in enumerate(names)]
    return [f"env{i}" for i in range(jobs["n_environments"].max() if len(jobs) else 0)]


def testable_names(jobs: pd.DataFrame, dataset: str) -> list[str]:
    """Return the names of the environments that can be tested on: the first ones of `environment_names`."""
    n_testable = DATASETS[dataset].N_TESTABLE if dataset in DATASETS else None
    return environment_names(jobs, dataset)[:n_testable]


def testable(runs: pd.DataFrame, environments: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the rows of these datasets whose `test_env` is one of their `testable_names`.

    DomainBed also tests on environments that a dataset does not mean for testing.
    """
    n_testable = runs["dataset"].map({dataset: len(names) for dataset, names in environments.items()})
    return runs[runs["test_env"].astype(int) < n_testable]


def frozen_backbone(jobs: pd.DataFrame, dataset: str) -> str:
    """Return "frozen" and the name of the backbone of a dataset's jobs, or "" if all of them fine-tune it.

    If they differ, all kinds are named. `jobs` is `load.Sweep.jobs`.
    """
    kinds = sorted(jobs.loc[jobs["dataset"] == dataset, "backbone"].unique())
    return " and ".join(kind or "fine-tuned" for kind in kinds) if any(kinds) else ""


def known_first(names: pd.Series, known: Sequence[str]) -> list[str]:
    """Return the distinct `names`: known ones in the order of `known`, then the others alphabetically.

    A variant of a known name, such as `ERM+SWAD`, follows it.
    """
    order = {name: i for i, name in enumerate(known)}
    return sorted(set(names), key=lambda name: (order.get(name.partition("+")[0], len(order)), name))


def datasets_of(runs: pd.DataFrame) -> list[str]:
    """Return the datasets of these runs, in the order of the published tables."""
    return known_first(runs["dataset"], list(DATASETS))


def algorithms_of(runs: pd.DataFrame) -> list[str]:
    """Return the algorithms of these runs in the order of registration, ERM first."""
    return known_first(runs["algorithm"], list(ALGORITHMS))


def benchmark_scores(
    best: pd.DataFrame, environments: Mapping[str, Sequence[str]], algorithm: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the accuracies behind an algorithm's average over datasets.

    Args:
        best: the best run of each trial (`model_selection.best_hparams`).
        environments: the names of each dataset's environments.

    Returns:
        scores: `[trials, environments of all datasets]`, in percent, of the trials that have all of them.
        weights: `[environments of all datasets]`; the weighted mean is the mean of the datasets' means.
    """
    import pandas as pd

    accuracies = [_test_accuracies(best, dataset, algorithm, len(names)) for dataset, names in environments.items()]
    weights = np.concatenate([np.full(len(names), 1 / len(names)) for names in environments.values()])
    return 100 * pd.concat(accuracies, axis="columns").dropna(), weights / len(environments)


def _test_accuracies(best: pd.DataFrame, dataset: str, algorithm: str, n: int) -> pd.DataFrame:
    """Return the selected runs' accuracies on their test environments, `[trials, n environments]`; NaN if missing."""
    runs = best[(best["dataset"] == dataset) & (best["algorithm"] == algorithm)]
    accuracies = runs.pivot(index="trial_seed", columns="test_env", values="test_acc")
    return accuracies.reindex(columns=range(n)).astype(float)


def make_cells(
    runs: pd.DataFrame,
    selected: pd.DataFrame,
    selection: str,
    environments: Mapping[str, Sequence[str]],
    algorithms: Sequence[str],
    backbones: Mapping[str, str],
    bootstrap: bool = False,
) -> list[Cell]:
    """Return every cell of every dataset's table, including missing ones.

    A dataset's AVERAGE is the mean over environments and over the trials that have all environments.

    Args:
        runs: the requested runs (`load.Sweep.runs`).
        selected: the record that the selection method selected from each run (`model_selection`). A cell takes the
            best run of each trial.
        selection: the name of the selection method.
        environments: the names of each dataset's environments.
        algorithms: the rows.
        backbones: the frozen backbone of each dataset's jobs, or "" (`frozen_backbone`). Cells of frozen backbones have
            no published reference, because published ones are from fine-tuned networks.
        bootstrap: whether to compute 95% intervals.
    """
    requested: dict[tuple[str, str], Counter[tuple[tuple[int, ...], JobState]]] = defaultdict(Counter)
    for dataset, algorithm, *run in zip(
        *(runs[c] for c in ("dataset", "algorithm", "test_envs", "state")), strict=True
    ):
        requested[dataset, algorithm][tuple(run)] += 1
    trials_requested = runs.groupby(["dataset", "algorithm"])["trial_seed"].nunique().to_dict()
    done = set(runs.loc[runs["state"] == JobState.DONE, "folder"])
    usable: Counter[tuple[str, str, int]] = Counter()
    for dataset, algorithm, env, folder in zip(
        *(selected[c].tolist() for c in ("dataset", "algorithm", "test_env", "folder")), strict=True
    ):
        usable[dataset, algorithm, env] += folder in done
    best = best_hparams(selected)
    best = best.assign(is_unfinished=[folder not in done for folder in best["folder"]])

    cells = []
    for (dataset, names), algorithm in itertools.product(environments.items(), algorithms):
        row = best[(best["dataset"] == dataset) & (best["algorithm"] == algorithm)]
        accuracies = _test_accuracies(best, dataset, algorithm, len(names))
        states = requested[dataset, algorithm]
        unusable = [states[(env,), JobState.DONE] - usable[dataset, algorithm, env] for env in range(len(names))]
        for column, envs in [*((name, [env]) for env, name in enumerate(names)), (AVERAGE, [*range(len(names))])]:
            cell = Cell(
                *(selection, dataset, algorithm, column),
                **_mean(accuracies[envs], bootstrap),
                trials_requested=trials_requested.get((dataset, algorithm), 0),
                runs=_count_runs(states, envs, max_test_envs=2 if selection in WITH_PAIRS else 1),
                runs_unusable=sum(unusable[env] for env in envs),
                unfinished_selected=int(row.loc[row["test_env"].isin(envs), "is_unfinished"].sum()),
                reference=None if backbones[dataset] else find_published(selection, dataset, column, algorithm),
            )
            cells.append(cell)
    return cells


def _mean(accuracies: pd.DataFrame, bootstrap: bool) -> dict[str, Any]:
    """Return the mean, in percent, over the trials of `accuracies`, `[trials, environments]`, that have no NaN."""
    percent = 100 * accuracies.dropna().to_numpy()
    if not len(percent):
        return {"mean": np.nan, "standard_error": np.nan, "low": np.nan, "high": np.nan, "trials": 0}
    means = percent.mean(axis=1)
    low, high = bootstrap_interval(percent) if bootstrap else (np.nan, np.nan)
    return {
        "mean": means.mean(),
        "standard_error": standard_error(means),
        "low": low,
        "high": high,
        "trials": len(means),
    }


def _count_runs(
    states: Mapping[tuple[tuple[int, ...], JobState], int], envs: Collection[int], max_test_envs: int
) -> Counter[JobState]:
    """Count, by state, the runs with at most `max_test_envs` test environments, including one of `envs`."""
    counts: Counter[JobState] = Counter()
    for (test_envs, state), n in states.items():
        if len(test_envs) <= max_test_envs and any(env in envs for env in test_envs):
            counts[state] += n
    return counts


def average_cells(cells: Sequence[Cell], backbones: Mapping[str, str]) -> list[Cell]:
    """Return the cells of the table AVERAGES: each dataset's average, their mean (AVERAGE), and the mean rank (RANK).

    The mean over datasets requires all of them; it has no standard error, and its counts are sums over datasets. RANK
    is the mean over datasets of an algorithm's rank (1 is best; ties share their mean rank) among the algorithms that
    have every dataset, as in the Fishr paper; other algorithms have none. `backbones` is that of `make_cells`.
    """
    import pandas as pd

    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.column == AVERAGE:
            rows.setdefault(cell.algorithm, []).append(replace(cell, table=AVERAGES, column=cell.table))
    means = pd.DataFrame([[cell.mean for cell in row] for row in rows.values()], index=list(rows))
    ranks = means.dropna().round(9).rank(ascending=False).mean(axis=1)  # means that differ by rounding errors are tied
    for algorithm, row in rows.items():
        average = Cell(
            *(row[0].selection, AVERAGES, algorithm, AVERAGE),
            mean=float(np.mean([cell.mean for cell in row])),
            standard_error=np.nan,
            low=np.nan,
            high=np.nan,
            trials=sum(cell.trials for cell in row),
            trials_requested=sum(cell.trials_requested for cell in row),
            runs=sum((cell.runs for cell in row), Counter()),
            runs_unusable=sum(cell.runs_unusable for cell in row),
            unfinished_selected=sum(cell.unfinished_selected for cell in row),
            reference=None
            if any(backbones.values())
            else find_published_average(row[0].selection, [cell.column for cell in row], algorithm),
        )
        rank = replace(average, column=RANK, mean=ranks.get(algorithm, np.nan), reference=None)
        rows[algorithm] = [*row, average, rank]
    return [cell for row in rows.values() for cell in row]


def with_differences(cells: Sequence[Cell], reference: str) -> list[Cell]:
    """Return the cells, with a cell RELATIVE after each AVERAGE: its mean minus that of the algorithm `reference`.

    The runs behind such a cell are those of both algorithms, so it is marked if either lacks some.
    """
    averages = {cell.table: cell for cell in cells if (cell.algorithm, cell.column) == (reference, AVERAGE)}
    result = []
    for cell in cells:
        result.append(cell)
        if cell.column == AVERAGE:
            missing: dict[str, Any] = dict.fromkeys(("standard_error", "low", "high"), np.nan)
            other = averages[cell.table]
            difference = replace(cell, column=RELATIVE, mean=cell.mean - other.mean, reference=None, **missing)
            if cell.algorithm != reference:
                names = ("trials", "trials_requested", "runs", "runs_unusable", "unfinished_selected")
                difference = replace(difference, **{n: getattr(cell, n) + getattr(other, n) for n in names})
            result.append(difference)
    return result
