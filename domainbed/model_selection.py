"""Model selection: the three methods of "In Search of Lost Domain Generalization", Section 3.

A selection method is a function from a DataFrame of records (`reporting.load.Sweep.records`) to a DataFrame with one
row per run. Its columns are SELECTED_COLUMNS: the run (dataset, algorithm, index of its test environment, trial_seed,
hparams_seed), the selected record's `step` and `folder`, the `val_acc` by which the runs of a trial are ranked, and the
`test_acc` that is reported, the accuracy on the test environment's *in* split. Runs without a selectable record have no
row. Pruned runs (`pruning`) are not among the records.
"""

from __future__ import annotations  # pandas is imported when it is needed, so that --help is fast

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from domainbed.errors import UsageError
from domainbed.records import algorithm_name, only_last_counts
from domainbed.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

SelectionFunction: TypeAlias = "Callable[[pd.DataFrame], pd.DataFrame]"

SELECTION_METHODS: Registry[SelectionFunction] = Registry(
    "selection method", builtin={}, path="domainbed.model_selection.SELECTION_METHODS"
)

# Methods that require the runs with each pair of test environments.
WITH_PAIRS = {"leave-one-domain-out"}

# DomainBed's class names.
CLASS_NAMES = {
    "IIDAccuracySelectionMethod": "training-domain",
    "LeaveOneOutSelectionMethod": "leave-one-domain-out",
    "OracleSelectionMethod": "test-domain",
}

TRIAL_COLUMNS = ["dataset", "algorithm", "test_env", "trial_seed"]
RUN_COLUMNS = [*TRIAL_COLUMNS, "hparams_seed"]
SELECTED_COLUMNS = [*RUN_COLUMNS, "step", "folder", "val_acc", "test_acc"]
# These columns are categorical in records, and plain strings in a selection.
OBJECT_COLUMNS = dict.fromkeys(("dataset", "algorithm", "folder"), object)


@SELECTION_METHODS.register("training-domain")
def training_domain(records: pd.DataFrame) -> pd.DataFrame:
    """Select the earliest record with the best mean accuracy on the training environments' *out* splits."""

    def validate(runs: _DatasetRuns) -> np.ndarray:
        if runs.n_envs == 1:
            return np.full(len(runs.test_env), np.nan)  # no training environment
        total = np.zeros(len(runs.test_env))
        for env in range(runs.n_envs):
            total += np.where(runs.test_env == env, 0.0, runs.accuracy(env, "out"))
        return total / (runs.n_envs - 1)

    return _best_of_each_run(records, validate)


@SELECTION_METHODS.register("leave-one-domain-out")
def leave_one_domain_out(records: pd.DataFrame) -> pd.DataFrame:
    """Select the step with the best mean accuracy on environments held out in turn.

    The accuracy on environment v is that of the run with test_envs {test_env, v}, the same trial_seed and hparams_seed,
    at the same step (SWAD: at the last); all n - 1 such runs are required. The reported accuracy is that of the run
    with test_envs {test_env}, which was trained on all other environments. Runs that have no accuracy on a test
    environment in some of their records (`--eval selection`) are ignored: any of these could be the best.
    """
    import pandas as pd

    keys = ["algorithm", "trial_seed", "hparams_seed", "evaluation"]
    pairs = records[_n_test_envs(records) == 2]
    pairs = pairs.assign(first=_test_env(pairs, 0), second=_test_env(pairs, 1), evaluation=_evaluation(pairs))
    is_incomplete = np.zeros(len(pairs), dtype=bool)
    for env in sorted({*pairs["first"], *pairs["second"]}):
        is_incomplete |= ((pairs["first"] == env) | (pairs["second"] == env)) & np.isnan(_accuracy(pairs, env, "in"))
    pairs = pairs[~pairs["folder"].isin(pairs.loc[is_incomplete, "folder"])]

    def validate(runs: _DatasetRuns) -> np.ndarray:
        dataset_pairs = pairs[pairs["dataset"] == runs.dataset]
        singles = records.iloc[runs.rows]
        singles = singles.assign(evaluation=_evaluation(singles))[keys]
        singles = singles.assign(row=np.arange(len(runs.test_env)), test_env=runs.test_env)
        accuracies = np.full((len(runs.test_env), runs.n_envs), np.nan)
        for test_env, held_out in (("first", "second"), ("second", "first")):
            for v in range(runs.n_envs):
                without_v = dataset_pairs[dataset_pairs[held_out] == v]
                without_v = without_v[keys].assign(test_env=without_v[test_env], acc=_accuracy(without_v, v, "in"))
                matches = singles.merge(without_v, on=[*keys, "test_env"])
                accuracies[matches["row"], v] = matches["acc"]
        is_known = ~np.isnan(accuracies)
        total = np.where(is_known, accuracies, 0.0).sum(axis=1)
        is_complete = ~np.isin(runs.folder, runs.folder[np.isnan(runs.test_accuracy("in"))])
        is_usable = is_complete & (is_known.sum(axis=1) == runs.n_envs - 1)
        return np.where(is_usable, total / (runs.n_envs - 1), np.nan)

    return _best_of_each_run(records, validate) if len(pairs) else pd.DataFrame(columns=SELECTED_COLUMNS)


@SELECTION_METHODS.register("test-domain")
def test_domain(records: pd.DataFrame) -> pd.DataFrame:
    """Select the last record (the oracle), with `val_acc` the accuracy on the test environment's *out* split."""
    import pandas as pd

    def validate(runs: _DatasetRuns) -> np.ndarray:
        step = pd.Series(records["step"].to_numpy()[runs.rows])
        is_last = step == step.groupby(runs.folder).transform("max")
        return np.where(is_last, runs.test_accuracy("out"), np.nan)

    return _best_of_each_run(records, validate)


test_domain.__test__ = False  # type: ignore[attr-defined]  # keep pytest from collecting it


def resolve_method(name: str) -> str:
    """Return the name of a selection method, given its name or DomainBed's class name.

    Raises:
        UsageError: the name is unknown.
    """
    name = CLASS_NAMES.get(name, name)
    SELECTION_METHODS[name]  # raises
    return name


def select_records(name: str, records: pd.DataFrame) -> pd.DataFrame:
    """Return the selection of a built-in or user-defined method, without rows that lack an accuracy.

    Raises:
        UsageError: a user-defined method raises an exception, or its result lacks a column.
    """
    method = SELECTION_METHODS[name]
    try:
        selected = method(_without_unfinished_averages(_without_pruned(records)))
        # A method may return rows of the records, whose repeated values are categorical.
        return selected[SELECTED_COLUMNS].astype(OBJECT_COLUMNS).dropna(subset=["val_acc", "test_acc"])
    except Exception as error:
        if name in CLASS_NAMES.values():
            raise
        raise UsageError(f"selection method {name!r} failed: {type(error).__name__}: {error}") from error


def best_hparams(selected: pd.DataFrame) -> pd.DataFrame:
    """Return each trial's row with the best val_acc; ties go to the highest hparams_seed."""
    ranked = selected.sort_values(["val_acc", "hparams_seed"], ascending=False)
    return ranked.drop_duplicates(TRIAL_COLUMNS).sort_values(TRIAL_COLUMNS).reset_index(drop=True)


class SelectionMethod:
    """DomainBed's interface: a selection method as a class with methods on lists of records (dicts).

    A subclass has a `name` and either overrides `run_acc` or sets `METHOD` to the name of a function of this module.
    """

    METHOD: ClassVar[str]

    @classmethod
    def run_acc(cls, run_records: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
        """Return the "val_acc" and "test_acc" that the method selects from a run's records, or None.

        The records are those of one draw of hyperparameters; leave-one-domain-out also needs those with pairs.
        """
        frame = _to_frame(run_records)
        selected = select_records(cls.METHOD, frame) if len(frame) else frame
        if not len(selected):
            return None
        return {name: float(selected[name].iloc[0]) for name in ("val_acc", "test_acc")}

    @classmethod
    def hparams_accs(cls, records: Any) -> list[tuple[dict[str, float], Any]]:
        """Return the accuracies and the records of each draw of hyperparameters, best first.

        The records are those of one dataset, algorithm, test environment and trial; groups of them have their type.
        """
        groups: dict[int, list[Any]] = defaultdict(list)
        for record in records:
            groups[record["args"]["hparams_seed"]].append(record)
        runs = [type(records)(groups[hparams_seed]) for hparams_seed in sorted(groups, reverse=True)]
        accs = [(acc, run) for run in runs if (acc := cls.run_acc(run)) is not None]
        return sorted(accs, key=lambda pair: pair[0]["val_acc"], reverse=True)

    @classmethod
    def sweep_acc(cls, records: Any) -> float | None:
        """Return the "test_acc" of the best draw of hyperparameters, or None."""
        accs = cls.hparams_accs(records)
        return accs[0][0]["test_acc"] if accs else None


class IIDAccuracySelectionMethod(SelectionMethod):
    """`training_domain` on lists of records."""

    name = "training-domain validation set"
    METHOD = "training-domain"


class LeaveOneOutSelectionMethod(SelectionMethod):
    """`leave_one_domain_out` on lists of records."""

    name = "leave-one-domain-out cross-validation"
    METHOD = "leave-one-domain-out"


class OracleSelectionMethod(SelectionMethod):
    """`test_domain` on lists of records."""

    name = "test-domain validation set (oracle)"
    METHOD = "test-domain"


def _to_frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return records as the DataFrame that selection methods read, with one folder per run."""
    import pandas as pd

    rows = []
    for record in records:
        args = record["args"]
        run = {name: args[name] for name in ("dataset", "trial_seed", "hparams_seed")}
        run["algorithm"] = algorithm_name(args)
        run["test_envs"] = tuple(args["test_envs"])
        accuracies = {name: value for name, value in record.items() if name.startswith("env") and name.endswith("_acc")}
        rows.append({**run, **accuracies, "step": record["step"], "folder": str(run)})
    return pd.DataFrame(rows)


def is_evaluated_once(records: pd.DataFrame) -> pd.Series:
    """Return whether each record is that of a run of which only the last record counts."""
    names = [name for name in records["algorithm"].unique() if only_last_counts(name)]
    return records["algorithm"].isin(names)


def _evaluation(records: pd.DataFrame) -> pd.Series:
    """Return the step of each record; -1 if it is the only one of its run, because such runs may end early."""
    return records["step"].where(~is_evaluated_once(records), -1)


def _without_pruned(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of runs that are not pruned."""
    is_pruned = records["pruned"].to_numpy(dtype=bool) if "pruned" in records else np.zeros(len(records), dtype=bool)
    return records[~is_pruned] if is_pruned.any() else records


def _without_unfinished_averages(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of which a method may select."""
    is_once = is_evaluated_once(records)
    if not is_once.any():
        return records
    last = records["step"].groupby(records["folder"], observed=True).transform("max")
    return records[~is_once | (records["step"] == last)]


class _DatasetRuns:
    """The records of all runs on one dataset with a single test environment.

    A large sweep has millions of records, so accuracies are read from them one column at a time.

    Attributes:
        rows: positions of the records among all records; a slice if they are contiguous, to avoid copies.
        test_env, folder: test environment and folder (as an integer code) of each record.
        n_envs: number of environments of the dataset.
    """

    def __init__(self, records: pd.DataFrame, dataset: str, is_single: np.ndarray, folder: np.ndarray) -> None:
        self._records = records
        self.dataset = dataset
        rows = np.flatnonzero(is_single & (records["dataset"] == dataset).to_numpy())
        is_contiguous = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
        self.rows = slice(rows[0], rows[-1] + 1) if is_contiguous else rows
        self.test_env = _test_env(records[["test_envs"]].iloc[self.rows], 0)
        self.folder = folder[self.rows]
        names = [c for c in records.columns if c.startswith("env") and c.endswith("_out_acc")]
        known = [name for name in names if not np.isnan(records[name].to_numpy(dtype=float)[self.rows]).all()]
        # Records may lack the accuracies on their test environment.
        self.n_envs = len({*(int(name[3:-8]) for name in known), *self.test_env.tolist()})

    def accuracy(self, env: int, part: str) -> np.ndarray:
        """Return the accuracy of each record on a split ("in", "out") of an environment."""
        return _accuracy(self._records, env, part)[self.rows]

    def test_accuracy(self, part: str) -> np.ndarray:
        """Return the accuracy of each record on a split of its test environment."""
        accuracies = np.full(len(self.test_env), np.nan)
        for env in range(self.n_envs):
            np.copyto(accuracies, self.accuracy(env, part), where=self.test_env == env)
        return accuracies


def _best_of_each_run(records: pd.DataFrame, validate: Callable[[_DatasetRuns], np.ndarray]) -> pd.DataFrame:
    """Return each run's record with the best accuracy by `validate`, ignoring NaN; ties go to the earliest."""
    import pandas as pd

    is_single = _n_test_envs(records) == 1
    folder = pd.Categorical(records["folder"]).codes
    selected = [pd.DataFrame(columns=SELECTED_COLUMNS)]
    for dataset in records["dataset"].unique():
        runs = _DatasetRuns(records, dataset, is_single, folder)
        val_acc, test_acc = pd.Series(validate(runs)), runs.test_accuracy("in")
        val_acc[np.isnan(test_acc)] = np.nan
        best = np.flatnonzero(val_acc == val_acc.groupby(runs.folder).transform("max"))
        rows = (
            records[[c for c in SELECTED_COLUMNS if c in records]]
            .iloc[runs.rows]
            .iloc[best]
            .assign(test_env=runs.test_env[best], val_acc=val_acc.to_numpy()[best], test_acc=test_acc[best])
        )
        selected.append(rows.sort_values("step").drop_duplicates("folder")[SELECTED_COLUMNS])
    selected = [frame.astype(OBJECT_COLUMNS) for frame in selected if len(frame)] or selected
    return pd.concat(selected).sort_values(RUN_COLUMNS).reset_index(drop=True)


def _n_test_envs(records: pd.DataFrame) -> np.ndarray:
    return records["test_envs"].map(len).to_numpy(dtype=int)


def _test_env(records: pd.DataFrame, i: int) -> np.ndarray:
    """Return the `i`-th test environment of each record, or -1."""
    # Mapping a categorical column also maps categories that do not occur in these records.
    return records["test_envs"].map(lambda test_envs: test_envs[i] if i < len(test_envs) else -1).to_numpy(dtype=int)


def _accuracy(records: pd.DataFrame, env: int, part: str) -> np.ndarray:
    """Return the accuracy of each record on a split of an environment; NaN if it is unknown."""
    name = f"env{env}_{part}_acc"
    return records[name].to_numpy(dtype=float) if name in records else np.full(len(records), np.nan)
