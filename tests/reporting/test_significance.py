"""Hypothesis tests of results: against scipy, a published example, permutations, and invariances."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from domainbed.reporting.significance import (
    compare_with_baseline,
    critical_difference,
    friedman,
    holm,
    mean_ranks,
    rank_groups,
)

# Demšar (2006), Table 6: AUC of four variants of C4.5 on 14 datasets. Its ranks of "voting" are those of the unrounded
# values, hence one more digit there.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)
SCORES = arrays(float, st.tuples(st.integers(2, 5), st.integers(2, 6)), elements=st.integers(0, 40).map(float))


def test_published_example_of_ranks():
    ranks = mean_ranks(DEMSAR)
    np.testing.assert_allclose(ranks, [3.143, 2.000, 2.893, 1.964], atol=5e-4)
    # The paper computes 9.28 without a correction for ties; with it, the statistic is larger.
    uncorrected = 12 * 14 / (4 * 5) * ((ranks**2).sum() - 4 * 5**2 / 4)
    assert uncorrected == pytest.approx(9.28, abs=0.01)
    assert friedman(DEMSAR).statistic > uncorrected
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, level=0.1) == pytest.approx(1.12, abs=0.005)
    # "the critical difference is 1.25 and ... the post-hoc test is not powerful enough": all are one group.
    assert rank_groups(ranks, 1.25) == [[3, 1, 2, 0]]
    # At 0.10, the original differs from two variants, and the third belongs to both groups.
    assert rank_groups(ranks, 1.12) == [[3, 1, 2], [2, 0]]


def test_published_example_of_holms_correction():
    """Demšar (2006), Section 3.2.2: comparisons with C4.5, of which Holm's procedure rejects two."""
    error = math.sqrt(4 * 5 / (6 * 14))
    p_values = [2 * stats.norm.sf((3.143 - rank) / error) for rank in (2.000, 2.893, 1.964)]
    np.testing.assert_allclose(p_values, [0.019, 0.607, 0.016], atol=2e-3)
    assert (holm(p_values) <= 0.05).tolist() == [True, False, True]
    np.testing.assert_allclose(holm(p_values), [3 * p_values[2], p_values[1], 3 * p_values[2]])  # monotone


def test_critical_values_are_those_of_published_table():
    """Demšar (2006), Table 5 (a)."""
    for k, q in enumerate([1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164], start=2):
        assert critical_difference(k, 10) == pytest.approx(q * math.sqrt(k * (k + 1) / 60), rel=6e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]):
    """The corrected p-value is the largest Bonferroni p-value of the intersections that contain the hypothesis."""
    n = len(p_values)
    subsets = [s for size in range(1, n + 1) for s in itertools.combinations(range(n), size)]
    for i, corrected in enumerate(holm(p_values)):
        closed = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s)
        assert corrected == pytest.approx(closed, abs=1e-12)


@given(arrays(float, st.tuples(st.integers(2, 6), st.just(2)), elements=st.floats(0, 100)))
def test_two_algorithms_are_compared_by_the_paired_t_test(scores: np.ndarray):
    (contrast,) = compare_with_baseline(scores, 1)
    a, b = scores.T
    assert contrast.difference == pytest.approx((a - b).mean(), abs=1e-8)
    if (a - b).std() > 1e-6:
        reference = stats.ttest_rel(a, b)
        interval = reference.confidence_interval(0.95)
        assert contrast[1:] == pytest.approx((*interval, *[reference.pvalue] * 3), rel=1e-4, abs=1e-6)


def test_variance_is_that_of_the_two_way_layout():
    """Compare with least squares: columns for trials and algorithms, the first of each omitted."""
    scores = np.random.RandomState(0).randn(4, 5)
    trials, algorithms = (m.ravel() for m in np.indices(scores.shape))
    design = np.column_stack(
        [np.ones(20), *(trials == i for i in range(1, 4)), *(algorithms == j for j in range(5) if j != 2)]
    ).astype(float)
    coefficients, (residual,), *_ = np.linalg.lstsq(design, scores.ravel(), rcond=None)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * residual / (20 - 8))
    p_values = 2 * stats.t.sf(np.abs(coefficients / errors), 12)
    contrasts = compare_with_baseline(scores, 2)
    own = [stats.ttest_rel(scores[:, j], scores[:, 2]).pvalue for j in range(5) if j != 2]
    np.testing.assert_allclose([c.paired_p_value for c in contrasts], own)
    np.testing.assert_allclose([c.difference for c in contrasts], coefficients[4:])
    np.testing.assert_allclose([c.p_value for c in contrasts], p_values[4:])
    margin = stats.t.ppf(1 - 0.05 / 8, 12) * errors[4:]
    np.testing.assert_allclose([c.low for c in contrasts], coefficients[4:] - margin)
    np.testing.assert_allclose([c.high for c in contrasts], coefficients[4:] + margin)


def test_false_detections_of_any_algorithm_are_as_rare_as_the_level():
    """Simulate sweeps of the benchmark's size in which no algorithm differs, and trials differ greatly."""
    rng = np.random.RandomState(0)
    sweeps = rng.randn(3000, 3, 7) + 10 * rng.randn(3000, 3, 1)
    found = [min(c.corrected_p_value for c in compare_with_baseline(scores, 0)) <= 0.05 for scores in sweeps]
    assert np.mean(found) == pytest.approx(0.04, abs=0.013)  # Holm's bound is not attained, as contrasts correlate


@settings(deadline=None, max_examples=60)
@given(SCORES, st.randoms(use_true_random=False))
def test_invariances_of_comparisons(scores: np.ndarray, random):
    before = compare_with_baseline(scores, 0)
    shifted = compare_with_baseline(scores + np.arange(len(scores))[:, None] * 7.5, 0)  # easier and harder trials
    np.testing.assert_allclose(shifted, before, atol=1e-7)
    order = list(range(1, scores.shape[1]))
    random.shuffle(order)
    permuted = compare_with_baseline(scores[:, [*order, 0]], len(order))
    np.testing.assert_allclose(permuted, [before[i - 1] for i in order], atol=1e-7)
    np.testing.assert_allclose(compare_with_baseline(scores[::-1], 0), before, atol=1e-7)
    mirrored = compare_with_baseline(-scores, 0)
    np.testing.assert_allclose([c.difference for c in mirrored], [-c.difference for c in before], atol=1e-7)
    np.testing.assert_allclose([c.p_value for c in mirrored], [c.p_value for c in before], atol=1e-7)


def test_a_single_trial_has_differences_but_no_test():
    contrasts = compare_with_baseline(np.array([[50.0, 60.0, 45.0]]), 0)
    assert [c.difference for c in contrasts] == [10, -5]
    assert np.isnan([c[1:] for c in contrasts]).all()


def test_scores_that_do_not_vary():
    equal, better = compare_with_baseline(np.array([[0.1, 0.1, 0.3]] * 3) * 3, 0)
    assert equal == (0, 0, 0, 1, 1, 1)
    assert better.corrected_p_value == better.paired_p_value == 0


def test_near_copies_of_the_baseline_make_differences_significant_but_not_by_the_paired_test():
    scores = np.array([[70.0, 71, 72], [73, 74, 72]]).T
    copies = np.array([70.0, 71, 72])[:, None] + np.array([[0.1, -0.1, 0.2, 0.0]]) * np.array([[1], [-1], [0.5]])
    alone, *_ = compare_with_baseline(scores, 0)
    crowded, *_ = compare_with_baseline(np.column_stack([scores, copies]), 0)
    assert alone.p_value == pytest.approx(alone.paired_p_value) == pytest.approx(0.18, abs=0.01)
    assert crowded.paired_p_value == alone.paired_p_value
    assert crowded.corrected_p_value < 0.05


@pytest.mark.parametrize("scores", [[], [[1.0]], [1.0, 2.0], [[1.0, np.nan]], [[1.0, np.inf]]])
def test_unusable_scores_are_rejected(scores: list):
    with pytest.raises(ValueError, match="scores must be finite"):
        compare_with_baseline(np.array(scores), 0)


@settings(deadline=None, max_examples=60)
@given(arrays(float, st.tuples(st.integers(2, 5), st.integers(3, 6)), elements=st.integers(0, 9).map(float)))
def test_ranks_and_friedmans_test_agree_with_scipy_and_ignore_what_they_should(scores: np.ndarray):
    ranks = mean_ranks(scores)
    brute_force = [
        [1 + sum(other > x for other in row) + (sum(other == x for other in row) - 1) / 2 for x in row]
        for row in scores
    ]
    np.testing.assert_allclose(ranks, np.mean(brute_force, axis=0))
    assert ranks.sum() == pytest.approx(scores.shape[1] * (scores.shape[1] + 1) / 2)
    test = friedman(scores)
    if (scores == scores[:, :1]).all():
        assert test == (0, 1)
    else:
        reference = stats.friedmanchisquare(*scores.T)
        assert test == pytest.approx((reference.statistic, reference.pvalue))
    increasing = np.exp(scores / 3) + 1e-12 + 5 * np.arange(len(scores))[:, None]  # a different one in each block
    np.testing.assert_allclose(mean_ranks(increasing), ranks)
    np.testing.assert_allclose(friedman(increasing), test)
    np.testing.assert_allclose(mean_ranks(scores[:, ::-1]), ranks[::-1])


def test_friedmans_p_value_is_near_that_of_permutations():
    scores = np.random.RandomState(1).randn(9, 5) + np.array([0, 0.3, 0.6, 0, 0.9])
    rng = np.random.RandomState(0)
    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1) + 1.0
    permuted = np.take_along_axis(ranks[None], np.argsort(rng.rand(4000, 9, 5), axis=2), axis=2)
    spread = permuted.mean(axis=1).var(axis=1)
    p_value = (spread >= ranks.mean(axis=0).var() - 1e-12).mean()
    assert friedman(scores).p_value == pytest.approx(p_value, abs=0.02)


def test_rounding_errors_are_ties():
    np.testing.assert_allclose(mean_ranks(np.array([[0.1 + 0.2, 0.3, 0.1]])), [1.5, 1.5, 3])


@given(
    st.lists(st.integers(4, 40).map(lambda n: n / 4), min_size=1, max_size=8),
    st.integers(1, 20).map(lambda n: n / 4 + 0.1),
)
def test_groups_are_the_maximal_cliques(ranks: list[float], difference: float):
    def is_clique(members) -> bool:
        return all(abs(ranks[i] - ranks[j]) < difference for i, j in itertools.combinations(members, 2))

    sizes = range(2, len(ranks) + 1)
    cliques = [set(s) for n in sizes for s in itertools.combinations(range(len(ranks)), n) if is_clique(s)]
    maximal = [c for c in cliques if not any(c < other for other in cliques)]
    groups = rank_groups(ranks, difference)
    assert sorted(map(sorted, groups)) == sorted(map(sorted, maximal))
    assert all([ranks[i] for i in group] == sorted(ranks[i] for i in group) for group in groups)
