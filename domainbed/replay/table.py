"""The table of replayed policies as text, with what can be concluded from it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from domainbed.model_selection import RUN_COLUMNS
from domainbed.replay.fidelity import count_computing
from domainbed.replay.replays import CHANGED, cheapest_faithful

if TYPE_CHECKING:
    from domainbed.replay.command import ReplayOptions

HEADERS = [
    *("Policy", "Updates", "Evaluations", "Cost", "Cells", "Largest", "Missing"),
    *("Swapped", "Lost/gained/reversed", "Changed"),
]


def format_summary(
    summary: pd.DataFrame, curves: pd.DataFrame, differences: pd.Series, options: "ReplayOptions"
) -> str:
    """Return the text table of a summary of replays, with notes.

    Args:
        summary: as returned by `replays.summarize`.
        curves: the records that were replayed.
        differences: those of the complete sweep (`fidelity.Answers`).
        options: the options of the command.
    """
    rows = [
        [
            row["policy"],
            *(f"{100 * row[name]:.0f}" for name in ("updates", "evaluations", "cost")),
            _format_interval(row, "cell", 2),
            f"{row['max_cell']:.1f}",
            _format_interval(row, "missing", 1),
            _format_interval(row, "swapped", 0, 100),
            "/".join(f"{row[name]:.1f}" for name in ("lost", "gained", "reversed")),
            _format_interval(row, CHANGED, 1),
        ]
        for row in summary.to_dict("records")
    ]
    n_updates, n_evaluations = count_computing(curves)
    n_runs = len(curves.drop_duplicates(RUN_COLUMNS))
    notes = [
        f"{n_runs:,} finished runs, {n_updates:,} updates and {n_evaluations:,} evaluations; model selection: "
        "training-domain.",
        "Updates, Evaluations, Cost: in percent of the complete sweep. An evaluation counts as "
        f"{options.updates_per_evaluation:g} updates.",
        "Cells: mean absolute change, in percentage points; Largest: that of the cell that changes most; Missing: "
        "number of cells without any run, which these omit.",
        "Swapped: pairs of algorithms whose order by a dataset's average changes, in percent.",
        f"Changed: differences from {options.baseline}, of {len(differences)} (each dataset and the average), that "
        "lose significance, gain it, or change sign. Significant: by the corrected p-values of collect_results "
        "--significance; with a single trial, none is.",
        f"Means and [95% intervals] over {options.resamples} random orders and draws.",
    ]
    if curves["test_acc"].isna().any():
        notes.append("Fewer evaluations are not replayed: some records lack the test accuracy (--eval selection).")
    notes += conclude(summary, differences, options.baseline)
    return "\n".join([tabulate(rows, HEADERS, disable_numparse=True), "", *notes]) + "\n"


def conclude(summary: pd.DataFrame, differences: pd.Series, baseline: str) -> list[str]:
    """Return how many differences are significant, and the cheapest policy that never changed them, as sentences.

    The arguments are those of `format_summary`.
    """
    if differences.empty:
        return [
            f"Cannot compare with {baseline}: this requires two trials with runs of both algorithms on every test "
            "environment."
        ]
    n = int((differences != 0).sum())
    counts = f"Significant differences from {baseline} in the complete sweep: {n} of {len(differences)}"
    if n == 0:
        return [f"{counts}; conclusions cannot rank the policies."]
    lines = [f"{counts}."]
    if len(untested := summary.loc[(summary[CHANGED] == 0) & (summary["untested"] > 0), "policy"]):
        lines.append(f"Not considered, because they leave differences untested: {', '.join(untested)}.")
    best = cheapest_faithful(summary)
    others = "Every other policy" if len(untested) else "Every policy"
    policy = f"{best} is the cheapest policy that never changed" if best else f"{others} at times changed"
    return [*lines, f"{policy} which differences from {baseline} are significant."]


def _format_interval(row: dict[Any, Any], name: str, decimals: int, scale: float = 1.0) -> str:
    """Return a mean with its interval, such as "0.59 [0.33, 1.00]"; "-" if it is undefined."""
    if np.isnan(row[name]):
        return "-"
    mean, low, high = (f"{scale * row[column]:.{decimals}f}" for column in (name, f"{name}_low", f"{name}_high"))
    return mean if low == mean == high else f"{mean} [{low}, {high}]"
