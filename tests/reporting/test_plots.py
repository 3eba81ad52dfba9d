"""Plots: the data of lines, points and bars equal the records that they show."""

import gc
import io
import itertools
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from domainbed.engine.tracking import TRACKERS, Tracker
from domainbed.errors import UsageError
from domainbed.reporting.load import Sweep, load_sweep
from domainbed.reporting.plots import draw_plots, write_figure
from domainbed.reporting.plots.bars import plot_bars
from domainbed.reporting.plots.curves import plot_metrics, plot_training_curves
from domainbed.reporting.plots.gallery import Plot
from domainbed.reporting.plots.scatter import plot_hparams, plot_in_and_out, sample_hparams, without_ignored
from domainbed.reporting.plots.style import label_text, make_style, use_look
from domainbed.reporting.titles import Titles
from tests.conftest import make_record, write_sweep

ENVIRONMENTS = dict(enumerate(["+90%", "+80%", "-90%"]))
R = np.random.RandomState(0)


def lines(ax: Axes, color: str) -> list[np.ndarray]:
    """Return the lines of one color, each [points, (step, value)], sorted by their values."""
    found = [line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 1 and to_hex(line.get_color()) == color]
    return sorted((np.asarray(xy) for xy in found), key=lambda xy: xy[:, 1].tolist())


def points(ax: Axes) -> list[np.ndarray]:
    """Return the points of each category: [n, (x, y)]."""
    return [np.asarray(collection.get_offsets()) for collection in ax.collections]


def png(figure: Figure, dpi: int = 60) -> Image.Image:
    file = io.BytesIO()
    write_figure(figure, file, "png", dpi)
    image = Image.open(file)
    image.load()
    return image


def legend_labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.legends[0].get_texts()]


# Training curves


def two_trials() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the shuffled records of one algorithm's runs (test environment, trial), and the selected steps."""
    rows, best = [], []
    for test_env, trial in itertools.product((0, 2), range(2)):
        folder = f"job{test_env}{trial}"
        run_records = [
            {"folder": folder, "step": 100 * k}
            | {f"env{i}_{part}_acc": R.uniform() for i in range(3) for part in ("in", "out")}
            for k in range(4)
        ]
        rows += run_records
        selected = run_records[1 + trial]
        best.append(
            {"folder": folder, "algorithm": "ERM", "test_env": test_env, "step": selected["step"]}
            | {"test_acc": selected[f"env{test_env}_in_acc"]}
        )
    return pd.DataFrame(rows).sample(frac=1, random_state=0), pd.DataFrame(best)


def test_curves_are_accuracies_in_percent_sorted_by_step():
    records, best = two_trials()
    figure = plot_training_curves(records, best, ENVIRONMENTS)
    assert [ax.get_title() for ax in figure.axes] == ["test: +90%", "test: -90%"]
    for ax, test_env in zip(figure.axes, (0, 2), strict=True):
        for env in range(3):
            color = "#000000" if env == test_env else make_style(env).color.lower()
            name = f"env{env}_in_acc" if env == test_env else f"env{env}_out_acc"
            expected = []
            for folder in (f"job{test_env}0", f"job{test_env}1"):
                run = records[records["folder"] == folder]
                by_step = dict(zip(run["step"], 100 * run[name], strict=True))
                expected.append([[step, by_step[step]] for step in (0, 100, 200, 300)])
            expected.sort(key=lambda line: [value for _, value in line])
            np.testing.assert_allclose(lines(ax, color), expected)


def test_selected_step_of_each_trial_is_marked_on_test_environment():
    records, best = two_trials()
    figure = plot_training_curves(records, best, ENVIRONMENTS)
    for ax, test_env in zip(figure.axes, (0, 2), strict=True):
        selected = best[best["test_env"] == test_env]
        circles = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(
            sorted(map(list, circles)), sorted(zip(selected["step"], 100 * selected["test_acc"], strict=True))
        )
        verticals = [line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]]
        assert sorted(verticals) == [100, 200]


def test_test_environment_is_emphasized():
    records, best = two_trials()
    ax = plot_training_curves(records, best, ENVIRONMENTS).axes[0]
    black = [line for line in ax.lines if line.get_color() == "black" and len(line.get_xdata()) > 1]
    others = [line for line in ax.lines if len(line.get_xdata()) == 4 and line.get_color() != "black"]
    assert len(black) == 2
    assert min(b.get_linewidth() for b in black) > 1.5 * max(o.get_linewidth() for o in others)
    assert min(b.get_zorder() for b in black) > max(o.get_zorder() for o in others)


def test_curves_of_single_record_without_one_environment():
    records = pd.DataFrame([{"folder": "a", "step": 0, "env0_in_acc": 0.5, "env0_out_acc": 0.5, "env2_out_acc": 0.25}])
    best = pd.DataFrame([{"folder": "a", "algorithm": "ERM", "test_env": 0, "step": 0, "test_acc": 0.5}])
    figure = plot_training_curves(records, best, ENVIRONMENTS)
    ys = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert sorted(ys) == [[0, 1], [25.0], [50.0], [50.0]]
    png(figure)


# Hyperparameters


def selected_runs(n: int, test_envs: tuple[int, ...] = (0,)) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "folder": f"{env}-{i}",
                "algorithm": "ERM",
                "test_env": env,
                "test_acc": R.uniform(),
                "val_acc": R.uniform(),
            }
            for env in test_envs
            for i in range(n)
        ]
    )


def plot_hparam(values: list, name: str, algorithm: str = "Unregistered", dataset: str = "PACS") -> Axes:
    runs = selected_runs(len(values))
    hparams = pd.DataFrame({name: pd.Series(values, dtype=object)}).set_index(runs["folder"])
    figure = plot_hparams(runs, hparams, ENVIRONMENTS, sample_hparams(algorithm, dataset))
    png(figure)
    return figure.axes[0]


def test_points_are_values_and_accuracies_in_percent():
    runs = selected_runs(20, (0, 2))
    hparams = pd.DataFrame({"lr": 10 ** R.uniform(-5, -3.5, 40), "same": 1}, index=runs["folder"])
    figure = plot_hparams(runs, hparams.sample(frac=1, random_state=0), ENVIRONMENTS, sample_hparams("ERM", "PACS"))
    (ax,) = figure.axes  # none for the hyperparameter with a single value
    assert ax.get_xlabel() == "lr"
    for found, env in zip(points(ax), (0, 2), strict=True):
        env_runs = runs[runs["test_env"] == env]
        expected = [
            [hparams.at[folder, "lr"], 100 * acc]
            for folder, acc in zip(env_runs["folder"], env_runs["test_acc"], strict=True)
        ]
        np.testing.assert_allclose(sorted(map(list, found)), sorted(expected))
    assert legend_labels(figure) == ["+90%", "-90%"]
    assert plot_hparams(runs, hparams[["same"]], ENVIRONMENTS, {}) is None


@pytest.mark.parametrize(
    ("algorithm", "dataset", "name", "values", "scale"),
    [
        ("ERM", "PACS", "lr", [1.1e-5, 3e-5, 2e-4, 3e-4], "log"),
        ("ERM", "ColoredMNIST", "batch_size", [8, 64, 400], "log"),
        ("ERM", "PACS", "weight_decay", [0.0, 2e-6, 3e-4, 9e-3], "symlog"),
        ("DANN", "PACS", "grad_penalty", [0.0, 0.02, 9.0], "symlog"),
        ("IRM", "PACS", "irm_penalty_anneal_iters", [1, 20, 9000], "log"),
        ("Fishr", "PACS", "penalty_anneal_iters", [12, 900, 2500, 4900], "linear"),  # uniform on a linear axis
        ("Fishr", "PACS", "ema", [0.91, 0.95, 0.98], "linear"),
        ("ERM", "PACS", "lr", [1.00e-4, 1.01e-4], "linear"),  # too close for the logarithmic axis of lr
        ("Unregistered", "PACS", "strength", list(np.geomspace(0.1, 11, 20)), "log"),
        ("Unregistered", "PACS", "strength", list(np.geomspace(0.1, 9, 20)), "linear"),
        ("Unregistered", "PACS", "strength", [-1.0, *np.geomspace(0.1, 1000, 20)], "linear"),
    ],
)
def test_scale_of_hyperparameter_axis(algorithm: str, dataset: str, name: str, values: list, scale: str):
    ax = plot_hparam(values, name, algorithm, dataset)
    assert ax.get_xscale() == scale
    (found,) = points(ax)
    np.testing.assert_allclose(found[:, 0], values)


@pytest.mark.parametrize("positive", [[2e-6, 3e-4, 9e-3], [0.02, 9.0], [1e-12, 1.0]])
def test_zero_is_at_left_of_logarithmic_axis(positive: list[float]):
    ax = plot_hparam([0.0, *positive], "grad_penalty", "DANN")
    shown = ax.transData.transform(points(ax)[0])[:, 0]
    left, right = ax.transAxes.transform([(0, 0), (1, 0)])[:, 0]
    assert left < shown[0]
    assert (np.diff(shown) > 0.05 * (right - left)).all()
    assert shown[-1] < right
    assert "0" in [label.get_text() for label in ax.get_xticklabels()]


@pytest.mark.parametrize(
    ("algorithm", "name", "values", "labels", "positions"),
    [
        ("ERM", "resnet_dropout", [0.5, 0.0, 0.1, 0.1], ["0", "0.1", "0.5"], [2, 0, 1, 1]),
        ("DANN", "d_steps_per_g_step", [7, 1, 3, 1], ["1", "3", "7"], [2, 0, 1, 0]),
        ("Fishr", "variant", ["variance", "covariance", "variance"], ["covariance", "variance"], [1, 0, 1]),
        ("ERM", "resnet18", [True, False], ["False", "True"], [1, 0]),
        ("Unregistered", "layers", [[1, 2], [3]], ["[1, 2]", "[3]"], [0, 1]),
        ("Unregistered", "mixed", ["a", 3, "a"], ["3", "a"], [1, 0, 1]),
    ],
)
def test_few_values_are_categories(algorithm: str, name: str, values: list, labels: list[str], positions: list[float]):
    ax = plot_hparam(values, name, algorithm)
    assert [label.get_text() for label in ax.get_xticklabels()] == labels
    np.testing.assert_allclose(points(ax)[0][:, 0], positions, atol=1e-9)


def test_test_environments_are_side_by_side_within_category():
    runs = selected_runs(6, (0, 1, 2))
    hparams = pd.DataFrame({"resnet_dropout": [0.0, 0.1, 0.5] * 6}, index=runs["folder"])
    (ax,) = plot_hparams(runs, hparams, ENVIRONMENTS, sample_hparams("ERM", "PACS")).axes
    columns = [{round(x, 6) for x in found[:, 0]} for found in points(ax)]
    assert all(len(column) == 3 for column in columns)
    assert len(set.union(*columns)) == 9
    for column in columns:
        assert sorted(round(x) for x in column) == [0, 1, 2]


def test_points_are_nearest_to_their_own_category_and_lines_separate_categories():
    runs = selected_runs(6, (0, 1, 2))
    values = [0.0, 0.1, 0.5] * 6
    hparams = pd.DataFrame({"resnet_dropout": values}, index=runs["folder"])
    (ax,) = plot_hparams(runs, hparams, ENVIRONMENTS, sample_hparams("ERM", "PACS")).axes
    for i, found in enumerate(points(ax)):
        env_runs = runs[runs["test_env"] == i]
        expected = [[0.0, 0.1, 0.5].index(hparams.at[folder, "resnet_dropout"]) for folder in env_runs["folder"]]
        assert (abs(found[:, 0] - expected) <= 0.21).all()
    assert [line.get_xdata()[0] for line in ax.lines] == [0.5, 1.5]


def test_hyperparameters_that_the_network_ignores():
    values = {"vit": [True, False], "resnet_dropout": [0.1, 0.5], "vit_dropout": [0.5, 0.0], "lr": [0.1, 0.2]}
    hparams = pd.DataFrame(values, index=["vit", "resnet"])
    for dataset in ("ColoredDigits", "RotatedMNIST"):
        assert list(without_ignored(hparams, dataset)) == ["lr"]
    kept = without_ignored(hparams, "PACS")
    assert kept["resnet_dropout"].dropna().to_dict() == {"resnet": 0.5}
    assert kept["vit_dropout"].dropna().to_dict() == {"vit": 0.5}
    assert kept["lr"].to_dict() == {"vit": 0.1, "resnet": 0.2}
    frozen = without_ignored(hparams.assign(frozen=[True, False]), "PACS")  # dropout is not part of the features
    assert frozen["resnet_dropout"].dropna().to_dict() == {"resnet": 0.5}
    assert frozen["vit_dropout"].isna().all()
    no_flag = without_ignored(hparams.drop(columns="vit"), "PACS")
    assert no_flag["vit_dropout"].isna().all()
    assert no_flag["resnet_dropout"].tolist() == [0.1, 0.5]
    assert without_ignored(hparams, "MyDataset").equals(hparams)  # its network may use any of them


def test_missing_hyperparameter_is_omitted_only_from_its_panel():
    runs = selected_runs(4)
    hparams = pd.DataFrame({"lr": [1e-3, np.nan, 1e-4, np.inf], "width": [1.0, 2.0, 3.0, 4.0]}, index=runs["folder"])
    figure = plot_hparams(runs, hparams, ENVIRONMENTS, {})
    assert [len(points(ax)[0]) for ax in figure.axes] == [2, 4]
    png(figure)


# In-domain against out-of-domain accuracy


def test_in_and_out_of_domain():
    runs = pd.concat([selected_runs(9, (0, 2)), selected_runs(9, (0, 2)).assign(algorithm="Fishr")])
    styles = {"ERM": make_style(0), "Fishr": make_style(1)}
    figure = plot_in_and_out(runs, ENVIRONMENTS, styles)
    for ax, env in zip(figure.axes, (0, 2), strict=True):
        env_runs = runs[runs["test_env"] == env]
        for found, algorithm in zip(points(ax), styles, strict=True):
            expected = env_runs[env_runs["algorithm"] == algorithm]
            np.testing.assert_allclose(found, 100 * expected[["val_acc", "test_acc"]].to_numpy())
        d = np.argsort(np.argsort(env_runs["val_acc"])) - np.argsort(np.argsort(env_runs["test_acc"]))
        rho = 1 - 6 * (d**2).sum() / (len(d) * (len(d) ** 2 - 1))
        assert ax.get_title() == f"{ENVIRONMENTS[env]} (\N{GREEK SMALL LETTER RHO} = {rho:.2f})"
        (identity,) = [line for line in ax.lines if hasattr(line, "get_slope")]
        assert identity.get_slope() == 1
        assert identity.get_xy1() == (0, 0)
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert bottom <= left  # the identity line is visible over the full width
        assert top >= right
    assert legend_labels(figure) == ["ERM", "Fishr", "equal"]


@pytest.mark.parametrize("accuracies", [[(0.5, 0.5)], [(0.5, 0.4), (0.5, 0.6)], [(0.4, 0.5), (0.6, 0.5)]])
def test_undefined_correlation(accuracies: list[tuple[float, float]]):
    runs = pd.DataFrame(accuracies, columns=["val_acc", "test_acc"]).assign(test_env=1, algorithm="ERM")
    figure = plot_in_and_out(runs, ENVIRONMENTS, {"ERM": make_style(0)})
    assert figure.axes[0].get_title().endswith("= ?)")
    png(figure)


# Bars


def test_bars_errors_and_missing_means():
    accuracies = {
        ("ERM", "PACS"): (80.0, 1.5),
        ("ERM", "VLCS"): (np.nan, np.nan),
        ("ERM", "Avg"): (60.0, np.nan),  # an average without an error
        ("Fishr", "VLCS"): (70.0, 0.5),
        ("Fishr", "PACS"): (0.0, 0.0),  # differs from missing
    }
    figure = plot_bars(accuracies, ["VLCS", "PACS", "Avg"], {"ERM": make_style(0), "Fishr": make_style(1)})
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["VLCS", "PACS", "Avg"]
    bars = {(round(bar.get_x() + bar.get_width() / 2, 3), bar.get_height()) for bar in ax.patches}
    assert bars == {(0.21, 70.0), (0.79, 80.0), (1.21, 0.0), (1.79, 60.0)}
    errors = {
        (round(float(x), 3), float(low), float(high))
        for collection in ax.collections
        for (x, low), (_, high) in collection.get_segments()
    }
    assert errors == {(0.21, 69.5, 70.5), (0.79, 78.5, 81.5), (1.21, 0.0, 0.0)}
    missing = {(round(float(mark.xy[0]), 3), mark.xy[1]) for mark in ax.texts if mark.get_text() == "X"}
    assert missing == {(-0.21, 0), (2.21, 0)}
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 81.5
    assert legend_labels(figure) == ["ERM", "Fishr"]


def test_bars_of_incomplete_results_have_marks():
    accuracies = {("ERM", "PACS"): (80.0, 1.5), ("ERM", "VLCS"): (60.0, np.nan), ("Fishr", "PACS"): (70.0, 1.0)}
    marks = {("ERM", "PACS"): "*", ("ERM", "VLCS"): "*~", ("Fishr", "PACS"): "", ("Fishr", "VLCS"): "*"}
    styles = {"ERM": make_style(0), "Fishr": make_style(1)}
    figure = plot_bars(accuracies, ["VLCS", "PACS"], styles, marks=marks, meanings="*: incomplete")
    shown = {(round(float(t.xy[0]), 3), float(t.xy[1]), t.get_text()) for t in figure.axes[0].texts}
    assert shown == {(-0.21, 60.0, "*~"), (0.79, 81.5, "*"), (0.21, 0.0, "X")}
    assert figure.legends[0].get_title().get_text() == "*: incomplete"
    png(figure)


def test_bars_of_whole_benchmark_and_of_missing_means():
    algorithms = {f"A{i}": make_style(i) for i in range(7)}
    groups = [f"D{i}" for i in range(7)] + ["Avg"]
    accuracies = {(a, d): (R.uniform(20, 99), 1.0) for a in algorithms for d in groups}
    figure = plot_bars(accuracies, groups, algorithms)
    by_panel = [sorted(bar.get_height() for bar in ax.patches) for ax in figure.axes]
    assert sorted(itertools.chain(*by_panel)) == sorted(mean for mean, _ in accuracies.values())
    assert len({(to_hex(b.get_facecolor()), b.get_hatch()) for ax in figure.axes for b in ax.patches}) == 7
    png(figure)
    empty = plot_bars({}, groups, algorithms)
    assert not [bar for ax in empty.axes for bar in ax.patches]
    assert sum(len(ax.texts) for ax in empty.axes) == 56
    png(empty)


# Metrics of the updates


def record_metrics(algorithm: str = "IRM", **metrics: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    n = len(next(iter(metrics.values())))
    other = {"epoch": 1.0, "step_time": 0.1, "mem_gb": 2.0, "bad_images": 0, "env0_in_acc": 0.5, "env0_uda_acc": 0.5}
    rows = pd.DataFrame({"folder": "a", "step": [100 * i for i in range(n)], **metrics}).assign(**other)
    return rows, pd.DataFrame([{"folder": "a", "algorithm": algorithm, "test_env": 1}])


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.5, 0.4, 0.3], "linear"),
        ([0.5, 0.004, 0.3], "log"),
        ([0.5, 0.004, 0.0], "symlog"),
        ([0.5, -0.004, 0.3], "symlog"),
        ([-500.0, -0.004, -0.3], "symlog"),
        ([0.0, 0.0, 0.0], "linear"),
        ([0.5, np.inf, 0.004], "log"),
        ([1e-300, 1e300, -1e300], "symlog"),
    ],
)
def test_scale_of_metric_axis(values: list[float], scale: str):
    figure = plot_metrics(*record_metrics(penalty=values), ENVIRONMENTS, ["IRM"])
    (ax,) = figure.axes
    assert ax.get_yscale() == scale
    assert ax.get_title() == "IRM: penalty"
    (line,) = ax.lines
    assert list(line.get_xdata()) == [0, 100, 200]
    np.testing.assert_array_equal(line.get_ydata(), [v if np.isfinite(v) else np.nan for v in values])
    png(figure)
    finite = [(x, y) for x, y in zip([0, 100, 200], values, strict=True) if np.isfinite(y)]
    inside = ax.transAxes.inverted().transform(ax.transData.transform(finite))
    assert ((inside > 0) & (inside < 1)).all()


def test_nonfinite_values_leave_gaps():
    figure = plot_metrics(*record_metrics(loss=[1.0, np.nan, np.inf, 2.0], nll=[np.inf] * 4), ENVIRONMENTS, ["IRM"])
    loss, nll = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [1.0, np.nan, np.nan, 2.0])
    assert loss.lines[0].get_marker() == "."  # shows a value between two gaps
    assert [text.get_text() for text in nll.texts] == ["no finite value"]
    png(figure)


def test_each_algorithm_has_panels_for_its_metrics():
    erm, best_erm = record_metrics("ERM", loss=[1.0, 2.0])
    irm, best_irm = record_metrics("IRM", loss=[3.0, 4.0], penalty=[5.0, 6.0])
    metrics = pd.concat([irm.assign(folder="b"), erm]).sample(frac=1, random_state=1)
    best = pd.concat([best_erm, best_irm.assign(folder="b", test_env=2)])
    figure = plot_metrics(metrics, best, ENVIRONMENTS, ["ERM", "IRM", "Fish"])
    plotted = {ax.get_title(): [list(line.get_ydata()) for line in ax.lines] for ax in figure.axes}
    assert plotted == {"ERM: loss": [[1.0, 2.0]], "IRM: loss": [[3.0, 4.0]], "IRM: penalty": [[5.0, 6.0]]}
    assert [to_hex(ax.lines[0].get_color()) for ax in figure.axes] == [make_style(e).color.lower() for e in (1, 2, 2)]
    assert legend_labels(figure) == ["+80%", "-90%"]


def test_no_metrics_make_no_figure():
    metrics, best = record_metrics(loss=[1.0, 2.0])
    assert plot_metrics(metrics.drop(columns="loss"), best, ENVIRONMENTS, ["IRM"]) is None


# Styles and files


def test_styles_of_many_categories_differ():
    styles = [make_style(i) for i in range(40)]
    assert len({(each.color, each.marker) for each in styles}) == 40
    assert len({(each.color, each.line) for each in styles}) == 40
    assert len({each.color for each in styles[:7]}) == len({each.marker for each in styles[:7]}) == 7
    assert len({each.line for each in styles[:6]}) == len({each.hatch for each in styles[:7]}) - 1 == 6


@pytest.mark.parametrize("name", ["$x^$", "a$b", r"\$", "_hidden", "50%", "ä" * 100, "", "a\nb", "{", r"$\frac$"])
def test_names_are_not_parsed_as_formulas(name: str):
    records, best = two_trials()
    figure = plot_training_curves(records, best, {**ENVIRONMENTS, 2: name}, name)
    png(figure)
    assert legend_labels(figure)[-1] == label_text(name)
    assert len(label_text(name).replace(r"\$", "$")) <= 24


def test_long_titles_have_two_lines_within_the_figure():
    records, best = two_trials()
    title = "Accuracy over training, CausIRL_CORAL+DiWA-restricted on TerraIncognita (frozen efficientnet_lite0)"
    figure = plot_training_curves(records, best, ENVIRONMENTS, title)
    png(figure, dpi=100)
    assert figure.get_suptitle().split("\n") == [
        "Accuracy over training, CausIRL_CORAL+DiWA-restricted on",
        "TerraIncognita (frozen efficientnet_lite0)",
    ]
    box = figure._suptitle.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert all(ax.get_tightbbox().y1 < box.y0 for ax in figure.axes)


def test_long_and_colliding_names_have_separate_legend_entries():
    names = ["a long prefix that all have in common, A", "a long prefix that all have in common, B", "selected step"]
    records, best = two_trials()
    labels = legend_labels(plot_training_curves(records, best, dict(enumerate(names))))
    assert len(labels) == 5
    assert labels[2].endswith("A")
    assert labels[3].endswith("B")
    assert labels[4] == labels[1] == "selected step"


@pytest.mark.parametrize("n", [1, 2, 7, 25])
def test_legend_is_below_all_axes_and_within_figure(n: int):
    runs = pd.concat([selected_runs(3).assign(algorithm=f"Algorithm {i}") for i in range(n)])
    figure = plot_in_and_out(runs, ENVIRONMENTS, {f"Algorithm {i}": make_style(i) for i in range(n)})
    png(figure, dpi=100)
    canvas = FigureCanvasAgg(figure)
    legend = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert all(ax.get_tightbbox(canvas.get_renderer()).y0 > legend.y1 for ax in figure.axes)
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width
    assert legend.y0 >= 0
    assert all(ax.bbox.height > 70 for ax in figure.axes)  # pixels: the legend does not shrink the panels


def test_pdfs_use_truetype_fonts_and_are_reproducible():
    def pdf() -> bytes:
        file = io.BytesIO()
        write_figure(plot_bars(accuracies, ["PACS"], {"ERM": make_style(1)}, "Title"), file, "pdf", 150, "A caption.")
        return file.getvalue()

    accuracies = {("ERM", "PACS"): (50.0, 1.0)}
    first = pdf()
    assert first.startswith(b"%PDF")
    assert b"/CIDFontType2" in first
    assert b"/Type3" not in first
    assert b"CreationDate" not in first
    assert b"(A caption.)" in first
    with matplotlib.rc_context({"pdf.fonttype": 3, "font.size": 30, "savefig.bbox": "tight", "text.usetex": True}):
        assert pdf() == first  # independent of the user's settings
    assert matplotlib.rcParams["pdf.fonttype"] == matplotlib.rcParamsDefault["pdf.fonttype"]


def test_pngs_have_requested_resolution():
    records, best = two_trials()
    figure = plot_training_curves(records, best, ENVIRONMENTS)
    assert png(figure, dpi=100).width == 550
    assert png(figure, dpi=150).width == 825


def test_matplotlib_is_imported_lazily_and_without_pyplot():
    code = (
        "import sys; import domainbed.reporting.cells, domainbed.scripts.plot; assert 'matplotlib' not in sys.modules;"
        "import domainbed.reporting.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# All plots of a sweep


def small_sweep(folder: Path, algorithms: tuple[str, ...] = ("ERM", "IRM"), dataset: str = "ColoredDigits") -> Path:
    records = []
    for algorithm, env, trial, seed in itertools.product(algorithms, range(3), range(2), range(2)):
        for step in (0, 100):
            r = make_record(
                dataset, algorithm, (env,), trial, seed, step, tuple(R.uniform(size=3)), tuple(R.uniform(size=3))
            )
            r["hparams"]["lr"] = 10 ** R.uniform(-4, -3) if seed else 1e-3
            records.append(r)
    return write_sweep(folder, records)


def plot_sweep(sweep: Sweep, selection: str = "training-domain", warn=print) -> list[tuple[str, str, Figure]]:
    jobs = sweep.jobs
    plots = draw_plots(sweep, selection, sorted(set(jobs["dataset"])), sorted(set(jobs["algorithm"])), warn)
    return [plot[:3] for plot in plots]


def test_all_plots_of_a_sweep(tmp_path: Path):
    messages: list[str] = []
    found = plot_sweep(load_sweep(str(small_sweep(tmp_path))), warn=messages.append)
    assert [stem for stem, _, _ in found] == [
        "bars-training-domain",
        "in_out-ColoredDigits",
        "line-ColoredDigits",
        "metrics-ColoredDigits-training-domain",
        "curves-ColoredDigits-ERM-training-domain",
        "hparams-ColoredDigits-ERM-training-domain",
        "curves-ColoredDigits-IRM-training-domain",
        "hparams-ColoredDigits-IRM-training-domain",
    ]
    assert messages == []
    for _, caption, figure in found:
        assert caption[0].isupper()
        assert caption.endswith(".")
        png(figure)
    curves = {stem: figure for stem, _, figure in found}["curves-ColoredDigits-ERM-training-domain"]
    assert [ax.get_title() for ax in curves.axes] == ["test: +90%", "test: +80%", "test: -90%"]
    by_class_name = plot_sweep(load_sweep(str(tmp_path)), "IIDAccuracySelectionMethod")
    assert [stem for stem, _, _ in by_class_name] == [stem for stem, _, _ in found]


def test_titles_name_what_is_shown_with_printed_names(tmp_path: Path):
    """Renaming changes no data and no file name."""
    sweep = load_sweep(str(small_sweep(tmp_path)))
    titles = Titles({"IRM": "IRMv1", "ColoredDigits": "Digits", "-90%": "anti"})
    args = (sweep, "training-domain", ["ColoredDigits"], ["ERM", "IRM"], [].append)
    renamed, plain = ([plot[:3] for plot in draw_plots(*args, *more)] for more in ((titles,), ()))
    assert [figure.get_suptitle() for _, _, figure in renamed] == [
        "Test accuracy, training-domain selection",
        "Out-of-domain against in-domain accuracy, Digits",
        "Accuracy on the line, Digits",
        "Metrics over training, Digits",
        "Accuracy over training, ERM on Digits",
        "Test accuracy by hyperparameter, ERM on Digits",
        "Accuracy over training, IRMv1 on Digits",
        "Test accuracy by hyperparameter, IRMv1 on Digits",
    ]
    for (stem, caption, figure), (plain_stem, plain_caption, plain_figure) in zip(renamed, plain, strict=True):
        assert stem == plain_stem
        assert caption == plain_caption.replace("IRM", "IRMv1").replace("ColoredDigits", "Digits")
        expected = {"IRM": "IRMv1", "-90%": "anti"}
        assert legend_labels(figure) == [expected.get(label, label) for label in legend_labels(plain_figure)]
        for ax, plain_ax in zip(figure.axes, plain_figure.axes, strict=True):
            data, plain_data = ([*points(a), *(line.get_xydata() for line in a.lines)] for a in (ax, plain_ax))
            for a, b in zip(data, plain_data, strict=True):
                np.testing.assert_array_equal(a, b)
            assert [bar.get_height() for bar in ax.patches] == [bar.get_height() for bar in plain_ax.patches]
    figures = {stem: figure for stem, _, figure in renamed}
    ticks = figures["bars-training-domain"].axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["Digits"]
    assert "IRMv1: loss" in [ax.get_title() for ax in figures["metrics-ColoredDigits-training-domain"].axes]


def test_data_of_plots_are_what_they_draw(tmp_path: Path):
    """Compare the values of each plot's data with those of its bars, points and lines."""
    sweep = load_sweep(str(small_sweep(tmp_path, ("ERM", "IRM", "Fishr"))))
    args = (sweep, "training-domain", ["ColoredDigits"], ["ERM", "IRM", "Fishr"])
    plots = {plot.stem.split("-")[0]: plot for plot in draw_plots(*args)}
    assert set(plots) == {"bars", "ranks", "in_out", "line", "metrics", "curves", "hparams"}

    def drawn(kind: str) -> np.ndarray:
        found = [xy for ax in plots[kind].figure.axes for xy in points(ax)]
        return np.array(sorted(map(tuple, np.concatenate(found))))

    heights = [bar.get_height() for bar in plots["bars"].figure.axes[0].patches]
    np.testing.assert_allclose(plots["bars"].data["mean"], heights)
    ranks = [line.get_xdata()[0] for line in plots["ranks"].figure.axes[0].lines if line.get_gid() == "rank"]
    np.testing.assert_allclose(plots["ranks"].data["mean_rank"], ranks)
    for kind, columns in (
        ("in_out", ["in_domain", "out_of_domain"]),
        ("line", ["in_domain_probit", "out_of_domain_probit"]),
        ("hparams", ["lr", "test_accuracy"]),
    ):
        data = plots[kind].data[columns].astype(float)
        np.testing.assert_allclose(drawn(kind), sorted(map(tuple, data.to_numpy())))
    lines_drawn = [line for ax in plots["curves"].figure.axes for line in ax.lines]
    curves = [line.get_xydata() for line in lines_drawn if len(line.get_xdata()) > 1]
    curves = [xy for xy in curves if xy[0][0] != xy[1][0]]  # without the vertical lines of selected steps
    data = plots["curves"].data
    assert sorted(map(tuple, np.concatenate(curves))) == sorted(map(tuple, data[["step", "accuracy"]].to_numpy()))
    circles = [
        line.get_xydata()[0] for ax in plots["curves"].figure.axes for line in ax.lines if line.get_marker() == "o"
    ]
    selected = data.loc[data["is_selected"], ["step", "accuracy"]].to_numpy()
    assert sorted(map(tuple, circles)) == sorted(map(tuple, selected))
    metrics = [line.get_xydata() for ax in plots["metrics"].figure.axes for line in ax.lines]
    values = plots["metrics"].data[["step", "value"]].to_numpy()
    assert sorted(map(tuple, np.concatenate(metrics))) == sorted(map(tuple, values))


def test_environments_that_cannot_be_tested_on_are_not_missing(tmp_path: Path):
    """Spawrious has three environments, of which only the first is a test environment."""
    write_sweep(tmp_path, [make_record("SpawriousO2O_easy", "ERM", (0,), trial) for trial in range(2)])
    sweep = load_sweep(str(tmp_path))
    figures = {stem: figure for stem, _, figure in plot_sweep(sweep, warn=[].append)}
    (ax,) = figures["bars-training-domain"].axes
    assert len(ax.patches) == 1
    assert not ax.texts
    assert len(figures["in_out-SpawriousO2O_easy"].axes) == 1


def test_looks_fit_their_purpose():
    runs = pd.concat([selected_runs(9, (0, 1, 2)).assign(algorithm=name) for name in ("ERM", "A long name", "Fishr")])
    styles = {name: make_style(i) for i, name in enumerate(("ERM", "A long name", "Fishr"))}
    with use_look("slides"):
        figure = plot_in_and_out(runs, ENVIRONMENTS, styles, "A title that is long enough for two lines of a slide")
    png(figure, dpi=100)
    assert figure.get_figwidth() == 4.5
    assert figure.axes[0].get_gridspec().ncols == 2
    renderer = FigureCanvasAgg(figure).get_renderer()
    assert figure._suptitle.get_window_extent(renderer).width < figure.bbox.width
    assert figure.legends[0].get_window_extent(renderer).width < figure.bbox.width
    assert figure.axes[0].title.get_fontsize() == 10
    assert plot_in_and_out(runs, ENVIRONMENTS, styles).axes[0].title.get_fontsize() == 9


def test_curves_show_runs_selected_by_method(tmp_path: Path):
    """Compute the draw and step with the best mean out accuracy on the training environments by hand."""
    sweep = load_sweep(str(small_sweep(tmp_path, ("ERM",))))
    (figure,) = [f for stem, _, f in plot_sweep(sweep) if stem.startswith("curves")]
    for env, ax in enumerate(figure.axes):
        expected = []
        for trial in range(2):
            runs = sweep.records[
                (sweep.records["trial_seed"] == trial)
                & sweep.records["test_envs"].map(lambda t, e=env: tuple(t) == (e,)).astype(bool)
            ]
            scores = sum(runs[f"env{i}_out_acc"] for i in range(3) if i != env)
            best = runs.loc[scores.idxmax()]
            expected.append([best["step"], 100 * best[f"env{env}_in_acc"]])
        circles = [list(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o"]
        np.testing.assert_allclose(sorted(circles), sorted(expected))


def test_figures_are_drawn_one_at_a_time_and_only_selected_runs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sweep = load_sweep(str(small_sweep(tmp_path)))
    read: list[str] = []
    load_metrics = Sweep.load_metrics
    monkeypatch.setattr(
        Sweep, "load_metrics", lambda self, folders: load_metrics(self, read.extend(folders) or list(read))
    )
    plots = draw_plots(sweep, "training-domain", ["ColoredDigits"], ["ERM", "IRM"])
    alive = []
    for i, (_, _, figure, _) in enumerate(plots):
        alive.append(weakref.ref(figure))
        assert i > 2 or not read
        del figure
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1
    assert len(read) == len(set(read)) == 2 * 3 * 2  # algorithms, environments, trials; one of the two draws


def draw_by_kind(folder: Path, algorithms: Sequence[str], selection: str = "training-domain") -> dict[str, Plot]:
    plots = draw_plots(load_sweep(str(folder)), selection, ["ColoredDigits"], algorithms)
    return {plot.stem.split("-")[0]: plot for plot in plots}


def test_pictures_of_an_incomplete_sweep_say_so(tmp_path: Path):
    """Pictures are shown without the tables, whose notes explain the marks."""
    algorithms = ("ERM", "IRM", "Fishr")
    folder = small_sweep(tmp_path, algorithms)
    complete = draw_by_kind(folder, algorithms)
    assert complete["bars"].caption.endswith(" X: missing.")
    assert "Not all requested runs" not in complete["ranks"].caption
    shutil.rmtree(next(path for path in folder.iterdir() if path.name.startswith("ColoredDigits-IRM-")))
    plots = draw_by_kind(folder, algorithms)
    assert plots["bars"].caption.endswith(" X: missing; *: some of the requested runs are not done or not usable.")
    assert [text.get_text() for text in plots["bars"].figure.axes[0].texts] == ["*"]
    assert " Not all requested runs: IRM." in plots["ranks"].caption


def test_caption_mentions_a_line_only_if_it_is_drawn(tmp_path: Path):
    folder = small_sweep(tmp_path / "sweep")
    assert "Line: least squares of the runs of ERM" in draw_by_kind(folder, ["ERM", "IRM"])["line"].caption
    assert "Line:" not in draw_by_kind(folder, ["IRM"])["line"].caption
    few = [make_record(test_envs=(env,), trial_seed=trial) for env in range(3) for trial in range(2)]
    assert "Line:" not in draw_by_kind(write_sweep(tmp_path / "few", few), ["ERM"])["line"].caption


def test_leave_one_domain_out_without_pairs_draws_two_plots_and_warns(tmp_path: Path):
    messages: list[str] = []
    found = plot_sweep(load_sweep(str(small_sweep(tmp_path))), "leave-one-domain-out", messages.append)
    assert [stem for stem, _, _ in found] == ["in_out-ColoredDigits", "line-ColoredDigits"]
    assert len(messages) == 2
    assert all("each pair of test environments (sweep launch --leave_one_out)" in line for line in messages)


def test_algorithm_without_selected_runs_is_skipped(tmp_path: Path):
    small_sweep(tmp_path, ("ERM",))
    write_sweep(tmp_path, [make_record("ColoredDigits", "Fish", (0, 1))])
    messages: list[str] = []
    found = plot_sweep(load_sweep(str(tmp_path)), warn=messages.append)
    assert [stem.split("-")[0] for stem, _, _ in found] == ["bars", "in_out", "line", "metrics", "curves", "hparams"]
    assert messages == ["no curves or hyperparameters of Fish on ColoredDigits: no run has a single test environment"]
    (chart,) = [figure for stem, _, figure in found if stem.startswith("bars")]
    assert [mark.get_text() for mark in chart.axes[0].texts] == ["X"]


def test_hyperparameters_that_do_not_differ_are_skipped(tmp_path: Path):
    write_sweep(tmp_path, [make_record(test_envs=(env,)) for env in range(3)])
    messages: list[str] = []
    found = plot_sweep(load_sweep(str(tmp_path)), warn=messages.append)
    assert not [stem for stem, _, _ in found if stem.startswith("hparams")]
    assert messages == ["no hyperparameters of ERM on ColoredDigits: none differ between its runs"]


def test_caption_counts_unfinished_runs(tmp_path: Path):
    small_sweep(tmp_path, ("ERM",))
    for done in sorted(tmp_path.glob("*-0-0/done")):  # the first draw of the first trial, for each environment
        done.unlink()
    captions = {stem.split("-")[0]: caption for stem, caption, _ in plot_sweep(load_sweep(str(tmp_path)))}
    assert captions["hparams"].endswith("Includes 3 unfinished runs, up to the last record.")


def test_file_names_are_safe_and_unique(tmp_path: Path):
    names = ["a/b", "a b", "A b", "../../x", "50%", "ä", "x" * 300, "x" * 299]
    for (i, dataset), env in itertools.product(enumerate(names), range(2)):
        (tmp_path / f"{i}-{env}").mkdir()
        record = make_record(dataset, "al/go", (env,), in_acc=(0.5, 0.5), out_acc=(0.5, 0.5))
        (tmp_path / f"{i}-{env}" / "results.jsonl").write_text(json.dumps(record))
    stems = [stem for stem, _, _ in plot_sweep(load_sweep(str(tmp_path)), warn=[].append)]
    assert len({stem.lower() for stem in stems}) == len(stems) == 1 + 4 * len(names)
    for stem in stems:
        assert not set(stem) & set("/\\% .:*?\"<>|'$")
        assert len(stem.encode()) < 200


def test_tracker_plots_its_own_entries(tmp_path: Path):
    class SharpnessTracker(Tracker):
        PREFIX = "sharpness_"
        CAPTION = "Sharpness."
        plotted: ClassVar[list[pd.DataFrame]] = []

        @staticmethod
        def plot(records, styles, title=""):
            SharpnessTracker.plotted.append(records)
            return Figure()

    records = [make_record(test_envs=(env,)) | {"sharpness_mean": env + 0.5} for env in range(3)]
    sweep = load_sweep(str(write_sweep(tmp_path, records)))
    with TRACKERS.temporarily("sharpness", SharpnessTracker):
        found = {stem: (caption, figure) for stem, caption, figure in plot_sweep(sweep, warn=[].append)}
    caption, _ = found["sharpness-ColoredDigits-training-domain"]
    assert caption == "Sharpness. Runs on ColoredDigits selected by training-domain."
    (plotted,) = SharpnessTracker.plotted
    assert sorted(plotted["sharpness_mean"]) == [0.5, 1.5, 2.5]
    assert set(plotted["algorithm"]) == {"ERM"}
    _, metrics = found["metrics-ColoredDigits-training-domain"]
    assert [ax.get_title() for ax in metrics.axes] == ["ERM: loss"]
    assert "sharpness-ColoredDigits-training-domain" not in {stem for stem, _, _ in plot_sweep(sweep, warn=[].append)}


def test_unknown_selection_method(tmp_path: Path):
    sweep = load_sweep(str(small_sweep(tmp_path, ("ERM",))))
    with pytest.raises(UsageError, match="did you mean training-domain"):
        next(draw_plots(sweep, "training-domian", ["ColoredDigits"], ["ERM"]))
