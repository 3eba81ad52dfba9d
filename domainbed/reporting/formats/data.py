"""A report as data: every cell, unrounded, with its counts, as CSV or JSON."""

import json
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd

from domainbed.reporting.cells import Cell
from domainbed.reporting.comparisons import BaselineComparison
from domainbed.reporting.findings import compare_sentence
from domainbed.reporting.frames import to_csv
from domainbed.reporting.layout import Table
from domainbed.reporting.on_the_line import LineResult
from domainbed.reporting.published import PublishedResult
from domainbed.reporting.report import Report
from domainbed.sweep.status import JobState

COLUMNS = [
    *("selection", "table", "algorithm", "column"),
    *("mean", "standard_error", "low", "high", "trials", "trials_requested"),
    *("runs_requested", *(f"runs_{state.name.lower()}" for state in JobState), "runs_unusable", "unfinished_selected"),
    *("published", "published_error", "difference", "source"),
]


def as_csv(report: Report) -> str:
    """Return one row per cell: accuracies in percent, empty if missing. The columns are the keys of JSON's `cells`.

    With `--significance` or `--on_the_line`, return those results instead, with the keys of the JSON of this name.

    Names are the printed ones. A name that spreadsheets would run as a formula begins with a single quote
    (`frames.to_csv`); JSON has it as it is.
    """
    if report.options.on_the_line:
        return to_csv(_lines_frame(report))
    return to_csv(_significance_frame(report) if report.options.significance else cells_frame(report))


def as_json(report: Report) -> str:
    """Return an object of lists of objects; missing values are null.

    `cells`: the cells, with accuracies in percent and the number of runs in each state. `best`: the run behind each
    cell and trial, with accuracies from 0 to 1. `versus`: the comparison of two algorithms. `power`: the smallest
    differences that can be shown. `significance`: the comparisons with the baseline. `ranks`: the mean rank of each
    algorithm. `on_the_line`: the lines of all runs. `no_table`: why selection methods have no tables. `notes` and
    `problems`: lines of text.
    """
    best = [_renamed(section.best, report).assign(selection=section.selection) for section in report.sections]
    versus = [
        _renamed(pd.DataFrame(section.versus), report).assign(selection=section.selection)
        for section in report.sections
    ]
    power = [
        _renamed(pd.DataFrame(section.power), report).assign(selection=section.selection) for section in report.sections
    ]
    content = {
        "input_dir": str(report.sweep.folder),
        "progress": report.progress,
        "cells": _records(cells_frame(report)),
        "best": _records(pd.concat(best)),
        "versus": _records(pd.concat(versus)),
        "power": _records(pd.concat(power)),
        "significance": _records(_significance_frame(report)),
        "ranks": _records(_ranks_frame(report)),
        "on_the_line": _records(_lines_frame(report)),
        "no_table": {section.selection: section.why_empty for section in report.sections if section.why_empty},
        "notes": report.notes,
        "problems": report.sweep.problems,
    }
    return json.dumps(content, indent=1) + "\n"


def cells_frame(report: Report) -> pd.DataFrame:
    tables = [table for section in report.sections for table in section.tables]
    return pd.DataFrame([_row(table, cell) for table in tables for cell in table.cells], columns=COLUMNS)


def _significance_frame(report: Report) -> pd.DataFrame:
    """Return one row per comparison with the baseline."""
    rows = [
        {"selection": section.selection, **asdict(comparison)}
        | {"sentence": compare_sentence(comparison, dataset.n_datasets, report.titles, report.options.decimals)}
        for section in report.sections
        if section.significance
        for dataset in section.significance.datasets
        for comparison in dataset.comparisons
    ]
    columns = ["selection", *(field.name for field in fields(BaselineComparison)), "sentence"]
    return _renamed(pd.DataFrame(rows, columns=columns), report)


def _ranks_frame(report: Report) -> pd.DataFrame:
    """Return one row per algorithm that has a mean rank."""
    rows = []
    for section in report.sections:
        if section.significance:
            ranks = section.significance.ranks
            values = {"unit": ranks.unit, "blocks": ranks.blocks, "critical_difference": ranks.critical_difference}
            values |= {f"friedman_{name}": value for name, value in ranks.test._asdict().items()} if ranks.test else {}
            rows += [
                {"selection": section.selection, "algorithm": name, "mean_rank": rank, **values}
                for name, rank in ranks.ranks.items()
            ]
    return _renamed(pd.DataFrame(rows), report)


def _lines_frame(report: Report) -> pd.DataFrame:
    """Return one row per test environment and algorithm."""
    frame = pd.DataFrame(report.lines, columns=[field.name for field in fields(LineResult)])
    names = [
        report.titles.environment(line.dataset, report.environments[line.dataset][line.test_env])
        for line in report.lines
    ]
    return _renamed(frame.assign(test_env=names), report)


def _row(table: Table, cell: Cell) -> dict[str, Any]:
    reference = cell.reference or PublishedResult(np.nan, np.nan, "")
    derived = {
        "table": table.title,
        "algorithm": table.titles(cell.algorithm),
        "column": table.format_column(cell.column),
        **{f"runs_{state.name.lower()}": cell.runs[state] for state in JobState},
        "published": reference.accuracy,
        "published_error": reference.standard_error,
        "source": reference.source or None,
    }
    return {name: derived[name] if name in derived else getattr(cell, name) for name in COLUMNS}


def _renamed(frame: pd.DataFrame, report: Report) -> pd.DataFrame:
    """Return the rows with the printed names of datasets and algorithms."""
    names = [name for name in ("dataset", "algorithm", "baseline") if name in frame]
    return frame.assign(**{name: frame[name].map(report.titles) for name in names})


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON values, unrounded."""
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {str(name): value.item() if hasattr(value, "item") else value for name, value in row.items()}
        for row in plain.to_dict("records")
    ]
