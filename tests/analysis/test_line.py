"""Agreement on the line: known lines are found, and tables equal plain loops."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.random import RandomState
from scipy.stats import linregress, norm

from domainbed.analysis.line import fit_scaled_line, predict_aline_d, predict_aline_s
from domainbed.analysis.line_table import line_points, line_table
from domainbed.analysis.measures import measure_run
from domainbed.analysis.plots import plot_lines
from domainbed.analysis.runs import Outputs, Run

CLASSES = ("dog", "cat")
SLOPE, BIAS = 0.8, -0.5


def on_line(accuracy: np.ndarray) -> np.ndarray:
    return norm.cdf(SLOPE * norm.ppf(accuracy) + BIAS)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 8), st.integers(0, 1000))
def test_known_lines(n: int, seed: int):
    """If accuracies and agreements are on the same line, both predictions are the accuracies."""
    rng = RandomState(seed)
    accuracies = rng.uniform(0.55, 0.95, n)
    pairs = np.array(list(itertools.combinations(range(n), 2)))
    agreements = rng.uniform(0.6, 0.98, len(pairs))
    line = fit_scaled_line(agreements, on_line(agreements))
    np.testing.assert_allclose(line, [SLOPE, BIAS, 1], atol=1e-6)
    np.testing.assert_allclose(predict_aline_s(accuracies, line), on_line(accuracies), atol=1e-6)
    found = predict_aline_d(accuracies, pairs, agreements, on_line(agreements), SLOPE)
    np.testing.assert_allclose(found, on_line(accuracies), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 6), st.integers(0, 1000))
def test_aline_d_is_the_solution_by_least_squares(n: int, seed: int):
    """It is where the gradient is zero, also for agreements that are on no line, and with clipped ones."""
    rng = RandomState(seed)
    accuracies, pairs = rng.uniform(0.5, 0.9, n), list(itertools.combinations(range(n), 2))
    inside, outside = rng.uniform(0.5, 1, (2, len(pairs)))
    inside[0] = outside[-1] = 1.0
    found = predict_aline_d(accuracies, np.array(pairs), inside, outside, 0.7)
    w, x = norm.ppf(found), norm.ppf(accuracies)
    assume(np.abs(w).max() < 5)  # beyond, accuracies are too close to 0 or 1 to be scaled back
    gradient = np.zeros(n)
    for (i, j), a, b in zip(pairs, inside, outside, strict=True):
        a, b = (norm.ppf(min(v, 0.9995)) for v in (a, b))
        residual = (w[i] + w[j]) / 2 - b - 0.7 * ((x[i] + x[j]) / 2 - a)
        gradient[i] += residual
        gradient[j] += residual
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_undefined_values():
    ones = np.ones(2)
    assert np.isnan(fit_scaled_line(np.array([0.6, 0.7]), np.array([0.5, 0.6]))).all()
    assert np.isnan(fit_scaled_line(np.full(4, 0.6), np.array([0.5, 0.6, 0.7, 0.8])).slope)
    assert np.isnan(predict_aline_d(0.7 * ones, np.array([[0, 1]]), ones[:1], ones[:1], 1.0)).all()
    # Four pairs in a cycle determine only the sums of neighbors.
    cycle = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    assert np.isnan(predict_aline_d(np.full(4, 0.7), cycle, np.full(4, 0.8), np.full(4, 0.7), 1.0)).all()


def make_run(algorithm: str, env: int, trial: int, rng: RandomState, name: str = "", n: int = 900) -> Run:
    """Return a run with about 80% correct predictions in domain, and 65% out of domain."""

    def outputs(index: np.ndarray, share: float) -> Outputs:
        labels = index % len(CLASSES)
        predicted = np.where(rng.rand(len(index)) < share + 0.05 * rng.rand(), labels, 1 - labels)
        logits = np.log(np.where(np.eye(2)[predicted] == 1, 0.9, 0.1)).astype(np.float16)
        return Outputs(logits, predicted, labels, index, np.array([f"{name}{i}.png" for i in index]))

    split = RandomState(10 * env + trial).permutation(n)
    test, unseen = (outputs(index, 0.65) for index in (np.sort(split[n // 3 :]), np.arange(n)))
    validation = outputs(np.sort(split[: n // 2]) + 2**32, 0.8)
    return Run("Made", algorithm, env, trial, 0, f"env{env}", CLASSES, test, unseen, validation)


def agree(a: Outputs, b: Outputs) -> tuple[float, int]:
    of_b = dict(zip(b.index.tolist(), b.predicted.tolist(), strict=True))
    equal = [p == of_b[i] for i, p in zip(a.index.tolist(), a.predicted.tolist(), strict=True) if i in of_b]
    return float(np.mean(equal)), len(equal)


def test_table_equals_plain_loops():
    rng = RandomState(0)
    runs = [make_run(a, env, t, rng) for a in ("ERM", "CORAL", "IRM") for env in range(2) for t in range(2)]
    points = line_points([measure_run(run) for run in runs])
    table = line_table(points, ["env0", "env1"])
    assert table.frame["environment"].tolist() == ["env0", "env1", "Avg"]
    for row in table.frame.to_dict("records")[:2]:
        members = [run for run in runs if run.environment == row["environment"]]
        inside, outside = (np.array([o.is_correct.mean() for o in side]) for side in zip(
            *((run.validation, run.test) for run in members), strict=True
        ))  # fmt: skip
        fit = linregress(norm.ppf(inside), norm.ppf(outside))
        found = [row[f"accuracy_{value}"] for value in ("slope", "bias", "r_squared")]
        assert found == pytest.approx([fit.slope, fit.intercept, fit.rvalue**2])
        assert row["mae_in_domain"] == pytest.approx(np.abs(inside - outside).mean())
        assert row["mae_confidence"] == pytest.approx(np.abs(0.9 - outside).mean(), abs=1e-3)
        for line, suffix in (("agreement", ""), ("same_trial", "_same_trial")):
            pairs = [
                (a, b)
                for a, b in itertools.combinations(members, 2)
                if line == "agreement" or a.trial_seed == b.trial_seed
            ]
            assert len(pairs) == row["pairs" if line == "agreement" else "same_trial_pairs"] == (6, 15)[not suffix]
            x, y = (
                norm.ppf([agree(getattr(a, s), getattr(b, s))[0] for a, b in pairs]) for s in ("validation", "test")
            )
            fit = linregress(x, y)
            found = [row[f"{line}_{value}"] for value in ("slope", "bias", "r_squared")]
            assert found == pytest.approx([fit.slope, fit.intercept, fit.rvalue**2])
            predicted = norm.cdf(fit.slope * norm.ppf(inside) + fit.intercept)
            assert row[f"mae_aline_s{suffix}"] == pytest.approx(np.abs(predicted - outside).mean())
            matrix = np.array(
                [[0.5 * (run in pair) for run in map(id, members)] for pair in [tuple(map(id, p)) for p in pairs]]
            )
            predicted = norm.cdf(np.linalg.pinv(matrix) @ (y + fit.slope * (matrix @ norm.ppf(inside) - x)))
            assert row[f"mae_aline_d{suffix}"] == pytest.approx(np.abs(predicted - outside).mean())
        assert row["problem"] == ""
    for column in [name for name in table.frame if name.startswith("mae_")]:
        values = table.frame[column].tolist()
        assert values[2] == pytest.approx(np.mean(values[:2]))
    pair = points[(points["kind"] == "pair") & (points["trial_seed"] != points["other_trial_seed"])].iloc[0]
    a, b = (
        next(r for r in runs if (r.algorithm, r.test_env, r.trial_seed) == key)
        for key in ((pair["algorithm"], 0, pair["trial_seed"]), (pair["other"], 0, pair["other_trial_seed"]))
    )
    assert (pair["in_domain"], pair["n_in_domain"]) == agree(a.validation, b.validation)
    assert (pair["out_of_domain"], pair["n_out_of_domain"]) == agree(a.test, b.test)
    plot_lines(points, "Made")


def test_undefined_lines_are_explained():
    rng = RandomState(0)
    runs = [make_run(*key, rng) for key in (("ERM", 0, 0), ("CORAL", 0, 0), ("ERM", 0, 1), ("ERM", 1, 0))]
    # Images that differ between trials, and too few images: neither makes a pair.
    runs += [make_run("CORAL", 0, 1, rng, name="other"), make_run("IRM", 0, 0, rng, n=100)]
    points = line_points([measure_run(run) for run in runs])
    table = line_table(points, ["env0", "env1"])
    first, second, average = table.frame.to_dict("records")
    assert (first["runs"], first["pairs"], first["same_trial_pairs"]) == (5, 3, 1)
    assert first["problem"] == (
        "no ALine-D of agreement: the pairs do not determine the accuracy of every run; no line of agreement of the "
        "same trial: it requires 3 pairs with at least 100 images in common, and there is 1"
    )
    assert "no line of accuracy: it requires 3 runs, and there is 1" in second["problem"]
    assert average["mae_in_domain"] == pytest.approx((first["mae_in_domain"] + second["mae_in_domain"]) / 2)
    assert np.isnan(average["mae_aline_s"])
    text = "\n".join(map(" ".join, table.rows))
    assert "nan" not in text
    assert f"env0: {first['problem'].split('; ')[0]}." in table.notes
    plot_lines(points, "Made")
    alone = line_points([measure_run(make_run("ERM", 0, 0, rng))])
    assert len(alone) == 1
    assert pd.isna(alone["other_trial_seed"]).all()
    assert line_table(alone, ["env0"]).rows[0][:6] == ["env0", "accuracy", "1", "-", "-", "-"]
