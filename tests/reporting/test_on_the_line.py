"""Accuracy on the line: fits and effective robustness against scipy, numpy and brute force; the command."""

import csv
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from domainbed.errors import UsageError
from domainbed.reporting.formats.render import render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.on_the_line import (
    ALL,
    BETTER_HALF,
    CLIP,
    LineResult,
    compare_with_line,
    effective_robustness,
    fit_line,
    resample_groups,
    scale,
    unscale,
)
from domainbed.reporting.plots.line import plot_line
from domainbed.reporting.plots.style import make_style
from domainbed.reporting.report import make_report
from domainbed.reporting.text_tables import report_findings
from domainbed.scripts.collect_results import main
from tests.conftest import make_record, write_sweep

COORDINATES = arrays(float, 8, elements=st.integers(-20, 20).map(lambda n: n / 8))


def test_scale_is_the_probit_and_is_finite():
    accuracies = np.array([0.0, 1e-5, 0.1, 0.5, 0.975, 1.0])
    probits = scale(accuracies)
    np.testing.assert_allclose(probits[2:5], [-1.2815516, 0, 1.9599640], atol=1e-7)
    assert probits[0] == probits[1] == pytest.approx(-probits[-1]) == pytest.approx(stats.norm.ppf(CLIP))
    np.testing.assert_allclose(unscale(probits), np.clip(accuracies, CLIP, 1 - CLIP))


@given(COORDINATES, COORDINATES)
def test_line_is_that_of_linear_regression(x: np.ndarray, y: np.ndarray):
    line = fit_line(x, y)
    if x.std() == 0:
        assert np.isnan(line).all()
        return
    reference = stats.linregress(x, y)
    np.testing.assert_allclose(line[:2], [reference.slope, reference.intercept], atol=1e-8)
    if y.std() > 0:
        assert float(line.r_squared) == pytest.approx(reference.rvalue**2, abs=1e-8)
    else:
        assert np.isnan(line.r_squared)


@given(COORDINATES, COORDINATES, arrays(int, (3, 8), elements=st.integers(0, 3)))
def test_weights_are_repetitions(x: np.ndarray, y: np.ndarray, weights: np.ndarray):
    lines = fit_line(x, y, weights)
    for i, row in enumerate(weights):
        repeated = fit_line(np.repeat(x, row), np.repeat(y, row)) if row.any() else (math.nan,) * 3
        np.testing.assert_allclose([field[i] for field in lines], np.asarray(repeated, dtype=float), atol=1e-7)


def test_robustness_is_the_mean_accuracy_above_the_line():
    rng = np.random.RandomState(0)
    in_domain, out_of_domain = rng.uniform(size=(2, 20))
    line = fit_line(np.array([-1.0, 1.0]), np.array([-0.7, 0.9]))
    above = [o - stats.norm.cdf(0.1 + 0.8 * stats.norm.ppf(i)) for i, o in zip(in_domain, out_of_domain, strict=True)]
    assert float(effective_robustness(in_domain, out_of_domain, line)) == pytest.approx(np.mean(above), abs=1e-4)
    weights = rng.randint(0, 3, (5, 20))
    lines = fit_line(*rng.randn(2, 20), weights)
    together = effective_robustness(in_domain, out_of_domain, lines, weights)
    for i in range(5):
        line_i = fit_line(np.zeros(0), np.zeros(0))._replace(slope=lines.slope[i], intercept=lines.intercept[i])
        alone = effective_robustness(np.repeat(in_domain, weights[i]), np.repeat(out_of_domain, weights[i]), line_i)
        assert together[i] == pytest.approx(float(alone))


def test_groups_are_resampled_as_a_whole():
    groups = np.array([0, 2, 1, 0, 2, 2])
    weights = resample_groups(groups, 500)
    assert (weights[:, 0] == weights[:, 3]).all()
    assert (weights[:, [1, 1]] == weights[:, [4, 5]]).all()
    assert (weights[:, 0] + weights[:, 1] + weights[:, 2] == 3).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.15)


def runs_of(shifts: dict[str, float], draws: int = 20, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Return runs whose probits out of domain are 0.3 + 0.7 times those in domain, plus a shift and noise."""
    rng = np.random.RandomState(seed)
    rows = []
    for (name, shift), trial, draw in itertools.product(shifts.items(), range(3), range(draws)):
        x = np.random.RandomState(100 * trial + draw).uniform(0, 1.5)
        y = 0.3 + 0.7 * x + shift + noise * rng.randn()
        rows.append(("MyData", name, 1, trial, draw, float(unscale(x)), float(unscale(y))))
    columns = ["dataset", "algorithm", "test_env", "trial_seed", "hparams_seed", "val_acc", "test_acc"]
    return pd.DataFrame(rows, columns=columns)


def compare(runs: pd.DataFrame, baseline: str = "ERM") -> dict[str, LineResult]:
    results = compare_with_line(runs, {"MyData": ["a", "b"]}, list(dict.fromkeys(runs["algorithm"])), baseline)
    return {result.algorithm: result for result in results}


def test_known_line_and_shift_are_found():
    runs = runs_of({"ERM": 0, "CORAL": 0.2, "IRM": -0.1})
    results = compare(runs)
    assert list(results) == [ALL, BETTER_HALF, "ERM", "CORAL", "IRM"]
    assert {result.test_env for result in results.values()} == {1}
    erm = results["ERM"]
    assert (erm.slope, erm.intercept, erm.r_squared) == pytest.approx((0.7, 0.3, 1))
    assert (erm.slope_low, erm.slope_high) == pytest.approx((0.7, 0.7))
    assert math.isnan(erm.effective_robustness)
    shifted, plain = (runs.loc[runs["algorithm"] == name, "test_acc"].to_numpy() for name in ("CORAL", "ERM"))
    coral = results["CORAL"]
    assert coral.effective_robustness == pytest.approx(100 * (shifted - plain).mean())
    assert 0 < coral.effective_robustness_low < coral.effective_robustness < coral.effective_robustness_high
    assert results["IRM"].effective_robustness_high < 0
    assert results[ALL].runs == 180
    assert results[ALL].r_squared < 1
    assert results[BETTER_HALF].runs == 90


def test_better_half_in_domain_is_not_on_a_line_that_failed_runs_make():
    """Runs that learned differ by chance only; those that did not are low in both accuracies."""
    learned = runs_of({"ERM": 0}, noise=0.1).assign(val_acc=lambda f: 0.9 + f["val_acc"] / 100)
    failed = learned.assign(val_acc=0.2, test_acc=0.2, hparams_seed=learned["hparams_seed"] + 50).iloc[::2]
    results = compare(
        pd.concat([learned.assign(test_acc=learned["test_acc"].sample(frac=1, random_state=0).values), failed])
    )
    assert results[ALL].r_squared > 0.8
    assert results[BETTER_HALF].r_squared < 0.2


def test_runs_outside_the_range_of_the_baseline_are_counted_and_ignored():
    runs = runs_of({"ERM": 0, "CORAL": 0.1})
    before = compare(runs)["CORAL"]
    far = runs[runs["algorithm"] == "CORAL"].head(7).assign(val_acc=0.01, test_acc=0.99, hparams_seed=99)
    after = compare(pd.concat([runs, far]))["CORAL"]
    assert (before.outside, after.outside) == (0, 7)
    assert after.effective_robustness == pytest.approx(before.effective_robustness)
    assert after.r_squared < before.r_squared


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_runs_have_no_interval(n: int):
    runs = runs_of({"ERM": 0, "CORAL": 0.2}, draws=20)
    runs = runs[(runs["trial_seed"] == 0) & (runs["hparams_seed"] < n)]
    results = compare(runs)
    assert math.isnan(results["ERM"].slope) == (n < 3), "two points are always on a line"
    assert math.isnan(results["CORAL"].effective_robustness)
    assert math.isnan(results[ALL].slope_low)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([(0.0, 0.0), (0.3, 0.5), (0.6, 0.5), (1.0, 0.0), (1.0, 1.0)]), min_size=1, max_size=14))
def test_any_accuracies_give_numbers_or_nan(accuracies: list[tuple[float, float]]):
    runs = runs_of({"ERM": 0, "CORAL": 0}, draws=5)
    runs = pd.concat([runs.head(len(accuracies)), runs.tail(len(accuracies)).assign(algorithm="CORAL")])
    runs[["val_acc", "test_acc"]] = accuracies * 2
    for result in compare(runs).values():
        low, value, high = (getattr(result, f"slope{end}") for end in ("_low", "", "_high"))
        assert math.isnan(value) or abs(value) < 100
        assert math.isnan(low) == math.isnan(high)
        assert not (low > high)
        assert math.isnan(result.r_squared) or -1e-9 <= result.r_squared <= 1 + 1e-9
    figure = plot_line(runs, {1: "b"}, {"ERM": make_style(0), "CORAL": make_style(1)}, "ERM")
    (ax,) = figure.axes
    assert len(ax.get_xticks()) > 0


def test_order_of_runs_and_algorithms_does_not_matter():
    runs = runs_of({"ERM": 0, "CORAL": 0.1, "IRM": 0}, noise=0.2)
    before, after = compare(runs), compare(runs.sample(frac=1, random_state=0))
    assert set(before) == set(after)
    for name, result in before.items():
        np.testing.assert_allclose([*vars(result).values()][3:], [*vars(after[name]).values()][3:])


def test_intervals_cover_the_truth_about_as_often_as_stated():
    hits = []
    for seed in range(25):
        results = compare(runs_of({"ERM": 0, "CORAL": 0}, noise=0.3, seed=seed))
        coral, erm = results["CORAL"], results["ERM"]
        hits += [coral.effective_robustness_low <= 0 <= coral.effective_robustness_high]
        hits += [erm.slope_low <= 0.7 <= erm.slope_high]
    assert 0.84 <= np.mean(hits) <= 1


def test_line_is_drawn_through_the_runs_of_the_baseline():
    runs = pd.concat([runs_of({"ERM": 0, "CORAL": 0.3}), runs_of({"ERM": 0.1}).assign(test_env=0)])
    figure = plot_line(runs, {0: "a", 1: "b"}, {"ERM": make_style(0), "CORAL": make_style(1)}, "ERM", "Title")
    for ax, test_env in zip(figure.axes, (0, 1), strict=True):
        (line,) = [line for line in ax.lines if line.get_gid() == "line"]
        own = runs[(runs["test_env"] == test_env) & (runs["algorithm"] == "ERM")]
        x = scale(own["val_acc"])
        np.testing.assert_allclose(line.get_xdata(), [x.min(), x.max()])
        np.testing.assert_allclose(line.get_ydata(), 0.3 + 0.1 * (test_env == 0) + 0.7 * np.array([x.min(), x.max()]))
        positions = [c.get_offsets() for c in ax.collections]
        np.testing.assert_allclose(positions[0], np.column_stack([x, scale(own["test_acc"])]))
        labels = [float(label.get_text()) / 100 for label in ax.get_xticklabels()]
        np.testing.assert_allclose(scale(np.array(labels)), ax.get_xticks())
    assert figure.axes[0].get_title() == "a (R² = 1.00)"
    without = plot_line(runs, {0: "a", 1: "b"}, {"ERM": make_style(0), "CORAL": make_style(1)}, "Fishr")
    assert not [line for ax in without.axes for line in ax.lines if line.get_gid() == "line"]


def write(folder: Path, draws: int = 6) -> Path:
    rng = np.random.RandomState(0)
    records = []
    for name, env, trial, draw in itertools.product(("ERM", "CORAL"), range(3), range(2), range(draws)):
        x = 0.5 + 0.07 * draw
        accuracy = tuple(x if i != env else x - 0.1 + 0.08 * (name == "CORAL") + 0.01 * rng.rand() for i in range(3))
        records.append(make_record("ColoredDigits", name, (env,), trial, draw, 0, accuracy, accuracy))
    return write_sweep(folder, records)


def test_report_of_a_sweep_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture):
    sweep = load_sweep(str(write(tmp_path / "sweep")))
    report = make_report(sweep, ReportOptions(selection=("test-domain",), on_the_line=True, rename=("-90%=anti",)))
    findings = report_findings(report)["line"]
    assert len(findings.rows) == 12
    assert findings.sentences[0].startswith(
        "On ColoredDigits, test environment +90%: out-of-domain accuracy rises with in-domain accuracy (slope 0."
    )
    assert findings.sentences[-1].startswith("On ColoredDigits, test environment anti: on average, CORAL (+8.")
    content = json.loads(render(report, "json", Path()))
    rows = list(csv.DictReader(io.StringIO(render(report, "csv", Path()))))
    for line, item, row in zip(report.lines, content["on_the_line"], rows, strict=True):
        assert float(row["slope"]) == item["slope"] == line.slope
        assert row["test_env"] == item["test_env"] in ("+90%", "+80%", "anti")
        assert (item["effective_robustness"] is None) == math.isnan(line.effective_robustness)
    for name in ("text", "markdown"):
        printed = " ".join(render(report, name, Path()).split())
        assert all(line in printed for line in findings.sentences)
    assert r"\label{tab:line}" in render(report, "latex", Path())
    few = make_report(load_sweep(str(write(tmp_path / "few", draws=2))), ReportOptions(on_the_line=True))
    first, *rest = report_findings(few)["line"].sentences
    assert "+90%: fewer than 5 hyperparameter draws, too few for intervals (slope 1.02, R² = " in first
    assert len(rest) == 2  # nothing on single algorithms
    main(["--input_dir", str(tmp_path / "sweep"), "--on_the_line", "--format", "csv"])
    assert capsys.readouterr().out.startswith("dataset,test_env,algorithm,runs,slope,")
    with pytest.raises(UsageError, match="use either --significance or --on_the_line"):
        main(["--input_dir", str(tmp_path / "sweep"), "--on_the_line", "--significance", "--format", "csv"])
