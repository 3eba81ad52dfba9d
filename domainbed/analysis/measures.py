"""Measures of runs: their metrics, the agreement of algorithms, and the images that models fail."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from domainbed.analysis import metrics
from domainbed.analysis.runs import Outputs, Run, find_common

TRAINING, TEST = "training", "test"  # domains
# Of each run, on each domain, before and after temperature scaling.
CALIBRATION_METRICS = ("nll", "brier", "ece", "ece_if_calibrated")
SCALED = "_scaled"
KEYS = ["dataset", "algorithm", "test_env", "environment", "trial_seed"]


@dataclass(frozen=True)
class Measured:
    """The measures of a run, without its probabilities.

    Attributes:
        run: the run's keys: KEYS and hparams_seed.
        classes: the names of the classes.
        rows: its metrics, one row per domain.
        class_accuracies: `[classes]`, on the test environment.
        confusion: `[classes, classes]`, numbers of test images by class and predicted class.
        confidence: by whether they are scaled, the confidences on the test environment.
        outputs: on the test environment, without probabilities.
        validation: on the out splits of the training environments (`Run.validation`), without probabilities and with
            64-bit hashes of the names of images, which are long.
    """

    run: dict[str, Any]
    classes: tuple[str, ...]
    rows: list[dict[str, Any]]
    class_accuracies: np.ndarray
    confusion: np.ndarray
    confidence: dict[bool, np.ndarray]
    outputs: Outputs
    validation: Outputs


def measure_run(run: Run, with_calibration: bool = True) -> Measured:
    """Return the measures of a run. The temperature is fitted on the out splits of the training environments.

    Args:
        run: the run.
        with_calibration: whether to measure its calibration, which takes most of the time. If not, `rows` have no
            temperature and no CALIBRATION_METRICS, and `confidence` has no scaled ones.
    """
    keys = {name: getattr(run, name) for name in (*KEYS, "hparams_seed")}
    temperatures = {False: 1.0}
    if with_calibration:
        temperatures[True] = metrics.fit_temperature(run.validation.log_probabilities, run.validation.labels)
    rows, confidence = [], {}
    for domain, outputs in ((TRAINING, run.validation), (TEST, run.test)):
        accuracies = metrics.class_accuracies(outputs.labels, outputs.predicted, len(run.classes))
        row = {
            **keys,
            "domain": domain,
            "n_images": len(outputs.labels),
            "accuracy": float(outputs.is_correct.mean()),
            "macro_f1": metrics.macro_f1(outputs.labels, outputs.predicted),
            "worst_class_accuracy": float(np.nanmin(accuracies)),
        }
        if with_calibration:
            row["temperature"] = temperatures[True]
        for is_scaled, temperature in temperatures.items():
            p = metrics.probabilities(outputs.log_probabilities, temperature)
            confidence[is_scaled] = p[np.arange(len(p)), outputs.predicted]
            if not is_scaled:
                row["rejection_auroc"] = metrics.rejection_auroc(confidence[False], outputs.is_correct)
            if with_calibration:
                values = _measure_calibration(outputs, p, confidence[is_scaled], temperature)
                suffix = SCALED if is_scaled else ""
                row |= {f"{name}{suffix}": v for name, v in zip(CALIBRATION_METRICS, values, strict=True)}
        rows.append(row)
    return Measured(
        keys,
        run.classes,
        rows,
        accuracies,
        confusion_matrix(run.test.labels, run.test.predicted, labels=range(len(run.classes))),
        confidence,
        run.test.without_probabilities(),
        replace(run.validation.without_probabilities(), image=pd.util.hash_array(run.validation.image)),
    )


def _measure_calibration(
    outputs: Outputs, p: np.ndarray, confidence: np.ndarray, temperature: float
) -> tuple[float, ...]:
    """Return CALIBRATION_METRICS, given the probabilities at a temperature, and those of the predicted classes."""
    return (
        metrics.negative_log_likelihood(outputs.log_probabilities, outputs.labels, temperature),
        metrics.brier_score(p, outputs.labels),
        metrics.calibration_error(confidence, outputs.is_correct),
        metrics.calibrated_error(confidence),
    )


def by_task(runs: Sequence[Measured]) -> dict[tuple[int, int], dict[str, Measured]]:
    """Return the runs of one dataset by (test environment, trial) and algorithm."""
    tasks: dict[tuple[int, int], dict[str, Measured]] = defaultdict(dict)
    for run in runs:
        tasks[run.run["test_env"], run.run["trial_seed"]][run.run["algorithm"]] = run
    return dict(sorted(tasks.items()))


def measure_agreement(runs: Sequence[Measured]) -> pd.DataFrame:
    """Return how far algorithms agree on test images: one row per pair of algorithms, test environment and trial.

    Only the images that both have count. Pairs without any, or with different versions of the data, are omitted.
    """
    rows = []
    for algorithms in by_task(runs).values():
        for (a, first), (b, second) in itertools.combinations(algorithms.items(), 2):
            common = find_common([first.outputs, second.outputs])
            if common is None or not len(common[0]):
                continue
            x, y = first.outputs.take(common[0]), second.outputs.take(common[1])
            row = {
                **{name: first.run[name] for name in KEYS if name != "algorithm"},
                "algorithm": a,
                "other": b,
                "agreement": metrics.agreement(x.predicted, y.predicted),
                "error_consistency": metrics.error_consistency(x.predicted, y.predicted, x.labels),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def find_extremes(runs: Sequence[Measured], algorithms: Sequence[str]) -> pd.DataFrame:
    """Return the test images that every run misclassifies, or every run of one algorithm alone classifies correctly.

    Only trials in which all algorithms have runs count, each with the images of its in split.

    Returns:
        One row per image: `test_env`, `environment`, `image`, `index` (-1 if it differs between trials), `label`,
        `outcome` ("all fail" or "only ALGORITHM"), `predicted` (the most frequent wrong class), `confidence` (the mean
        of the runs that are wrong, in the classes that they predict), `n_runs`, and `trial_seed`, the first trial.
    """
    columns = ["test_env", "environment", "image", "index", "label", "outcome", "predicted", "confidence", "n_runs"]
    columns.append("trial_seed")
    frames = []
    for (env, trial), of_task in _complete_tasks(runs, algorithms).items():
        for number, algorithm in enumerate(algorithms):
            run = of_task[algorithm]
            frame = pd.DataFrame({name: getattr(run.outputs, name) for name in ("image", "index", "predicted")})
            frame = frame.assign(label=run.outputs.labels, confidence=run.confidence[False])
            frames.append(frame.assign(algorithm=number, test_env=env, trial_seed=trial))
    if not frames:
        return pd.DataFrame(columns=columns)
    table = pd.concat(frames, ignore_index=True)
    table["is_correct"] = table["predicted"] == table["label"]
    keys = ["test_env", "image", "label"]  # in some datasets, the label depends on the trial
    shares = table.groupby([*keys, "algorithm"])["is_correct"].mean().unstack("algorithm")
    solves, fails = (shares == 1).to_numpy(), (shares == 0).to_numpy()
    is_alone = (solves.sum(1) == 1) & (fails.sum(1) == len(algorithms) - 1) & (len(algorithms) > 1)
    outcome = np.where(fails.all(1), "all fail", "")
    only = np.array([f"only {name}" for name in algorithms])
    outcome = np.where(is_alone, only[solves.argmax(1)], outcome)
    found = pd.DataFrame({"outcome": outcome}, index=shares.index)[outcome != ""].reset_index()
    images = table.merge(found[keys], on=keys).groupby(keys)
    details = images["index"].agg(lambda values: values.iloc[0] if values.nunique() == 1 else -1).to_frame("index")
    details["n_runs"] = images.size()
    details["trial_seed"] = images["trial_seed"].min()
    wrong = images.obj[~images.obj["is_correct"]].groupby(keys)
    details["predicted"] = wrong["predicted"].agg(lambda values: values.mode().iloc[0])
    details["confidence"] = wrong["confidence"].mean()
    found = found.merge(details.reset_index(), on=keys, how="left")
    classes, environments = runs[0].classes, {run.run["test_env"]: run.run["environment"] for run in runs}
    found["environment"] = found["test_env"].map(environments)
    for name in ("label", "predicted"):
        found[name] = ["" if pd.isna(number) else classes[int(number)] for number in found[name]]
    return found[columns].sort_values(["test_env", "outcome", "index", "image"], ignore_index=True)


def count_images(runs: Sequence[Measured]) -> dict[str, int]:
    """Return the number of different test images in each environment, in trials in which all algorithms have runs.

    An image whose label depends on the trial counts once per label.
    """
    images: dict[str, set[tuple[str, int]]] = {}
    for of_task in _complete_tasks(runs, {run.run["algorithm"] for run in runs}).values():
        for run in of_task.values():
            labeled = zip(run.outputs.image.tolist(), run.outputs.labels.tolist(), strict=True)
            images.setdefault(run.run["environment"], set()).update(labeled)
    return {environment: len(labeled) for environment, labeled in images.items()}


def _complete_tasks(
    runs: Sequence[Measured], algorithms: Collection[str]
) -> dict[tuple[int, int], dict[str, Measured]]:
    """Return the runs by task and algorithm (`by_task`), without tasks that lack an algorithm."""
    return {task: of_task for task, of_task in by_task(runs).items() if set(of_task) == set(algorithms)}
