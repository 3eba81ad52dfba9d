"""The cells of the tables: accuracies in percent, mean and standard error over trials."""

from typing import Any

import numpy as np
import pandas as pd

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS

AVERAGE = "Avg"


def environment_names(records: pd.DataFrame, dataset: str) -> list[str]:
    """The names of a dataset's environments: the dataset's own, or the records', or else env0, env1, …"""
    if dataset in DATASETS and DATASETS[dataset].ENVIRONMENTS:
        return DATASETS[dataset].ENVIRONMENTS
    of_dataset = records[records["dataset"] == dataset].dropna(axis="columns", how="all")
    if told := [names for names in of_dataset["environments"] if names]:
        return list(told[-1])
    return [f"env{i}" for i in range(sum(c.endswith("_out_acc") for c in of_dataset.columns))]


def in_order(names: pd.Series, known: list[str]) -> list[str]:
    """The distinct `names`: those that are known in their order, then the others by the alphabet."""
    present = set(names)
    return [n for n in known if n in present] + sorted(present - set(known))


def summarise(records: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    """Every cell of every dataset's table, missing ones too.

    Args:
        records: all records of the sweep (`records.load_records`); they tell which cells there should be.
        best: the chosen run of each dataset, algorithm, test environment and trial (`model_selection.best_hparams`).

    Returns:
        A row a cell: `dataset`, `algorithm`, `environment` (a name, or AVERAGE), `mean` and `error` in percent (NaN
        where missing), `trials` (how many it comes from), `of_trials` (how many the sweep has) and `unfinished` (how
        many of the chosen runs are not done). AVERAGE is first taken over environments within each trial that has
        them all.
    """
    cells = []
    unfinished = records.loc[~records["done"], "folder"].unique()
    for dataset in in_order(records["dataset"], list(DATASETS)):
        names = environment_names(records, dataset)
        of_trials = records.loc[records["dataset"] == dataset, "trial_seed"].nunique()
        for algorithm in in_order(records["algorithm"], list(ALGORITHMS)):
            runs = best[(best["dataset"] == dataset) & (best["algorithm"] == algorithm)]
            accuracies = runs.pivot(index="trial_seed", columns="test_env", values="test_acc")
            accuracies = accuracies.reindex(columns=range(len(names))).set_axis(names, axis="columns")
            accuracies[AVERAGE] = accuracies.mean(axis=1, skipna=False)
            for environment, of_cell in accuracies.items():
                where = {"dataset": dataset, "algorithm": algorithm, "environment": environment}
                of_runs = runs if environment == AVERAGE else runs[runs["test_env"] == names.index(str(environment))]
                counts = {"of_trials": of_trials, "unfinished": of_runs["folder"].isin(unfinished).sum()}
                cells.append({**where, **mean_and_error(of_cell.dropna()), **counts})
    return pd.DataFrame(cells)


def mean_and_error(accuracies: pd.Series) -> dict[str, float]:
    """Mean and standard error (population standard deviation over the root of n), in percent, and n."""
    n = len(accuracies)
    if n == 0:
        return {"mean": np.nan, "error": np.nan, "trials": 0}
    percent = 100 * accuracies.to_numpy(dtype=float)
    return {"mean": percent.mean(), "error": percent.std() / np.sqrt(n), "trials": n}


def averages(cells: pd.DataFrame) -> pd.DataFrame:
    """The averages table's cells: each dataset's average, and over them AVERAGE, which wants every dataset.

    Returns:
        A row a cell: `algorithm`, `dataset` (or AVERAGE), and the rest as in `summarise`. The average over datasets is
        the mean of their means; it has no error, and its counts are those of all datasets together.
    """
    of_datasets = cells[cells["environment"] == AVERAGE].drop(columns="environment")
    overall = []
    for algorithm, row in of_datasets.groupby("algorithm", sort=False):
        where = {"dataset": AVERAGE, "algorithm": algorithm}
        counts: dict[str, Any] = {name: row[name].sum() for name in ("trials", "of_trials", "unfinished")}
        overall.append({**where, "mean": row["mean"].mean(skipna=False), "error": np.nan, **counts})
    return pd.concat([of_datasets, pd.DataFrame(overall)], ignore_index=True)
