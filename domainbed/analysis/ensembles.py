"""Ensembles of runs: the mean of their probabilities, to which runs are added one by one."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from domainbed.analysis import metrics
from domainbed.analysis.measures import KEYS
from domainbed.analysis.runs import Outputs, Run, find_common


class Scores(NamedTuple):
    """The scores of a model on n images.

    Attributes:
        log_likelihood: `[n]`, of the labels.
        confidence: `[n]`, the probabilities of the predicted classes.
        is_correct: `[n]`.
    """

    log_likelihood: np.ndarray
    confidence: np.ndarray
    is_correct: np.ndarray

    def take(self, rows: np.ndarray) -> "Scores":
        """Return the scores on the images at these positions."""
        return Scores(*(values[rows] for values in self))

    def summarize(self) -> dict[str, float]:
        """Return the accuracy, the negative log-likelihood and the expected calibration error."""
        return {
            "accuracy": float(self.is_correct.mean()),
            "nll": float(-self.log_likelihood.mean()),
            "ece": metrics.calibration_error(self.confidence, self.is_correct),
        }


class Ensemble:
    """The mean of the probabilities of models on the images that all of them have, with the scores of each model.

    The probabilities of the models are not stored: those of 20 models on a large dataset take gigabytes.

    Attributes:
        members: the scores of each model.

    Args:
        outputs: the predictions of the first model, which is yet to be added.
    """

    def __init__(self, outputs: Outputs) -> None:
        self._common = outputs.without_probabilities()
        self._mean = metrics.EnsembleMean(*outputs.log_probabilities.shape)
        self.members: list[Scores] = []

    def add(self, outputs: Outputs) -> bool:
        """Add a model if it has images in common with all earlier ones, and return whether it has."""
        rows = find_common([self._common, outputs])
        if rows is None or not len(rows[0]):
            return False
        if len(rows[0]) < len(self._common.labels):
            self._common = self._common.take(rows[0])
            self._mean.keep(rows[0])
            self.members = [scores.take(rows[0]) for scores in self.members]
        outputs = outputs.take(rows[1])
        p = metrics.probabilities(outputs.log_probabilities)
        self._mean.add(p, outputs.predicted)
        self.members.append(self._score(outputs.log_probabilities, p, outputs.predicted))
        return True

    def score(self) -> Scores:
        """Return the scores of the mean."""
        mean, predicted = self._mean.result()
        logarithms = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
        return self._score(logarithms, metrics.probabilities(logarithms), predicted)

    def _score(self, log_probabilities: np.ndarray, p: np.ndarray, predicted: np.ndarray) -> Scores:
        labels = self._common.labels
        confidence = p[np.arange(len(p)), predicted]
        return Scores(metrics.log_likelihoods(log_probabilities, labels), confidence, predicted == labels)


def measure_ensemble(runs: Iterable[Run], kind: str) -> dict[str, Any] | None:
    """Return the metrics of the mean probabilities of runs of the same algorithm and test environment.

    Args:
        runs: the members; a generator that loads one at a time keeps them from being in memory at once.
        kind: "draws", on the in split of the test environment; or "trials", on all of its images that all members have
            predicted.

    Returns:
        None if there are fewer than two members, or their images or classes differ.
    """
    row: dict[str, Any] = {}
    ensemble: Ensemble | None = None
    classes: tuple[str, ...] = ()
    for run in runs:
        outputs = run.test if kind == "draws" else run.unseen
        if ensemble is None:
            ensemble, classes = Ensemble(outputs), run.classes
            row = {name: getattr(run, name) for name in KEYS}
        if run.classes != classes or not ensemble.add(outputs):
            return None
    if ensemble is None or len(ensemble.members) < 2:
        return None
    if kind == "trials":
        row["trial_seed"] = -1
    combined, single = ensemble.score(), [scores.summarize() for scores in ensemble.members]
    row |= {"kind": kind, "n_members": len(single), "n_images": len(combined.is_correct)}
    for name, value in combined.summarize().items():
        row |= {name: value, f"member_{name}": float(np.mean([values[name] for values in single]))}
    return row
