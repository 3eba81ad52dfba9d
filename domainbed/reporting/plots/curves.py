"""What the chosen runs did over their training: accuracies, what their updates recorded, how far apart domains were."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.reporting.plots.scales import logarithmic, spans_decades
from domainbed.reporting.plots.style import Style, legend, line_of, make_style, note, on_paper, panels, steps_axis, text

# What records hold besides the update's figures.
NOT_OF_THE_UPDATE = ("folder", "step", "epoch", "step_time", "mem_gb", "bad_images", "schema_version")

CHOSEN: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": "black"}


@on_paper
def training_curves(
    records: pd.DataFrame, best: pd.DataFrame, environments: Mapping[int, str], title: str = ""
) -> Figure:
    """The accuracies of one algorithm's chosen runs on one dataset, a panel a test environment, a line a run.

    The test environment's are on its in split, which is what is reported, the training environments' on their out
    splits. A ring and a vertical line mark the step that was chosen.

    Args:
        records: of these runs, others do no harm: `folder`, `step` and the accuracies `env{i}_{in,out}_acc`, in [0, 1].
        best: the chosen run of each test environment and trial: `test_env`, `folder`, `step`, `test_acc`.
        environments: the names of all, by number.
    """
    runs = dict(
        list(records[records["folder"].isin(best["folder"])].sort_values("step").groupby("folder", observed=True))
    )
    test_envs = sorted(best["test_env"].unique())
    figure, axes = panels(len(test_envs), title, 1.6, "Training step", share="xy")
    for test_env, ax in zip(test_envs, axes, strict=True):
        for chosen in best[best["test_env"] == test_env].itertuples():
            run = runs[chosen.folder]
            ax.axvline(chosen.step, color="0.6", linewidth=0.6, zorder=1)
            for env in environments:
                if env != test_env and f"env{env}_out_acc" in run:
                    of_env = make_style(env)
                    accuracies = 100 * run[f"env{env}_out_acc"]
                    ax.plot(run["step"], accuracies, color=of_env.color, linestyle=of_env.line, zorder=2)
            accuracies = 100 * run[f"env{test_env}_in_acc"]
            ax.plot(run["step"], accuracies, color="black", linewidth=1.6, zorder=3)
            ax.plot([chosen.step], [100 * chosen.test_acc], zorder=4, **CHOSEN)
        ax.set_title(f"test: {text(environments[test_env], 18)}")
        steps_axis(ax)
    figure.supylabel("Accuracy (%)")
    samples: list[tuple[str, Artist]] = [
        ("test environment", Line2D([], [], color="black", linewidth=1.6)),
        ("chosen step", Line2D([], [], color="0.6", linewidth=0.6, **CHOSEN)),
        *((text(name), line_of(make_style(env))) for env, name in environments.items()),
    ]
    legend(figure, samples, "test environment: in split; training environments: out split")
    return figure


@on_paper
def figure_courses(
    figures: pd.DataFrame,
    best: pd.DataFrame,
    environments: Mapping[int, str],
    algorithms: Sequence[str],
    title: str = "",
) -> Figure | None:
    """The figures that the chosen runs' updates recorded (`loss`, `penalty`, …) on one dataset.

    A panel an algorithm and figure, a line a run, with a gap where a value is not finite; the axis of values is
    logarithmic where they span decades, with a linear part about zero where some are not positive.

    Args:
        figures: of these runs (`load.Sweep.figures`).
        best: the chosen runs: `algorithm`, `test_env`, `folder`.
        environments: the names of all, by number.
        algorithms: the order of the panels.

    Returns:
        The figure, or None where nothing was recorded.
    """
    figures = figures.drop(columns=["algorithm", "test_env"], errors="ignore")  # numbers that happen to be called so
    merged = figures.merge(best[["folder", "algorithm", "test_env"]], on="folder").sort_values("step")
    others = re.compile(rf"env.*_acc|{PREFIX}.*")
    names = [c for c in map(str, figures) if c not in NOT_OF_THE_UPDATE and not others.fullmatch(c)]
    wanted = []
    for algorithm in algorithms:
        of_algorithm = merged[merged["algorithm"] == algorithm]
        wanted += [(algorithm, name, of_algorithm) for name in names if of_algorithm[name].notna().any()]
    if not wanted:
        return None
    figure, axes = panels(len(wanted), title, 1.35, "Training step")
    for (algorithm, name, of_algorithm), ax in zip(wanted, axes, strict=True):
        for _, run in of_algorithm.groupby(["test_env", "folder"], observed=True):
            values = run[name].to_numpy(dtype=float)
            values = np.where(np.isfinite(values), values, np.nan)
            of_env = make_style(run["test_env"].iloc[0])
            # The dots show a value between two gaps.
            ax.plot(run["step"], values, color=of_env.color, linestyle=of_env.line, marker=".", markersize=2)
        ax.set_title(f"{text(algorithm, 14)}: {text(name, 16)}")
        steps_axis(ax)
        finite = of_algorithm[name][np.isfinite(of_algorithm[name].astype(float))]
        if finite.empty:
            note(ax, "no finite value")
        elif spans_decades(finite):
            logarithmic(ax.yaxis, finite)
    figure.supylabel("Mean since the last record")
    test_envs = sorted(best["test_env"].unique())
    legend(figure, [(text(environments[env]), line_of(make_style(env))) for env in test_envs], "test environment")
    return figure


@on_paper
def distance_courses(records: pd.DataFrame, looks: Mapping[str, Style], title: str = "") -> Figure | None:
    """The distances that were recorded along training: a panel a quantity, a line an algorithm.

    The strong line is the geometric mean over runs, the faint ones are the runs'.

    Args:
        records: `algorithm`, `folder` (or whatever tells runs apart), `step`, and what records tell of the landscape.
        looks: of the algorithms.

    Returns:
        The figure, or None where nothing was recorded.
    """
    names = {PREFIX + name: title for name, title in QUANTITIES.items() if PREFIX + name in records}
    positive = records.reindex(columns=[*names]).astype(float)
    positive = positive.where(np.isfinite(positive) & (positive > 0))
    records = records[["algorithm", "folder", "step"]].join(positive).dropna(subset=[*names], how="all")
    if not names or records.empty:
        return None
    figure, axes = panels(len(names), title, 1.5, "Training step")
    there = [algorithm for algorithm in looks if (records["algorithm"] == algorithm).any()]
    for (name, words), ax in zip(names.items(), axes, strict=True):
        for algorithm in there:
            its = looks[algorithm]
            runs = records[records["algorithm"] == algorithm].pivot(index="step", columns="folder", values=name)
            ax.plot(runs.index, runs, color=its.color, linewidth=0.5, alpha=0.3)
            mean = np.exp(np.log(runs).mean(axis=1))
            ax.plot(runs.index, mean, color=its.color, linestyle=its.line, linewidth=1.3)
        ax.set_title(words.capitalize())
        steps_axis(ax)
        if spans_decades(records[name].dropna()):
            logarithmic(ax.yaxis, records[name].dropna())
    figure.supylabel("|a - b|², mean over pairs")
    legend(figure, [(text(algorithm), line_of(looks[algorithm])) for algorithm in there])
    return figure
