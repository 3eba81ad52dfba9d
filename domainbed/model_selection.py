"""Which model of a sweep is the result: the three methods of "In Search of Lost Domain Generalization", Section 3.

A method is a function of a DataFrame of records (see `records.load_records`). From each run, which is a dataset,
algorithm, test environment, trial and hparams_seed, it chooses one record and returns a row: these five (`test_env` a
number), the record's `step` and `folder`, `val_acc`, by which runs compete, and `test_acc`, the accuracy on the test
environment's *in* split, which is what is reported. A run from which the method can't choose has no row.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pandas as pd

from domainbed.registry import Registry

SelectionMethod: TypeAlias = Callable[[pd.DataFrame], pd.DataFrame]

SELECTION_METHODS: Registry[SelectionMethod] = Registry("selection method", builtin={})

TRIAL = ["dataset", "algorithm", "test_env", "trial_seed"]
RUN = [*TRIAL, "hparams_seed"]
COLUMNS = [*RUN, "step", "folder", "val_acc", "test_acc"]


@SELECTION_METHODS.register("training-domain")
def training_domain(records: pd.DataFrame) -> pd.DataFrame:
    """The record with the best mean accuracy on the training environments' *out* splits; of equals the earliest."""

    def validate(records: pd.DataFrame, n: int) -> pd.DataFrame:
        runs = _with_one_test_env(records, n)
        accuracies = _accuracies(runs, "out", n)
        accuracies[np.arange(len(runs)), runs["test_env"]] = 0.0
        return runs.assign(val_acc=accuracies.sum(axis=1) / (n - 1))

    return _best_step(_each_dataset(records, validate))


@SELECTION_METHODS.register("leave-one-domain-out")
def leave_one_domain_out(records: pd.DataFrame) -> pd.DataFrame:
    """The step with the best mean, over environments v, of the accuracy on v of the run that left v out as well.

    These are the runs with test_envs {test_env, v} of the same trial and hparams_seed, at the same step; all n - 1 are
    required. What is reported comes from the run that was trained on all environments but the test environment.
    """

    def validate(records: pd.DataFrame, n: int) -> pd.DataFrame:
        pairs = records[records["test_envs"].map(len) == 2]
        first, second = pairs["test_envs"].str[0].astype(int), pairs["test_envs"].str[1].astype(int)
        accuracies, rows = _accuracies(pairs, "in", n), np.arange(len(pairs))
        seen_from_each = [
            pairs.assign(test_env=test, left_out=left_out, acc=accuracies[rows, left_out])
            for test, left_out in ((first, second), (second, first))
        ]
        by_left_out = pd.concat(seen_from_each).set_index([*RUN, "step", "left_out"])["acc"].unstack()
        by_left_out = by_left_out[by_left_out.notna().sum(axis=1) == n - 1]
        val_acc = (by_left_out.fillna(0.0).sum(axis=1) / (n - 1)).rename("val_acc")
        return _with_one_test_env(records, n).merge(val_acc.reset_index(), on=[*RUN, "step"])

    return _best_step(_each_dataset(records, validate))


@SELECTION_METHODS.register("test-domain")
def test_domain(records: pd.DataFrame) -> pd.DataFrame:
    """The oracle: the last record, and its accuracy on the test environment's *out* split to choose between runs."""

    def validate(records: pd.DataFrame, n: int) -> pd.DataFrame:
        runs = _with_one_test_env(records, n)
        runs = runs.sort_values("step").drop_duplicates(RUN, keep="last")
        return runs.assign(val_acc=_accuracies(runs, "out", n)[np.arange(len(runs)), runs["test_env"]])

    return _best_step(_each_dataset(records, validate))


def best_hparams(chosen: pd.DataFrame) -> pd.DataFrame:
    """Of each trial's runs the one with the best val_acc; of equals the highest hparams_seed."""
    ranked = chosen.sort_values(["val_acc", "hparams_seed"], ascending=False)
    return ranked.drop_duplicates(TRIAL).sort_values(TRIAL).reset_index(drop=True)


def _each_dataset(records: pd.DataFrame, validate: Callable[[pd.DataFrame, int], pd.DataFrame]) -> pd.DataFrame:
    """Apply `validate(records, number of environments)` to each dataset's records."""
    validated = []
    for _, of_dataset in records.groupby("dataset", sort=False):
        names = [c for c in of_dataset.columns if c.endswith("_out_acc") and of_dataset[c].notna().any()]
        validated.append(validate(of_dataset, len(names)))
    return pd.concat(validated) if validated else pd.DataFrame(columns=COLUMNS)


def _with_one_test_env(records: pd.DataFrame, n: int) -> pd.DataFrame:
    """The records of runs with a single test environment, with `test_env` and `test_acc`."""
    runs = records[records["test_envs"].map(len) == 1]
    test_env = runs["test_envs"].str[0].astype(int)
    return runs.assign(test_env=test_env, test_acc=_accuracies(runs, "in", n)[np.arange(len(runs)), test_env])


def _accuracies(records: pd.DataFrame, part: str, n: int) -> np.ndarray:
    """The accuracies on the `part` ("in", "out") of the `n` environments: [records, n]."""
    return records.reindex(columns=[f"env{i}_{part}_acc" for i in range(n)]).to_numpy(dtype=float, copy=True)


def _best_step(validated: pd.DataFrame) -> pd.DataFrame:
    """Of each run's records the one with the best val_acc; of equals the earliest."""
    ranked = validated.dropna(subset=["val_acc", "test_acc"]).sort_values(["val_acc", "step"], ascending=[False, True])
    return ranked.drop_duplicates(RUN)[COLUMNS].sort_values(RUN).reset_index(drop=True)
