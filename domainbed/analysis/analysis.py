"""The analysis of a sweep: the tables of each selection method and dataset."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from domainbed.analysis import tables
from domainbed.analysis.ensembles import measure_ensemble
from domainbed.analysis.line_table import line_points, line_table
from domainbed.analysis.measures import Measured, find_extremes, measure_agreement, measure_run
from domainbed.analysis.runs import load_runs
from domainbed.analysis.tables import Table
from domainbed.model_selection import RUN_COLUMNS, TRIAL_COLUMNS, best_hparams
from domainbed.predictions import PREDICTIONS_FILE
from domainbed.reporting.cells import environment_names, testable_names
from domainbed.reporting.load import Sweep
from domainbed.reporting.report import sweep_titles

CALIBRATION_TABLES = {"calibration", "line"}  # they require the calibration of runs


@dataclass(frozen=True)
class Section:
    """The requested tables of a selection method and a dataset.

    Attributes:
        selection, dataset: these.
        title: the printed name of the dataset, with a frozen backbone.
        environments: the names of the environments that can be tested on.
        algorithms: the algorithms with predictions, in the order of the request.
        runs: the runs behind the tables; without calibration if no requested table requires it.
        points: the accuracies of runs and the agreement of pairs (`line_points`); empty without the table "line".
        tables: the requested tables that are defined.
    """

    selection: str
    dataset: str
    title: str
    environments: Sequence[str]
    algorithms: Sequence[str]
    runs: Sequence[Measured]
    points: pd.DataFrame
    tables: Sequence[Table]


def analyze(
    sweep: Sweep,
    selections: Iterable[str],
    datasets: Sequence[str],
    algorithms: Sequence[str],
    table_names: Collection[str],
    warn: Callable[[str], object],
) -> list[Section]:
    """Return the sections of those selection methods and datasets that have runs with predictions.

    Args:
        sweep: the sweep.
        selections: selection methods.
        datasets, algorithms: what to analyze.
        table_names: the tables to make, of `command.TABLES`; what only others require is neither loaded nor computed.
        warn: called with one line per problem.
    """
    sections = []
    for selection in selections:
        selected = sweep.select(selection)
        for dataset in datasets:
            of_dataset = selected[(selected["dataset"] == dataset) & selected["algorithm"].isin(algorithms)]
            section = _make_section(sweep, selection, dataset, algorithms, table_names, of_dataset, warn)
            sections += [section] if section else []
    return sections


def _make_section(
    sweep: Sweep,
    selection: str,
    dataset: str,
    algorithms: Sequence[str],
    table_names: Collection[str],
    selected: pd.DataFrame,
    warn: Callable[[str], object],
) -> Section | None:
    best = best_hparams(selected)
    names = environment_names(sweep.jobs, dataset)
    with_calibration = not CALIBRATION_TABLES.isdisjoint(table_names)
    runs = [measure_run(run, with_calibration) for run in load_runs(sweep.folder, best, names, warn)]
    if runs:
        classes, _ = Counter(run.classes for run in runs).most_common(1)[0]
        if n_others := sum(run.classes != classes for run in runs):
            warn(f"{dataset}, {selection}: {n_others} of {len(runs)} runs have other classes than most; skipped")
        runs = [run for run in runs if run.classes == classes]
    if missing := len(best) - len(runs):
        warn(
            f"{dataset}, {selection}: {missing} of {len(best)} selected runs have no usable {PREDICTIONS_FILE} and are "
            "left out; launch with --save_predictions"
        )
    if not runs:
        return None
    environments = testable_names(sweep.jobs, dataset)
    present = [name for name in algorithms if any(run.run["algorithm"] == name for run in runs)]
    runs.sort(key=lambda run: (present.index(run.run["algorithm"]), run.run["test_env"], run.run["trial_seed"]))
    points = line_points(runs) if "line" in table_names else pd.DataFrame()
    builders: dict[str, Callable[[], Table | None]] = {
        "accuracy": lambda: tables.accuracy_table(runs, environments),
        "calibration": lambda: tables.calibration_table(runs, environments),
        "classes": lambda: tables.classes_table(runs, environments),
        "confusion": lambda: tables.confusion_table(runs, environments),
        "agreement": lambda: tables.agreement_table(measure_agreement(runs), environments),
        "line": lambda: line_table(points, environments),
        "images": lambda: tables.images_table(find_extremes(runs, present), runs, environments),
        "ensembles": lambda: tables.ensembles_table(
            _measure_ensembles(sweep, selected, best, names, present), environments
        ),
    }
    made = [table for name, build in builders.items() if name in table_names and (table := build())]
    title = sweep_titles(sweep, ())(dataset)
    return Section(selection, dataset, title, environments, present, runs, points, made)


def _measure_ensembles(
    sweep: Sweep, selected: pd.DataFrame, best: pd.DataFrame, environments: Sequence[str], algorithms: Sequence[str]
) -> pd.DataFrame:
    """Return the ensembles over the draws of each trial, and over the selected runs of all trials."""
    selected = selected[selected["algorithm"].isin(algorithms)]
    best = best[best["algorithm"].isin(algorithms)]
    groups: list[tuple[str, pd.DataFrame]] = []
    for kind, frame, keys in (("draws", selected, TRIAL_COLUMNS), ("trials", best, TRIAL_COLUMNS[:-1])):
        groups += [(kind, group) for _, group in frame.groupby(keys) if len(group) > 1]
    rows: list[dict[str, Any]] = []
    for kind, group in groups:
        # Unusable files of the best runs have been reported; other draws are members only if they can be.
        members = load_runs(sweep.folder, group.sort_values(RUN_COLUMNS), environments, lambda problem: None)
        if row := measure_ensemble(members, kind):
            rows.append(row)
    rows.sort(key=lambda row: (row["kind"], algorithms.index(row["algorithm"])))
    return pd.DataFrame(rows)
