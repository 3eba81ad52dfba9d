"""The runs behind one cell of the tables, ranked within each trial."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from domainbed.model_selection import WITH_PAIRS
from domainbed.reporting.frames import to_csv
from domainbed.reporting.layout import SINGLE_TRIAL
from domainbed.reporting.statistics import standard_error
from domainbed.sweep.status import JobState

SELECTED_MARK = "->"  # marks the run that a trial contributes to the cell


@dataclass(frozen=True)
class CellRuns:
    """One cell of a selection method's tables, and all runs that it was selected from.

    Attributes:
        dataset, algorithm, environment, selection: names.
        test_env: the environment's number.
        runs: as returned by `ranked_runs`.
        hparams: the runs' hyperparameters, as returned by `decode_hparams`.
        pruned: the folders of the pruned runs of the sweep.
    """

    dataset: str
    algorithm: str
    environment: str
    test_env: int
    selection: str
    runs: pd.DataFrame
    hparams: pd.DataFrame
    pruned: Collection[str] = ()

    def __str__(self) -> str:
        return (
            f"{self.algorithm} on {self.dataset}, test environment {self.environment} (number {self.test_env}), "
            f"model selection: {self.selection}"
        )

    @property
    def best(self) -> pd.DataFrame:
        """The run that each trial contributes to the cell."""
        return self.runs[self.runs["rank"] == 1]

    @property
    def mean(self) -> float:
        """The mean over trials, in percent; NaN if no run was selected."""
        return float(self.best["test_acc"].mean())

    @property
    def error(self) -> float:
        """The standard error over trials, in percent; NaN if no run was selected."""
        return standard_error(self.best["test_acc"].to_numpy()) if len(self.best) else np.nan

    @property
    def value(self) -> str:
        """The mean and the standard error, as text. A single trial has no error."""
        return f"{self.mean:.1f} ({SINGLE_TRIAL})" if len(self.best) == 1 else f"{self.mean:.1f} +/- {self.error:.1f}"

    @property
    def n_trials(self) -> int:
        """The number of trials requested."""
        return self.runs["trial_seed"].nunique()


def ranked_runs(
    runs: pd.DataFrame, selected: pd.DataFrame, dataset: str, algorithm: str, test_env: int
) -> pd.DataFrame:
    """Rank the runs with this single test environment within each trial, as `model_selection.best_hparams` does.

    Args:
        runs: the requested runs (`load.Sweep.runs`).
        selected: the record that a selection method selects from each run.
        test_env: number of the test environment.

    Returns:
        One row per run: `trial_seed`, `rank` (from 1), `hparams_seed`, the selected `step`, its `val_acc` and
        `test_acc` in percent, `done`, and `folder`. Runs from which the method selects no record are the last of their
        trial and have no rank, step and accuracies; those without records have no folder either.
    """
    seeds = ["trial_seed", "hparams_seed"]
    runs = runs[(runs["dataset"] == dataset) & (runs["algorithm"] == algorithm)]
    runs = runs[[test_envs == (test_env,) for test_envs in runs["test_envs"]]]
    runs = runs[[*seeds, "folder"]].assign(done=[state == JobState.DONE for state in runs["state"]])
    in_cell = (
        (selected["dataset"] == dataset) & (selected["algorithm"] == algorithm) & (selected["test_env"] == test_env)
    )
    records = selected.loc[in_cell, [*seeds, "step", "val_acc", "test_acc"]]
    runs = runs.merge(records.astype({name: runs[name].dtype for name in seeds}), on=seeds, how="left")
    runs = runs.sort_values(["trial_seed", "val_acc", "hparams_seed"], ascending=[True, False, False])
    rank = runs.groupby("trial_seed").cumcount().add(1).where(runs["val_acc"].notna())
    percent = {name: 100 * runs[name].astype(float) for name in ("val_acc", "test_acc")}
    runs = runs.assign(rank=rank.astype("Int64"), step=runs["step"].astype("Int64"), **percent)
    columns = ["trial_seed", "rank", "hparams_seed", "step", "val_acc", "test_acc", "done", "folder"]
    return runs[columns].reset_index(drop=True)


def decode_hparams(jobs: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the hyperparameters of ranked runs, row by row, with their JSON types; NaN if unknown.

    A hyperparameter with the name of a column of `runs` (`ranked_runs`) is prefixed with "hparams.".
    """
    rows = [json.loads(str(jobs.at[folder, "hparams"])) if isinstance(folder, str) else {} for folder in runs["folder"]]
    # The dtype object preserves integers in a column with missing values.
    hparams = pd.DataFrame(rows, index=runs.index, dtype=object)
    return hparams.rename(columns={name: f"hparams.{name}" for name in runs.columns})


def format_text(cell: CellRuns, n: int) -> str:
    """Return one table per trial, with its first `n` runs, and the resulting cell."""
    hparams = cell.hparams[cell.runs["folder"].notna()]
    # Compared as JSON, in which 1 and true differ, and lists are hashable.
    identical = [name for name in hparams if hparams[name].map(json.dumps).nunique() == 1]
    texts = hparams.map(_hparam_text)
    parts = [str(cell)]
    for trial, runs in cell.runs.groupby("trial_seed"):
        ranked = runs[runs["rank"].notna()]
        if ranked.empty:
            parts.append(f"Trial {trial}: no run to select")
            continue
        listed = ranked.head(n)
        note = f"; showing {len(listed)}" if len(listed) < len(ranked) else ""
        table = _table(listed, texts.drop(columns=identical).loc[listed.index])
        parts.append(f"Trial {trial}: {_count(len(ranked))}, ranked by val_acc{note}\n{table}")
    if identical:
        values = ", ".join(f"{name} {texts[name].iloc[0]}" for name in identical)
        parts.append(f"Identical in {'all ' if len(texts) > 1 else ''}{_count(len(texts))}: {values}")
    parts += [*unranked_notes(cell), _result(cell)]
    return "\n\n".join(parts)


def format_csv(cell: CellRuns, n: int) -> str:
    """Return the first `n` runs of each trial, one per row, with all hyperparameters and full precision."""
    listed = cell.runs[cell.runs["rank"] <= n]
    return to_csv(listed.join(cell.hparams))


def format_json(cell: CellRuns, n: int) -> str:
    """Return the cell and the first `n` runs of each trial, with all hyperparameters and full precision."""
    listed = cell.runs[cell.runs["rank"] <= n]
    runs = []
    for run, hparams in zip(listed.to_dict("records"), cell.hparams.loc[listed.index].to_dict("records"), strict=True):
        runs.append({**run, "hparams": {name: value for name, value in hparams.items() if not _is_missing(value)}})
    unranked = cell.runs.loc[cell.runs["rank"].isna(), ["trial_seed", "hparams_seed"]]
    content = {
        "dataset": cell.dataset,
        "algorithm": cell.algorithm,
        "environment": cell.environment,
        "test_env": cell.test_env,
        "selection": cell.selection,
        "mean": None if cell.best.empty else cell.mean,
        "error": None if cell.best.empty else cell.error,
        "trials": len(cell.best),
        "of_trials": cell.n_trials,
        "not_ranked": unranked.to_dict("records"),
        "runs": runs,
    }
    return json.dumps(content, indent=2) + "\n"


def unranked_notes(cell: CellRuns) -> list[str]:
    """Return notes on the runs without records, pruned runs, and others from which the method selects no record."""
    reason = "every record lacks an accuracy that the method requires"
    if cell.selection in WITH_PAIRS:
        reason = (
            "it requires runs with each pair of test environments, with records at the same step (sweep launch "
            "--leave_one_out, without --eval selection)"
        )
    unranked = cell.runs[cell.runs["rank"].isna()]
    has_records = unranked["folder"].notna()
    is_pruned = unranked["folder"].isin(list(cell.pruned))
    notes = []
    for runs, description in (
        (unranked[~has_records], "without records"),
        (unranked[is_pruned], "that were pruned"),
        (unranked[has_records & ~is_pruned], f"from which {cell.selection} selects no record: {reason}"),
    ):
        seeds = "; ".join(
            f"trial {trial}: hparams_seed {', '.join(map(str, sorted(trial_runs['hparams_seed'])))}"
            for trial, trial_runs in runs.groupby("trial_seed")
        )
        if seeds:
            notes.append(f"Not ranked: {_count(len(runs))} ({seeds}) {description}")
    return notes


def _result(cell: CellRuns) -> str:
    """Return a sentence that explains the value of the cell."""
    if cell.best.empty:
        return "The cell is X: no run to select."
    trials = len(cell.best)
    of_trials = f"{trials} of {cell.n_trials}" if trials < cell.n_trials else str(trials)
    if trials == 1:
        statistic = f"test_acc of the run marked {SELECTED_MARK}, in {of_trials} trial{'s' * (cell.n_trials > 1)}"
    else:
        statistic = f"mean and standard error of test_acc over {of_trials} trials, for the runs marked {SELECTED_MARK}"
    sentence = f"The cell is {cell.value}: {statistic}."
    if unfinished := (~cell.best["done"]).sum():
        sentence += f" {unfinished} of these runs {'is' if unfinished == 1 else 'are'} not finished."
    return sentence


def _table(runs: pd.DataFrame, hparams: pd.DataFrame) -> str:
    """Format runs as a table, with the hyperparameters that differ between them, given as text."""
    columns = {
        "rank": [f"{SELECTED_MARK} {rank}" if rank == 1 else str(rank) for rank in runs["rank"]],
        "hparams_seed": runs["hparams_seed"],
        "step": runs["step"],
        "val_acc": [f"{accuracy:.2f}" for accuracy in runs["val_acc"]],
        "test_acc": [f"{accuracy:.2f}" for accuracy in runs["test_acc"]],
        "done": ["yes" if done else "no" for done in runs["done"]],
        **{str(name): hparams[name] for name in hparams},
        "folder": runs["folder"],
    }
    return tabulate(columns, headers="keys", colalign=["right"] * len(columns), disable_numparse=True)


def _hparam_text(value: Any) -> str:
    """Format a hyperparameter as in --hparams, but floats with four digits."""
    if _is_missing(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"
