"""Metrics against plain references, scikit-learn's own, and identities, on random predictions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState
from sklearn import metrics as sk

from domainbed.analysis import metrics


@st.composite
def predictions(draw):
    """Draw logits in few levels, to get ties, their labels, and predictions as of unrounded logits."""
    rng = RandomState(draw(st.integers(0, 2**31 - 1)))
    n, n_classes = draw(st.integers(2, 40)), draw(st.integers(2, 5))
    exact = rng.randn(n, n_classes) * draw(st.sampled_from([0.3, 3, 30]))
    rounded = np.round(exact, draw(st.sampled_from([0, 3]))).astype(np.float16)
    return rounded, rng.randint(n_classes, size=n), exact.argmax(1)


def softmax(row):
    shifted = [math.exp(float(x) - float(max(row))) for x in row]
    return [x / sum(shifted) for x in shifted]


@settings(max_examples=40, deadline=None)
@given(predictions(), st.sampled_from([0.5, 1.0, 3.0]))
def test_scores_equal_references(drawn, temperature: float):
    logits, labels, predicted = drawn
    n_classes = logits.shape[1]
    expected = [softmax(row.astype(float) / temperature) for row in logits]
    p = metrics.probabilities(logits, temperature)
    np.testing.assert_allclose(p, expected, atol=1e-12)
    nll = metrics.negative_log_likelihood(logits, labels, temperature)
    z = logits.astype(float) / temperature
    logsums = [max(row) + math.log(sum(math.exp(x - max(row)) for x in row)) for row in z]
    assert nll == pytest.approx(np.mean([s - row[y] for row, s, y in zip(z, logsums, labels, strict=True)]), abs=1e-9)
    if p.min() > 1e-12:  # scikit-learn clips probabilities
        assert nll == pytest.approx(sk.log_loss(labels, p, labels=range(n_classes)))
    brier = metrics.brier_score(p, labels)
    squares = [sum((x - (k == y)) ** 2 for k, x in enumerate(row)) for row, y in zip(expected, labels, strict=True)]
    assert brier == pytest.approx(np.mean(squares))
    if n_classes == 2:
        assert brier == pytest.approx(2 * sk.brier_score_loss(labels, p[:, 1], pos_label=1))
    assert metrics.macro_f1(labels, predicted) == pytest.approx(reference_f1(labels, predicted))
    accuracies = metrics.class_accuracies(labels, predicted, n_classes)
    matrix = sk.confusion_matrix(labels, predicted, labels=range(n_classes))
    for k in range(n_classes):
        expected_accuracy = matrix[k, k] / matrix[k].sum() if matrix[k].sum() else math.nan
        assert accuracies[k] == pytest.approx(expected_accuracy, nan_ok=True)


def reference_f1(labels, predicted) -> float:
    scores = []
    for k in set(labels.tolist()):
        true = sum((labels == k) & (predicted == k))
        scores.append(2 * true / (sum(labels == k) + sum(predicted == k)))
    return float(np.mean(scores))


@settings(max_examples=40, deadline=None)
@given(predictions(), st.integers(1, 20))
def test_calibration_error_equals_reference(drawn, n_bins: int):
    logits, labels, predicted = drawn
    p = metrics.probabilities(logits)
    confidence, is_correct = p[np.arange(len(p)), predicted], predicted == labels
    order = sorted(range(len(p)), key=lambda i: confidence[i])
    base, extra = divmod(len(p), min(n_bins, len(p)))
    sizes = [base + (i < extra) for i in range(min(n_bins, len(p)))]
    ends = [0, *itertools.accumulate(sizes)]
    error = sum(abs(sum(is_correct[i] - confidence[i] for i in order[a:b])) for a, b in itertools.pairwise(ends))
    assert metrics.calibration_error(confidence, is_correct, n_bins) == pytest.approx(error / len(p))
    bins = metrics.calibration_bins(confidence, is_correct, n_bins)
    assert bins.size.tolist() == sizes
    assert metrics.calibration_error(confidence, is_correct, 1) == pytest.approx(
        abs(is_correct.mean() - confidence.mean())
    )


def test_calibrated_models_show_the_bias_only():
    """A perfectly calibrated model has about the error that is simulated for it, and a miscalibrated one more."""
    rng = RandomState(0)
    for n in (100, 3000):
        confidence = rng.uniform(0.3, 1, n) ** 0.3
        errors = [metrics.calibration_error(confidence, rng.rand(n) < confidence) for _ in range(60)]
        simulated = metrics.calibrated_error(confidence, resamples=60)
        assert simulated == pytest.approx(np.mean(errors), rel=0.1)
        normal = [math.sqrt(2 / math.pi * (c * (1 - c)).sum()) for c in np.array_split(np.sort(confidence), 15)]
        assert simulated == pytest.approx(sum(normal) / n, rel=0.1)
        assert metrics.calibration_error(confidence, rng.rand(n) < confidence - 0.25) > 2 * simulated
    assert metrics.calibrated_error(np.ones(50)) == 0


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_temperature_scaling(drawn):
    """It neither changes the order of classes nor raises the likelihood's loss where it is fitted."""
    logits, labels, _ = drawn
    temperature = metrics.fit_temperature(logits, labels)
    assert 1 / metrics.MAX_TEMPERATURE <= temperature <= metrics.MAX_TEMPERATURE
    fitted = metrics.negative_log_likelihood(logits, labels, temperature)
    grid = np.exp(np.linspace(-4.5, 4.5, 60))
    assert fitted <= metrics.negative_log_likelihood(logits, labels)
    assert fitted <= min(metrics.negative_log_likelihood(logits, labels, t) for t in grid) + 1e-4
    scaled = metrics.probabilities(logits, temperature)
    is_best = logits == logits.max(1, keepdims=True)
    assert (scaled >= scaled.max(1, keepdims=True) * (1 - 1e-12))[is_best].all()


def test_temperature_of_known_models():
    rng = RandomState(1)
    logits = 3 * rng.randn(20_000, 4)
    p = metrics.probabilities(logits)
    labels = (p.cumsum(1) > rng.rand(len(p), 1)).argmax(1)
    assert metrics.fit_temperature(logits, labels) == pytest.approx(1, rel=0.03)
    assert metrics.fit_temperature(5 * logits, labels) == pytest.approx(5, rel=0.03)
    assert metrics.fit_temperature(logits / 2, labels) == pytest.approx(0.5, rel=0.03)


def test_rejection_and_agreement():
    rng = RandomState(0)
    confidence, is_correct = np.round(rng.rand(60), 1), rng.rand(60) < 0.6
    pairs = [(a, b) for a in confidence[is_correct] for b in confidence[~is_correct]]
    expected = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
    assert metrics.rejection_auroc(confidence, is_correct) == pytest.approx(expected)
    assert math.isnan(metrics.rejection_auroc(confidence, np.ones(60, bool)))
    labels, a, b = rng.randint(3, size=(3, 200))
    assert metrics.agreement(a, b) == np.mean(a == b)
    x, y = a == labels, b == labels
    observed, chance = np.mean(x == y), x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
    assert metrics.error_consistency(a, b, labels) == pytest.approx((observed - chance) / (1 - chance))
    assert metrics.error_consistency(a, a, labels) == pytest.approx(1)
    never = (labels + 1) % 3
    assert metrics.error_consistency(labels, b, labels) == metrics.error_consistency(b, never, labels) == 0
    assert metrics.error_consistency(labels, never, labels) == 0
    assert math.isnan(metrics.error_consistency(labels, labels, labels))
    assert math.isnan(metrics.error_consistency(never, never, labels))


def ensemble(members, predicted) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean probabilities of members, given their log-probabilities, and the predicted classes."""
    mean = metrics.EnsembleMean(*members[0].shape)
    for log_probabilities, classes in zip(members, predicted, strict=True):
        mean.add(metrics.probabilities(log_probabilities), classes)
    return mean.result()


@settings(max_examples=40, deadline=None)
@given(st.lists(predictions(), min_size=1, max_size=1), st.integers(1, 3))
def test_ensemble_of_equal_members_is_the_member(drawn, n: int):
    [(logits, _, predicted)] = drawn
    rounded_best = logits[np.arange(len(logits)), predicted] == logits.max(1)
    p, classes = ensemble([logits] * n, [predicted] * n)
    np.testing.assert_allclose(p, metrics.probabilities(logits))
    assert (classes[rounded_best] == predicted[rounded_best]).all()
    assert rounded_best.all()  # rounding keeps the order, with ties


def test_ensemble_averages_probabilities():
    sure, unsure = np.log([[0.98, 0.02]]), np.log([[0.4, 0.6]])
    p, classes = ensemble([sure, unsure, unsure], [np.array([0]), np.array([1]), np.array([1])])
    np.testing.assert_allclose(p, [[(0.98 + 0.4 + 0.4) / 3, (0.02 + 0.6 + 0.6) / 3]])
    assert classes.tolist() == [0]
    tie = np.zeros((1, 3), np.float16)
    assert ensemble([tie] * 3, [np.array([2]), np.array([1]), np.array([2])])[1].tolist() == [2]
