"""The report as data: every cell with all digits and what it rests on, as CSV or JSON."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from domainbed.reporting.layout import Cell
from domainbed.reporting.report import Report
from domainbed.sweep.status import JobState

COLUMNS = [
    *("selection", "table", "algorithm", "column", "mean", "standard_error", "low", "high", "trials", "trials_asked"),
    *("runs_asked", *(f"runs_{state.name.lower()}" for state in JobState), "runs_of_no_use", "unfinished_chosen"),
    *("published", "published_error", "difference", "source"),
]


def as_csv(report: Report) -> str:
    """A row a cell: accuracies in percent, empty where missing. The columns are those of `cells` in the JSON."""
    return pd.DataFrame(_cells(report), columns=COLUMNS).to_csv(index=False)


def as_json(report: Report) -> str:
    """An object of lists of objects; what is missing is null.

    `cells`: a cell each, accuracies in percent, and how many runs it should be chosen from (`asked`) are in which
    state. `best`: the run behind a cell in each trial, accuracies from 0 to 1. `versus`: the paired comparison, if one
    was asked for. `no_table`: methods without any, and why. `notes` and `problems`: lines of text.
    """
    best = pd.concat([s.best.assign(selection=s.selection) for s in report.sections])
    versus = [s.versus.assign(selection=s.selection) for s in report.sections if s.versus is not None]
    told = {
        "input_dir": str(report.sweep.folder),
        "progress": report.progress,
        "cells": _records(pd.DataFrame(_cells(report), columns=COLUMNS)),
        "best": _records(best),
        "versus": _records(pd.concat(versus)) if versus else [],
        "no_table": {section.selection: section.why_empty for section in report.sections if section.why_empty},
        "notes": report.notes,
        "problems": report.sweep.problems,
    }
    return json.dumps(told, indent=1) + "\n"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Plain values, which JSON knows, with all their digits."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}
        for row in plain.to_dict("records")
    ]


def _cells(report: Report) -> Iterator[dict[str, Any]]:
    for section in report.sections:
        for table in section.tables:
            for cell in table.cells:
                yield {"selection": section.selection, "table": table.name, **_row(cell)}


def _row(cell: Cell) -> dict[str, Any]:
    reference = cell.reference
    return {
        "algorithm": cell.algorithm,
        "column": cell.column,
        "mean": cell.mean,
        "standard_error": cell.error,
        "low": cell.low,
        "high": cell.high,
        "trials": cell.trials,
        "trials_asked": cell.of_trials,
        "runs_asked": cell.asked,
        **{f"runs_{state.name.lower()}": cell.states[state.value] for state in JobState},
        "runs_of_no_use": cell.useless,
        "unfinished_chosen": cell.unfinished,
        "published": reference.accuracy if reference else None,
        "published_error": reference.error if reference else None,
        "difference": cell.difference,
        "source": reference.source if reference else None,
    }
