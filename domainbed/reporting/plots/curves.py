"""Plots of the selected runs over training: their accuracies, and the metrics that their updates recorded."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from domainbed.engine.tracking import TRACKERS
from domainbed.records import RECORD_KEYS
from domainbed.reporting.plots.scales import MAX_MAGNITUDE, set_log_scale, spans_decades
from domainbed.reporting.plots.style import (
    add_legend,
    annotate_empty,
    label_text,
    legend_line,
    make_panels,
    make_style,
    print_style,
    set_step_ticks,
)

TEST_ENV: dict[str, Any] = {"color": "black", "linewidth": 1.6, "zorder": 3}
SELECTED_STEP: dict[str, Any] = {
    "marker": "o",
    "markersize": 4.5,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
}


@print_style
def plot_training_curves(
    records: pd.DataFrame, best: pd.DataFrame, environments: Mapping[int, str], title: str = ""
) -> Figure:
    """Plot the accuracies of one algorithm's selected runs on one dataset: one panel per test environment.

    The accuracy on the test environment is that of its in split, which is reported; those on the training environments
    are of their out splits. A circle and a vertical line mark the selected step. If some records lack the accuracy on
    the test environment, dots mark those that have it, and dotted lines join them.

    Args:
        records: records of these runs and possibly others: `folder`, `step` and `env{i}_{in,out}_acc`, in [0, 1].
        best: the selected run of each test environment and trial: `test_env`, `folder`, `step`, `test_acc`.
        environments: the name of each environment, by number.
    """
    records = records[records["folder"].isin(best["folder"])].sort_values("step")
    records_by_folder = dict(list(records.groupby("folder", observed=True)))
    test_envs = sorted(best["test_env"].unique())
    figure, axes = make_panels(len(test_envs), title, 1.6, "Training step", share="xy")
    has_gaps = False
    for test_env, ax in zip(test_envs, axes, strict=True):
        for run in best[best["test_env"] == test_env].itertuples():
            run_records = records_by_folder[run.folder]
            ax.axvline(run.step, color="0.6", linewidth=0.6, zorder=1)
            for env in environments:
                if env != test_env and f"env{env}_out_acc" in run_records:
                    style = make_style(env)
                    accuracies = 100 * run_records[f"env{env}_out_acc"]
                    ax.plot(run_records["step"], accuracies, color=style.color, linestyle=style.line, zorder=2)
            measured = run_records.dropna(subset=f"env{test_env}_in_acc")
            gaps: dict[str, Any] = {"linestyle": ":", "marker": "."} if len(measured) < len(run_records) else {}
            ax.plot(measured["step"], 100 * measured[f"env{test_env}_in_acc"], **TEST_ENV, **gaps)
            has_gaps |= bool(gaps)
            ax.plot([run.step], [100 * run.test_acc], zorder=4, **SELECTED_STEP)
        ax.set_title(f"test: {label_text(environments[test_env], 18)}")
        set_step_ticks(ax)
    figure.supylabel("Accuracy (%)")
    entries: list[tuple[str, Artist]] = [
        ("test environment", Line2D([], [], **TEST_ENV)),
        ("selected step", Line2D([], [], color="0.6", linewidth=0.6, **SELECTED_STEP)),
        *((label_text(name), legend_line(make_style(env))) for env, name in environments.items()),
    ]
    note = "; dotted: not evaluated between the dots" if has_gaps else ""
    add_legend(figure, entries, f"test environment: in split{note}; training environments: out split")
    return figure


def curve_values(records: pd.DataFrame, best: pd.DataFrame, environments: Mapping[int, str]) -> pd.DataFrame:
    """Return the accuracies that `plot_training_curves` draws, which has the same arguments: one row per point.

    The columns are `folder`, `test_env` (number), `step`, `environment` and `split` of the accuracy, `accuracy` in
    percent, and `is_selected`, whether a circle marks the point.
    """
    rows = []
    for run in best.itertuples():
        run_records = records[records["folder"] == run.folder].sort_values("step")
        for env, name in environments.items():
            split = "in" if env == run.test_env else "out"
            if f"env{env}_{split}_acc" not in run_records:
                continue
            columns: dict[str, Any] = {"folder": run.folder, "test_env": run.test_env, "environment": name}
            columns |= {"split": split, "step": run_records["step"]}
            columns["accuracy"] = 100 * run_records[f"env{env}_{split}_acc"]
            columns["is_selected"] = (run_records["step"] == run.step) & (env == run.test_env)
            rows.append(pd.DataFrame(columns).dropna(subset="accuracy"))
    return pd.concat(rows, ignore_index=True)


def metric_values(metrics: pd.DataFrame, best: pd.DataFrame, algorithms: Sequence[str]) -> pd.DataFrame:
    """Return the values that `plot_metrics` draws: one row per point, in the order of the panels.

    The columns are `algorithm`, `metric`, `test_env`, `folder`, `step` and `value`, which is NaN at a gap.
    """
    # Metrics with these names would be confused with the columns of `best`.
    metrics = metrics.drop(columns=["algorithm", "test_env"], errors="ignore")
    merged = metrics.merge(best[["folder", "algorithm", "test_env"]], on="folder").sort_values("step")
    prefixes = [re.escape(TRACKERS[name].PREFIX) for name in TRACKERS]
    excluded = re.compile("|".join(["env.*_acc", *(f"{prefix}.*" for prefix in prefixes)]))
    names = [
        name for name in map(str, metrics) if name not in {"folder", *RECORD_KEYS} and not excluded.fullmatch(name)
    ]
    columns = ["algorithm", "metric", "test_env", "folder", "step", "value"]
    panels = []
    for algorithm in algorithms:
        runs = merged[merged["algorithm"] == algorithm]
        for name in (name for name in names if runs[name].notna().any()):
            values = runs[name].astype(float)
            panels.append(runs.assign(metric=name, value=values.where(values.abs() <= MAX_MAGNITUDE))[columns])
    return pd.concat(panels) if panels else pd.DataFrame(columns=columns)


@print_style
def plot_metrics(
    metrics: pd.DataFrame,
    best: pd.DataFrame,
    environments: Mapping[int, str],
    algorithms: Sequence[str],
    title: str = "",
) -> Figure | None:
    """Plot the metrics that the selected runs' updates recorded (`loss`, `penalty`, …) on one dataset.

    Each algorithm and metric has a panel with one line per run, with gaps at values that are not finite or above
    MAX_MAGNITUDE. The axis is logarithmic if the values span decades, with a linear part around zero if some are not
    positive.

    Args:
        metrics: all metrics of these runs (`load.Sweep.load_metrics`).
        best: the selected runs: `algorithm`, `test_env`, `folder`.
        environments: the name of each environment, by number.
        algorithms: the order of the panels.

    Returns:
        The figure, or None if no metric was recorded.
    """
    values = metric_values(metrics, best, algorithms)
    if values.empty:
        return None
    shown = list(values.groupby(["algorithm", "metric"], sort=False))
    figure, axes = make_panels(len(shown), title, 1.35, "Training step")
    for ((algorithm, name), runs), ax in zip(shown, axes, strict=True):
        for _, run in runs.groupby(["test_env", "folder"], observed=True):
            style = make_style(run["test_env"].iloc[0])
            # The markers show a value between two gaps.
            ax.plot(run["step"], run["value"], color=style.color, linestyle=style.line, marker=".", markersize=2)
        ax.set_title(f"{label_text(algorithm, 14)}: {label_text(name, 16)}")
        set_step_ticks(ax)
        finite = runs["value"].dropna()
        if finite.empty:
            annotate_empty(ax, "no finite value")
        elif spans_decades(finite):
            set_log_scale(ax.yaxis, finite)
    figure.supylabel("Mean since the last record")
    test_envs = sorted(best["test_env"].unique())
    entries = [(label_text(environments[env]), legend_line(make_style(env))) for env in test_envs]
    add_legend(figure, entries, "test environment")
    return figure
