"""The cells of the tables: accuracies in percent, mean and standard error over trials, and what they rest on."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.model_selection import best_hparams
from domainbed.reporting.statistics import bootstrap_interval, standard_error
from domainbed.sweep.status import JobState

AVERAGE = "Avg"
RANK = "Rank"
COUNTS = [state.name.lower() for state in JobState]  # how many of a cell's runs are in which state


def environment_numbers(names: Mapping[int, str]) -> dict[str, int]:
    """The number of each environment by what may stand for it: its name or, before a name that looks so, its number."""
    return {name: env for env, name in names.items()} | {str(env): env for env in names}


def environment_names(jobs: pd.DataFrame, dataset: str) -> list[str]:
    """The names of a dataset's environments: the dataset's own, or the records', or else env0, env1, …

    Each is another, and none is AVERAGE. `jobs` is that of a load.Sweep.
    """
    if dataset in DATASETS and DATASETS[dataset].ENVIRONMENTS:
        return DATASETS[dataset].ENVIRONMENTS
    of_dataset = jobs[jobs["dataset"] == dataset]
    if told := [names for names in of_dataset["environments"].unique() if names]:
        names = list(told[-1])
        return [f"{n} ({i})" if names.count(n) > 1 or n == AVERAGE else n for i, n in enumerate(names)]
    return [f"env{i}" for i in range(of_dataset["n_environments"].max() if len(of_dataset) else 0)]


def known_first(names: pd.Series, known: Sequence[str]) -> list[str]:
    """The distinct `names`: those that are known in their order, then the others by the alphabet."""
    present = set(names)
    return [n for n in known if n in present] + sorted(present - set(known))


def datasets_of(runs: pd.DataFrame) -> list[str]:
    """The datasets of these runs, in the order of the published tables."""
    return known_first(runs["dataset"], list(DATASETS))


def algorithms_of(runs: pd.DataFrame) -> list[str]:
    """The algorithms of these runs, ERM first, as they are registered."""
    return known_first(runs["algorithm"], list(ALGORITHMS))


def test_accuracies(best: pd.DataFrame, dataset: str, algorithm: str, n: int) -> pd.DataFrame:
    """Of the chosen runs, the accuracies on the test environment: [trials, n environments], NaN where there is none."""
    runs = best[(best["dataset"] == dataset) & (best["algorithm"] == algorithm)]
    accuracies = runs.pivot(index="trial_seed", columns="test_env", values="test_acc")
    return accuracies.reindex(columns=range(n)).astype(float)


test_accuracies.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def scores_of(
    best: pd.DataFrame, names: Mapping[str, Sequence[str]], algorithm: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """The accuracies behind the average over datasets, in percent, of the trials that have them all.

    Returns:
        [trials, test environments of all datasets], and the environments' weights, with which their mean is the mean
        of the datasets' means.
    """
    of_datasets = {d: test_accuracies(best, d, algorithm, len(environments)) for d, environments in names.items()}
    weights = np.concatenate([np.full(len(environments), 1 / len(environments)) for environments in names.values()])
    return 100 * pd.concat(of_datasets, axis="columns").dropna(), weights / len(names)


def make_cells(
    runs: pd.DataFrame,
    chosen: pd.DataFrame,
    names: Mapping[str, Sequence[str]],
    algorithms: Sequence[str],
    with_pairs: bool = False,
    bootstrap: bool = False,
) -> pd.DataFrame:
    """Every cell of every dataset's table, missing ones too.

    Args:
        runs: those that were asked for (`load.Sweep.runs`); they tell what each cell should rest on.
        chosen: the record that a selection method chose from each run (`model_selection`); the cells are those of the
            best of each trial (`best_hparams`).
        names: the datasets, in the order of the tables, and their environments' names.
        algorithms: the rows.
        with_pairs: the choice rests on the runs with two test environments, too.
        bootstrap: find 95 % intervals as well.

    Returns:
        A row a cell: `dataset`, `algorithm`, `environment` (a name, or AVERAGE), `mean` and `error` in percent (NaN
        where missing), `low` and `high` (the interval), `trials` (how many it comes from), `of_trials` (how many were
        asked for), `unfinished` (how many of the best runs are not done), `useless` (from how many that are done the
        method could not choose), and how many of the runs that it should be chosen from were `asked` for, and are in
        each state (COUNTS). AVERAGE is first taken over environments within each trial that has them all.
    """
    cells = []
    asked: dict[tuple[str, str], Counter[tuple[tuple[int, ...], JobState]]] = defaultdict(Counter)
    for dataset, algorithm, *run in zip(
        *(runs[c] for c in ("dataset", "algorithm", "test_envs", "state")), strict=True
    ):
        asked[dataset, algorithm][tuple(run)] += 1
    of_trials = runs.groupby(["dataset", "algorithm"])["trial_seed"].nunique().to_dict()
    done = set(runs.loc[runs["state"] == JobState.DONE, "folder"])
    best = best_hparams(chosen)
    best = best.assign(is_unfinished=[folder not in done for folder in best["folder"]])
    used: Counter[tuple[str, str, int]] = Counter()
    for dataset, algorithm, test_env, folder in zip(
        *(chosen[c].tolist() for c in ("dataset", "algorithm", "test_env", "folder")), strict=True
    ):
        used[dataset, algorithm, test_env] += folder in done
    for (dataset, environments), algorithm in itertools.product(names.items(), algorithms):
        of_row = best[(best["dataset"] == dataset) & (best["algorithm"] == algorithm)]
        accuracies = test_accuracies(best, dataset, algorithm, len(environments))
        for env, environment in [*enumerate(environments), (None, AVERAGE)]:
            of_cell = of_row if env is None else of_row[of_row["test_env"] == env]
            envs = range(len(environments)) if env is None else [env]
            useless = sum(asked[dataset, algorithm][(e,), JobState.DONE] - used[dataset, algorithm, e] for e in envs)
            states: Counter[JobState] = Counter()
            for (test_envs, state), n in asked[dataset, algorithm].items():
                if len(test_envs) <= (2 if with_pairs else 1) and (env is None or env in test_envs):
                    states[state] += n
            cells.append(
                {"dataset": dataset, "algorithm": algorithm, "environment": environment}
                | mean_and_error((accuracies if env is None else accuracies[[env]]).dropna().to_numpy(), bootstrap)
                | {"of_trials": of_trials.get((dataset, algorithm), 0), "unfinished": of_cell["is_unfinished"].sum()}
                | {"useless": useless, "asked": states.total()}
                | {state.name.lower(): states[state] for state in JobState}
            )
    return pd.DataFrame(cells)


def mean_and_error(accuracies: np.ndarray, bootstrap: bool = False) -> dict[str, float]:
    """The mean over trials of the mean over environments, in percent, with its standard error; and how many trials.

    Args:
        accuracies: [trials, environments].
        bootstrap: find the interval (`low`, `high`) as well, in which trials are drawn anew for each environment.
    """
    n = len(accuracies)
    if n == 0:
        return {"mean": np.nan, "error": np.nan, "low": np.nan, "high": np.nan, "trials": 0}
    percent = 100 * accuracies
    low, high = bootstrap_interval(percent) if bootstrap else (np.nan, np.nan)
    of_trials = percent.mean(axis=1)
    return {"mean": of_trials.mean(), "error": standard_error(of_trials), "low": low, "high": high, "trials": n}


def average_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """The averages table's cells: each dataset's average, over them AVERAGE, which wants every dataset, and RANK.

    Returns:
        A row a cell: `algorithm`, `dataset` (or AVERAGE, RANK), and the rest as in `summarise`. The average over
        datasets is the mean of their means; it has no error, and its counts are those of all datasets together. RANK
        is the mean over datasets of the algorithm's place (1 is the best; equals share the mean of their places) among
        the algorithms that have every dataset (as in the Fishr paper); the others have none.
    """
    of_datasets = cells[cells["environment"] == AVERAGE].drop(columns="environment")
    means = of_datasets.pivot(index="algorithm", columns="dataset", values="mean")
    ranks = means.dropna().rank(ascending=False).mean(axis=1).reindex(means.index)
    overall = []
    for algorithm, row in of_datasets.groupby("algorithm", sort=False):
        counts: dict[str, Any] = {
            c: row[c].sum() for c in ("trials", "of_trials", "unfinished", "useless", "asked", *COUNTS)
        }
        for column, mean in ((AVERAGE, row["mean"].mean(skipna=False)), (RANK, ranks[algorithm])):
            overall.append({"dataset": column, "algorithm": algorithm, "mean": mean} | counts)
    return pd.concat([of_datasets, pd.DataFrame(overall)], ignore_index=True)
