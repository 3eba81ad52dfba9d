"""Which model of a sweep is the result: the three methods of "In Search of Lost Domain Generalization", Section 3.

A method is a function of a DataFrame of records (`reporting.load.Sweep.records`). From each run, which is a dataset,
algorithm, test environment, trial and hparams_seed, it chooses one record and returns a row: these five (`test_env` a
number), the record's `step` and `folder`, `val_acc`, by which runs compete, and `test_acc`, the accuracy on the test
environment's *in* split, which is what is reported. A run from which the method can't choose has no row.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pandas as pd

from domainbed.errors import UsageError
from domainbed.registry import Registry

SelectionMethod: TypeAlias = Callable[[pd.DataFrame], pd.DataFrame]

SELECTION_METHODS: Registry[SelectionMethod] = Registry("selection method", builtin={})

# The methods that need the runs with each pair of test environments.
WITH_PAIRS = {"leave-one-domain-out"}

# What DomainBed calls them.
CLASS_NAMES = {
    "IIDAccuracySelectionMethod": "training-domain",
    "LeaveOneOutSelectionMethod": "leave-one-domain-out",
    "OracleSelectionMethod": "test-domain",
}

TRIAL_KEYS = ["dataset", "algorithm", "test_env", "trial_seed"]
RUN_KEYS = [*TRIAL_KEYS, "hparams_seed"]
SELECTED_COLUMNS = [*RUN_KEYS, "step", "folder", "val_acc", "test_acc"]
# In what is chosen there are no codes of a whole sweep's names.
PLAIN = dict.fromkeys(("dataset", "algorithm", "folder"), object)


@SELECTION_METHODS.register("training-domain")
def training_domain(records: pd.DataFrame) -> pd.DataFrame:
    """The record with the best mean accuracy on the training environments' *out* splits; of equals the earliest."""

    def validate(runs: _Runs) -> np.ndarray:
        if runs.n == 1:
            return np.full(len(runs.test_env), np.nan)  # there is none to validate on
        total = np.zeros(len(runs.test_env))
        for env in range(runs.n):
            total += np.where(runs.test_env == env, 0.0, runs.accuracy(env, "out"))
        return total / (runs.n - 1)

    return _best_of_each_run(records, validate)


@SELECTION_METHODS.register("leave-one-domain-out")
def leave_one_domain_out(records: pd.DataFrame) -> pd.DataFrame:
    """The step with the best mean, over environments v, of the accuracy on v of the run that left v out as well.

    These are the runs with test_envs {test_env, v} of the same trial and hparams_seed, at the same step; all n - 1 are
    required. What is reported comes from the run that was trained on all environments but the test environment.
    """
    keys = ["algorithm", "trial_seed", "hparams_seed", "step"]
    pairs = records[_number_of_test_envs(records) == 2]
    pairs = pairs.assign(first=_test_env(pairs, 0), second=_test_env(pairs, 1))

    def validate(runs: _Runs) -> np.ndarray:
        of_dataset = pairs[pairs["dataset"] == runs.dataset]
        singles = records.iloc[runs.rows][keys].assign(row=np.arange(len(runs.test_env)), test_env=runs.test_env)
        accuracies = np.full((len(runs.test_env), runs.n), np.nan)
        for test_env, env in (("first", "second"), ("second", "first")):
            for v in range(runs.n):
                without_v = of_dataset[of_dataset[env] == v]
                without_v = without_v[keys].assign(test_env=without_v[test_env], acc=_column(without_v, v, "in"))
                found = singles.merge(without_v, on=[*keys, "test_env"])
                accuracies[found["row"], v] = found["acc"]
        is_there = ~np.isnan(accuracies)
        total = np.where(is_there, accuracies, 0.0).sum(axis=1)
        return np.where(is_there.sum(axis=1) == runs.n - 1, total / (runs.n - 1), np.nan)

    return _best_of_each_run(records, validate) if len(pairs) else pd.DataFrame(columns=SELECTED_COLUMNS)


@SELECTION_METHODS.register("test-domain")
def test_domain(records: pd.DataFrame) -> pd.DataFrame:
    """The oracle: the last record, and its accuracy on the test environment's *out* split to choose between runs."""

    def validate(runs: _Runs) -> np.ndarray:
        step = pd.Series(records["step"].to_numpy()[runs.rows])
        is_last = step == step.groupby(runs.folder).transform("max")
        return np.where(is_last, runs.on_test_env("out"), np.nan)

    return _best_of_each_run(records, validate)


test_domain.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def method_named(name: str) -> str:
    """The method's name, given that or DomainBed's name of its class. Raises UsageError where there is none."""
    name = CLASS_NAMES.get(name, name)
    SELECTION_METHODS[name]  # raises
    return name


def choose(name: str, records: pd.DataFrame) -> pd.DataFrame:
    """What the method of this name chooses, which may be a user's own.

    Raises:
        UsageError: it fails, or does not give a row a run.
    """
    method = SELECTION_METHODS[name]
    try:
        chosen = method(records)
        return chosen[SELECTED_COLUMNS].dropna(subset=["val_acc", "test_acc"])
    except Exception as error:
        if name in CLASS_NAMES.values():
            raise
        raise UsageError(
            f"selection method {name!r} fails on these records: {type(error).__name__}: {error}"
        ) from error


def best_hparams(chosen: pd.DataFrame) -> pd.DataFrame:
    """Of each trial's runs the one with the best val_acc; of equals the highest hparams_seed."""
    ranked = chosen.sort_values(["val_acc", "hparams_seed"], ascending=False)
    return ranked.drop_duplicates(TRIAL_KEYS).sort_values(TRIAL_KEYS).reset_index(drop=True)


class _Runs:
    """The records of a dataset's runs with a single test environment.

    Columns are taken from all records one at a time: a large sweep has millions of rows.

    Attributes:
        rows: which of all records they are; a slice, which copies nothing, where they lie together.
        test_env, folder: of each of them; the folder as a number.
        n: how many environments the dataset has.
    """

    def __init__(self, records: pd.DataFrame, dataset: str, is_single: np.ndarray, folder: np.ndarray) -> None:
        self._records = records
        self.dataset = dataset
        rows = np.flatnonzero(is_single & (records["dataset"] == dataset).to_numpy())
        is_stretch = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
        self.rows = slice(rows[0], rows[-1] + 1) if is_stretch else rows
        self.test_env = _test_env(records[["test_envs"]].iloc[self.rows], 0)
        self.folder = folder[self.rows]
        names = [c for c in records.columns if c.startswith("env") and c.endswith("_out_acc")]
        self.n = sum(not np.isnan(records[name].to_numpy(dtype=float)[self.rows]).all() for name in names)

    def accuracy(self, env: int, part: str) -> np.ndarray:
        """The accuracies on the `part` ("in", "out") of an environment."""
        return _column(self._records, env, part)[self.rows]

    def on_test_env(self, part: str) -> np.ndarray:
        """The accuracies on the `part` of each run's own test environment."""
        accuracies = np.full(len(self.test_env), np.nan)
        for env in range(self.n):
            np.copyto(accuracies, self.accuracy(env, part), where=self.test_env == env)
        return accuracies


def _best_of_each_run(records: pd.DataFrame, validate: Callable[[_Runs], np.ndarray]) -> pd.DataFrame:
    """Of each run's records the one with the best `validate`; of equals the earliest. NaN can't be chosen."""
    is_single = _number_of_test_envs(records) == 1
    folder = pd.Categorical(records["folder"]).codes
    chosen = [pd.DataFrame(columns=SELECTED_COLUMNS)]
    for dataset in records["dataset"].unique():
        runs = _Runs(records, dataset, is_single, folder)
        val_acc, test_acc = pd.Series(validate(runs)), runs.on_test_env("in")
        val_acc[np.isnan(test_acc)] = np.nan
        best = np.flatnonzero(val_acc == val_acc.groupby(runs.folder).transform("max"))
        of_best = (
            records[[c for c in SELECTED_COLUMNS if c in records]]
            .iloc[runs.rows]
            .iloc[best]
            .assign(test_env=runs.test_env[best], val_acc=val_acc.to_numpy()[best], test_acc=test_acc[best])
        )
        chosen.append(of_best.sort_values("step").drop_duplicates("folder")[SELECTED_COLUMNS])
    chosen = [frame.astype(PLAIN) for frame in chosen if len(frame)] or chosen
    return pd.concat(chosen).sort_values(RUN_KEYS).reset_index(drop=True)


def _number_of_test_envs(records: pd.DataFrame) -> np.ndarray:
    return records["test_envs"].map(len).to_numpy(dtype=int)


def _test_env(records: pd.DataFrame, i: int) -> np.ndarray:
    """Each record's test environment number `i`."""
    # Of a categorical column, only the categories are mapped, also those of records that are not here.
    return records["test_envs"].map(lambda test_envs: test_envs[i] if i < len(test_envs) else -1).to_numpy(dtype=int)


def _column(records: pd.DataFrame, env: int, part: str) -> np.ndarray:
    """The accuracies on the `part` of an environment, of all records; NaN where there are none."""
    name = f"env{env}_{part}_acc"
    return records[name].to_numpy(dtype=float) if name in records else np.full(len(records), np.nan)
