"""Why a cell of the tables is what it is: the hyperparameter draws behind it, ranked within each trial."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from domainbed.model_selection import WITH_PAIRS
from domainbed.reporting.statistics import standard_error
from domainbed.sweep.status import JobState

TAKEN = "->"


@dataclass(frozen=True)
class Cell:
    """One cell of a selection method's tables, and the runs that competed for it.

    Attributes:
        dataset, algorithm, environment, method: names.
        test_env: the environment's number.
        runs: `ranked_runs`.
        hparams: `hparams_of` these runs.
    """

    dataset: str
    algorithm: str
    environment: str
    test_env: int
    method: str
    runs: pd.DataFrame
    hparams: pd.DataFrame

    def __str__(self) -> str:
        return (
            f"{self.algorithm} on {self.dataset}, test environment {self.environment} (number {self.test_env}), "
            f"model selection: {self.method}"
        )

    @property
    def best(self) -> pd.DataFrame:
        """The runs that the cell takes, one a trial."""
        return self.runs[self.runs["rank"] == 1]

    @property
    def mean(self) -> float:
        """In percent; NaN where there is no run to take."""
        return float(self.best["test_acc"].mean())

    @property
    def error(self) -> float:
        """The standard error over trials, in percent; NaN where there is no run to take."""
        return standard_error(self.best["test_acc"].to_numpy()) if len(self.best) else np.nan

    @property
    def of_trials(self) -> int:
        """How many trials there should be."""
        return self.runs["trial_seed"].nunique()


def ranked_runs(runs: pd.DataFrame, chosen: pd.DataFrame, dataset: str, algorithm: str, test_env: int) -> pd.DataFrame:
    """The runs with this single test environment, by trial and rank, as `model_selection.best_hparams` ranks them.

    Args:
        runs: those that were asked for (`load.Sweep.runs`).
        chosen: the record that a selection method chooses from each run.

    Returns:
        A row a run: `trial_seed`, `rank` (from 1), `hparams_seed`, the chosen `step`, its `val_acc` and `test_acc` in
        percent, `done`, and `folder`. Runs that the method can't choose from come last in their trial, without rank,
        step and accuracies; those without records have no folder, either.
    """
    draw = ["trial_seed", "hparams_seed"]
    runs = runs[(runs["dataset"] == dataset) & (runs["algorithm"] == algorithm)]
    runs = runs[[test_envs == (test_env,) for test_envs in runs["test_envs"]]]
    runs = runs[[*draw, "folder"]].assign(done=[state == JobState.DONE for state in runs["state"]])
    of_cell = (chosen["dataset"] == dataset) & (chosen["algorithm"] == algorithm) & (chosen["test_env"] == test_env)
    found = chosen.loc[of_cell, [*draw, "step", "val_acc", "test_acc"]].astype({c: runs[c].dtype for c in draw})
    runs = runs.merge(found, on=draw, how="left")
    runs = runs.sort_values(["trial_seed", "val_acc", "hparams_seed"], ascending=[True, False, False])
    rank = runs.groupby("trial_seed").cumcount().add(1).where(runs["val_acc"].notna())
    percent = {c: 100 * runs[c].astype(float) for c in ("val_acc", "test_acc")}
    runs = runs.assign(rank=rank.astype("Int64"), step=runs["step"].astype("Int64"), **percent)
    columns = ["trial_seed", "rank", "hparams_seed", "step", "val_acc", "test_acc", "done", "folder"]
    return runs[columns].reset_index(drop=True)


def hparams_of(jobs: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The hyperparameters of these runs, row by row, as JSON has them; NaN where a run does not tell.

    Those that are called like a column of `runs` have "hparams." before their name.

    Args:
        jobs: `load.Sweep.jobs`.
        runs: `ranked_runs`.
    """
    texts = [jobs.at[folder, "hparams"] if isinstance(folder, str) else None for folder in runs["folder"]]
    told = [json.loads(text) if isinstance(text, str) else None for text in texts]
    rows = [hparams if isinstance(hparams, dict) else {} for hparams in told]
    # Of dtype object: 64 stays 64 where another run does not tell its batch size.
    hparams = pd.DataFrame(rows, index=runs.index, dtype=object)
    return hparams.rename(columns={name: f"hparams.{name}" for name in runs.columns})


def as_text(cell: Cell, n: int) -> str:
    """A table a trial of its first `n` runs, and how they make the cell."""
    hparams = cell.hparams[cell.runs["folder"].notna()]
    same = [name for name in hparams if hparams[name].map(json.dumps).nunique() == 1]  # 1 is not true, nor [1] hashable
    texts = hparams.map(_shown)
    parts = [str(cell)]
    for trial, runs in cell.runs.groupby("trial_seed"):
        ranked = runs[runs["rank"].notna()]
        if ranked.empty:
            parts.append(f"Trial {trial}: no run to choose from")
            continue
        listed = ranked.head(n)
        rest = f", {len(ranked) - len(listed)} of them not listed" if len(listed) < len(ranked) else ""
        parts.append(
            f"Trial {trial}: the table's cell takes the first of {_count(len(ranked))}{rest}\n"
            + _table(listed, texts.drop(columns=same).loc[listed.index])
        )
    if same:
        told = ", ".join(f"{name} {texts[name].iloc[0]}" for name in same)
        parts.append(f"The same in {'all ' if len(texts) > 1 else ''}{_count(len(texts))}: {told}")
    parts += [*not_ranked(cell), _told(cell)]
    return "\n\n".join(parts)


def as_csv(cell: Cell, n: int) -> str:
    """A row a run: the first `n` of each trial, with all hyperparameters and unrounded."""
    listed = cell.runs[cell.runs["rank"] <= n]
    return listed.join(cell.hparams).to_csv(index=False)


def as_json(cell: Cell, n: int) -> str:
    """The cell, and the first `n` runs of each trial, with all hyperparameters and unrounded."""
    listed = cell.runs[cell.runs["rank"] <= n]
    runs = []
    for run, hparams in zip(listed.to_dict("records"), cell.hparams.loc[listed.index].to_dict("records"), strict=True):
        runs.append({**run, "hparams": {name: value for name, value in hparams.items() if not _is_missing(value)}})
    unranked = cell.runs.loc[cell.runs["rank"].isna(), ["trial_seed", "hparams_seed"]]
    of_cell = {
        "dataset": cell.dataset,
        "algorithm": cell.algorithm,
        "environment": cell.environment,
        "test_env": cell.test_env,
        "selection": cell.method,
        "mean": None if cell.best.empty else cell.mean,
        "error": None if cell.best.empty else cell.error,
        "trials": len(cell.best),
        "of_trials": cell.of_trials,
        "not_ranked": unranked.to_dict("records"),
        "runs": runs,
    }
    return json.dumps(of_cell, indent=2) + "\n"


def not_ranked(cell: Cell) -> list[str]:
    """A line about the runs without records, and one about those that the method can't choose from."""
    why = "every record of theirs lacks an accuracy that it needs"
    if cell.method in WITH_PAIRS:
        why = "it needs the runs with each pair of test environments, at the same step (sweep launch --leave_one_out)"
    unranked = cell.runs[cell.runs["rank"].isna()]
    has_records = unranked["folder"].notna()
    lines = []
    for runs, reason in (
        (unranked[~has_records], "without records"),
        (unranked[has_records], f"from which {cell.method} can't choose: {why}"),
    ):
        which = "; ".join(
            f"trial {trial}: hparams_seed {', '.join(map(str, sorted(of_trial['hparams_seed'])))}"
            for trial, of_trial in runs.groupby("trial_seed")
        )
        if which:
            lines.append(f"Not ranked: {_count(len(runs))} ({which}) {reason}")
    return lines


def _told(cell: Cell) -> str:
    """The line that leads to the tables."""
    if cell.best.empty:
        return "The table's cell is X: there is no run to choose from."
    trials = len(cell.best)
    of_trials = f"{trials} of {cell.of_trials}" if trials < cell.of_trials else str(trials)
    line = (
        f"The table's cell is {cell.mean:.1f} +/- {cell.error:.1f}: mean and standard error, over {of_trials} "
        f"trial{'s' if cell.of_trials > 1 else ''}, of the test_acc of the runs marked {TAKEN}."
    )
    if unfinished := (~cell.best["done"]).sum():
        line += f" {unfinished} of them {'is' if unfinished == 1 else 'are'} not done; what is recorded so far counts."
    return line


def _table(runs: pd.DataFrame, hparams: pd.DataFrame) -> str:
    """The runs and those of their hyperparameters that differ, already in words."""
    columns = {
        "rank": [f"{TAKEN} {rank}" if rank == 1 else str(rank) for rank in runs["rank"]],
        "hparams_seed": runs["hparams_seed"],
        "step": runs["step"],
        "val_acc": [f"{accuracy:.2f}" for accuracy in runs["val_acc"]],
        "test_acc": [f"{accuracy:.2f}" for accuracy in runs["test_acc"]],
        "done": ["yes" if done else "no" for done in runs["done"]],
        **{str(name): hparams[name] for name in hparams},
        "folder": runs["folder"],
    }
    return tabulate(columns, headers="keys", colalign=["right"] * len(columns), disable_numparse=True)


def _shown(value: Any) -> str:
    """A hyperparameter in a table: as --hparams takes it, but four digits of a float will do."""
    if _is_missing(value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and np.isnan(value)


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"
