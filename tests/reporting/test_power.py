"""The smallest difference that can be shown: against simulated tests, and against all pairs of algorithms."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from domainbed.reporting.formats.render import render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.power import difference_deviation, smallest_difference, smallest_differences
from domainbed.reporting.report import make_report
from tests.conftest import make_record, write_sweep

ENVIRONMENTS = {"ColoredDigits": ["+90%", "+80%", "-90%"]}


@pytest.mark.parametrize("trials", [2, 3, 5, 20])
def test_simulated_tests_detect_it_with_probability_80_percent(trials: int):
    rng = np.random.RandomState(trials)
    easiness = rng.randn(20_000, trials)  # of each trial, for both algorithms
    a, b = (easiness + rng.randn(20_000, trials) for _ in range(2))
    difference = smallest_difference(np.sqrt(2), trials)
    assert (ttest_rel(a + difference, b, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.015)
    assert smallest_difference(3.0, trials) == pytest.approx(3 / np.sqrt(2) * difference)


def test_deviation_is_that_of_paired_differences():
    rng = np.random.RandomState(0)
    own = rng.randn(4, 3)
    averages = pd.DataFrame(own + 10 * rng.randn(4, 1), columns=list("ABC"))
    variances = [(averages[x] - averages[y]).var() for x, y in itertools.combinations("ABC", 2)]
    assert difference_deviation(averages) == pytest.approx(np.sqrt(np.mean(variances)))
    assert difference_deviation(averages + 100 * rng.randn(4, 1)) == pytest.approx(difference_deviation(averages))
    assert difference_deviation(averages.assign(D=np.nan)) == pytest.approx(difference_deviation(averages))
    partial = averages.assign(D=[*averages["A"].head(1), np.nan, np.nan, np.nan])  # no two trials
    assert difference_deviation(partial) == pytest.approx(difference_deviation(averages))
    lacking = averages.copy()
    lacking.loc[0, "C"] = np.nan
    rows = [averages[["A", "B"]], *(averages.loc[1:, [x, "C"]] for x in "AB")]
    expected = [(pair.iloc[:, 0] - pair.iloc[:, 1]).var() for pair in rows]
    assert difference_deviation(lacking) == pytest.approx(np.sqrt(np.mean(expected)))
    assert np.isnan(difference_deviation(averages[["A"]]))
    assert np.isnan(difference_deviation(averages.head(1)))


def sweep(folder: Path, trials: int) -> Path:
    rng = np.random.RandomState(0)
    records = [
        make_record("ColoredDigits", name, (env,), trial, draw, 0, *map(tuple, rng.rand(2, 3)))
        for name, env, trial, draw in itertools.product(("ERM", "Fishr", "IRM"), range(3), range(trials), range(4))
    ]
    return write_sweep(folder, records)


def test_table_of_a_sweep(tmp_path: Path):
    loaded = load_sweep(str(sweep(tmp_path, 3)))
    selected = loaded.select("training-domain")
    results = smallest_differences(selected, ENVIRONMENTS, ["ERM", "Fishr", "IRM"])
    sizes = [(r.dataset, r.draws, r.trials) for r in results]
    assert sizes == [*itertools.product(("ColoredDigits", "Avg"), (4, 2, 1), (3, 5, 10, 20))]
    section = make_report(loaded, ReportOptions(selection=("training-domain",))).sections[0]
    by_trial = 100 * section.best.groupby(["trial_seed", "algorithm"])["test_acc"].mean().unstack()
    assert results[0].deviation == pytest.approx(difference_deviation(by_trial))
    for own in (results[:4], results[4:8]):
        assert [r.difference for r in own] == sorted((r.difference for r in own), reverse=True)
    options = ReportOptions(selection=("training-domain",))
    report = make_report(loaded, replace(options, power=True))
    for name in ("text", "markdown"):
        assert "Smallest difference" in render(report, name, Path())
        assert "Smallest difference" not in render(make_report(loaded, options), name, Path())
    assert f"{results[0].difference:.1f}" in render(report, "text", Path())


def test_a_single_trial_shows_nothing(tmp_path: Path, run_command):
    folder = sweep(tmp_path / "sweep", 1)
    finished = run_command("collect_results", "--input_dir", folder, "--power")
    assert finished.returncode == 0, finished.stderr
    assert "Smallest difference that" not in finished.stdout
    assert "No smallest differences (--power): no two algorithms have two trials" in finished.stdout
    rejected = run_command("collect_results", "--input_dir", folder, "--power", "--format", "csv")
    assert rejected.returncode == 2
    assert "does not support --power" in rejected.stderr
