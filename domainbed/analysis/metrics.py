"""Metrics of predictions: pure functions on arrays.

Log-probabilities `[n, classes]` need not be normalized; logits are as good. `predicted` `[n]` is given in addition,
because rounding may have made classes equally probable.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

N_BINS = 15
RESAMPLES = 100
MAX_TEMPERATURE = 100.0  # and the inverse of the lowest


def probabilities(log_probabilities: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return probabilities `[n, classes]`, after division of the logits by a temperature."""
    return np.exp(log_softmax(log_probabilities.astype(np.float64) / temperature, axis=1))


def log_likelihoods(log_probabilities: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the log-likelihood of each label `[n]`, in nats."""
    normalized = log_softmax(log_probabilities.astype(np.float64) / temperature, axis=1)
    return normalized[np.arange(len(labels)), labels]


def negative_log_likelihood(log_probabilities: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the labels, in nats."""
    return float(-log_likelihoods(log_probabilities, labels, temperature).mean())


def fit_temperature(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest negative log-likelihood, between 1 / MAX_TEMPERATURE and MAX_TEMPERATURE.

    "On Calibration of Modern Neural Networks" (Guo et al., ICML 2017). The likelihood is convex in 1 / temperature.
    """
    limit = np.log(MAX_TEMPERATURE)
    fit = minimize_scalar(
        lambda logarithm: negative_log_likelihood(log_probabilities, labels, np.exp(logarithm)),
        bounds=(-limit, limit),
        method="bounded",
        options={"xatol": 1e-5},
    )
    is_better = fit.fun < negative_log_likelihood(log_probabilities, labels)
    return float(np.exp(fit.x)) if is_better else 1.0


def brier_score(p: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean squared distance of probabilities `[n, classes]` from the labels' one-hot vectors, in [0, 2]."""
    one_hot = np.zeros_like(p)
    one_hot[np.arange(len(labels)), labels] = 1
    return float(((p - one_hot) ** 2).sum(1).mean())


class Bins(NamedTuple):
    """Images in bins of increasing confidence, which differ by at most one in size.

    Attributes:
        confidence: `[bins]`, the mean of each bin.
        accuracy: `[bins]`.
        size: `[bins]`, numbers of images.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    size: np.ndarray


def calibration_bins(confidence: np.ndarray, is_correct: np.ndarray, n_bins: int = N_BINS) -> Bins:
    """Return the mean confidence and the accuracy in bins of equal mass; fewer bins if there are fewer images."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(n_bins, len(confidence)))
    means = [(confidence[part].mean(), is_correct[part].mean(), len(part)) for part in parts]
    return Bins(*map(np.array, zip(*means, strict=True)))


def calibration_error(confidence: np.ndarray, is_correct: np.ndarray, n_bins: int = N_BINS) -> float:
    """Return the expected calibration error: the mean over images of |accuracy - confidence| of their bins.

    It is biased upwards, because accuracies in bins are noisy: even a perfectly calibrated model has one above zero
    (`calibrated_error`). Bins of equal mass have a lower bias than bins of equal width (Roelofs et al., AISTATS 2022).
    """
    bins = calibration_bins(confidence, is_correct, n_bins)
    return float(np.average(np.abs(bins.accuracy - bins.confidence), weights=bins.size))


def calibrated_error(confidence: np.ndarray, n_bins: int = N_BINS, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the mean calibration error of a perfectly calibrated model with these confidences, by simulation.

    Each resample draws whether an image is classified correctly, with the confidence as probability.
    """
    rng = np.random.RandomState(seed)
    ordered = np.sort(confidence)  # so that bins are slices
    parts = np.array_split(ordered, min(n_bins, len(ordered)))
    starts = np.cumsum([0, *map(len, parts[:-1])])
    expected = np.add.reduceat(ordered, starts)
    errors = [
        np.abs(np.add.reduceat((rng.random_sample(len(ordered)) < ordered).astype(float), starts) - expected).sum()
        for _ in range(resamples)
    ]
    return float(np.mean(errors) / len(ordered))


def rejection_auroc(confidence: np.ndarray, is_correct: np.ndarray) -> float:
    """Return the probability that a correct prediction has a higher confidence than a wrong one; NaN without either."""
    return float(roc_auc_score(is_correct, confidence)) if len(np.unique(is_correct)) == 2 else np.nan


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 score over the classes that have images."""
    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


def class_accuracies(labels: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the accuracy on the images of each class, `[classes]`; NaN for a class without images."""
    counts = np.bincount(labels, minlength=n_classes).astype(float)
    correct = np.bincount(labels[labels == predicted], minlength=n_classes)
    return np.divide(correct, counts, out=np.full(n_classes, np.nan), where=counts > 0)


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the fraction of images for which two models predict the same class."""
    return float((a == b).mean())


def error_consistency(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float:
    """Return Cohen's kappa between the correctness of two models on each image.

    It is 0 if errors coincide as often as by chance, given both accuracies, and 1 if they always do ("Beyond accuracy",
    Geirhos et al., NeurIPS 2020). NaN if they can only coincide: both models have no errors, or only errors.
    """
    is_correct = [a == labels, b == labels]
    return float(cohen_kappa_score(*is_correct)) if len(np.unique(is_correct)) == 2 else np.nan


class EnsembleMean:
    """The mean of the probabilities of several models on n images. Models are added one by one, and not stored.

    Args:
        n: the number of images.
        n_classes: the number of classes.
    """

    def __init__(self, n: int, n_classes: int) -> None:
        self._sum = np.zeros((n, n_classes))
        self._votes = np.zeros((n, n_classes), np.int16)
        self._n_models = 0

    def add(self, p: np.ndarray, predicted: np.ndarray) -> None:
        """Add the probabilities `[n, classes]` and the predicted classes `[n]` of a model."""
        self._sum += p
        self._votes[np.arange(len(predicted)), predicted] += 1
        self._n_models += 1

    def keep(self, rows: np.ndarray) -> None:
        """Keep only the images at these positions."""
        self._sum, self._votes = self._sum[rows], self._votes[rows]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of the probabilities, `[n, classes]`, and the predicted class of each image.

        Of equally probable classes, the one that most models predict wins, so an ensemble of one predicts what it does.
        """
        mean = self._sum / self._n_models
        is_best = mean == mean.max(1, keepdims=True)
        return mean, np.where(is_best, self._votes, -1).argmax(1)
