"""The selected runs of a sweep with their predictions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from domainbed.predictions import NOT_EVALUATED, PREDICTIONS_FILE, DamagedError, Predictions, load_predictions
from domainbed.terminal import ProgressBar


@dataclass(frozen=True)
class Outputs:
    """The predictions of a model on n images.

    Attributes:
        log_probabilities: `[n, classes]`, float16.
        predicted: `[n]`.
        labels: `[n]`.
        index: `[n]`, the number of each image in its environment.
        image: `[n]`, its name.
    """

    log_probabilities: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    image: np.ndarray

    @property
    def is_correct(self) -> np.ndarray:
        return self.predicted == self.labels

    def take(self, rows: np.ndarray) -> "Outputs":
        """Return the predictions on the images at these positions."""
        return Outputs(*(getattr(self, f.name)[rows] for f in fields(self)))

    def without_probabilities(self) -> "Outputs":
        """Return the predictions without their probabilities, which take most of the memory."""
        return replace(self, log_probabilities=np.zeros((len(self.labels), 0), np.float16))


@dataclass(frozen=True)
class Run:
    """A run with the predictions of the record that a selection method selected.

    Attributes:
        dataset, algorithm, test_env, trial_seed, hparams_seed: the run.
        environment: the name of its test environment.
        classes: the names of the classes.
        test: on the in split of the test environment, whose accuracy tables report.
        unseen: on all evaluated images of the test environment.
        validation: on the out splits of the training environments, pooled. Their `index` counts in all
            environments: 2**32 times the environment, plus the number in it.
    """

    dataset: str
    algorithm: str
    test_env: int
    trial_seed: int
    hparams_seed: int
    environment: str
    classes: tuple[str, ...]
    test: Outputs
    unseen: Outputs
    validation: Outputs


def load_runs(
    sweep_dir: Path, selected: pd.DataFrame, environments: Sequence[str], warn: Callable[[str], object]
) -> Iterator[Run]:
    """Yield the selected runs that have predictions, one at a time.

    A file that is damaged, or does not belong to its records, is reported and skipped.

    Args:
        sweep_dir: the sweep's folder.
        selected: rows of `Sweep.select`, of one dataset.
        environments: the printed names of the dataset's environments.
        warn: called with one line per file that is skipped.
    """
    for row in ProgressBar(selected.to_dict("records"), "reading predictions", unit="run", leave=False, delay=2):
        folder = sweep_dir / row["folder"]
        try:
            predictions = load_predictions(folder)
        except FileNotFoundError:
            continue  # counted by the caller
        except (OSError, DamagedError) as error:
            warn(f"{folder / PREDICTIONS_FILE}: {error}; skipped")
            continue
        if isinstance(run := _make_run(predictions, row, environments[row["test_env"]]), str):
            warn(f"{folder / PREDICTIONS_FILE}: {run}; skipped")
        else:
            yield run


def _make_run(predictions: Predictions, row: dict[str, Any], environment: str) -> Run | str:
    """Return the run of a row of a selection, or the reason if the predictions are not those of its record."""
    env, step = row["test_env"], row["step"]
    if (position := predictions.position(step)) is None:
        saved = " and ".join(map(str, predictions.steps.tolist()))
        return f"it has predictions of step {saved}, not of step {step}, which was selected"
    if env >= len(predictions.environments):
        return f"it has no environment {env}"
    test = predictions.rows(position, env, "in")
    if not len(test) or predictions.accuracy(position, test) != row["test_acc"]:
        found = f"{predictions.accuracy(position, test):.4f}" if len(test) else "missing"
        return f"its accuracy on the test environment is {found}, and that in the record is {row['test_acc']:.4f}"
    training = [i for i in range(len(predictions.environments)) if i != env]
    validation = np.concatenate([predictions.rows(position, i, "out") for i in training])
    if not len(validation):
        return "it has no predictions on the out splits of training environments"
    is_evaluated = predictions.predicted[position] != NOT_EVALUATED
    unseen = np.flatnonzero((predictions.environment == env) & is_evaluated)
    number = predictions.environment.astype(np.int64) * 2**32 + predictions.index

    def outputs(rows: np.ndarray) -> Outputs:
        return Outputs(
            predictions.log_probabilities[position, rows],
            predictions.predicted[position, rows],
            predictions.label[rows],
            predictions.index[rows],
            predictions.image[rows],
        )

    return Run(
        **{name: row[name] for name in ("dataset", "algorithm", "test_env", "trial_seed", "hparams_seed")},
        environment=environment,
        classes=predictions.classes,
        test=outputs(test),
        unseen=outputs(unseen),
        validation=replace(outputs(validation), index=number[validation]),
    )


def find_common(members: Sequence[Outputs]) -> list[np.ndarray] | None:
    """Return the rows of the images that all members have, in the same order for each member.

    None if images of the same index differ, as in environments whose images depend on the trial.
    """
    common = members[0].index
    for member in members[1:]:
        common = np.intersect1d(common, member.index)
    rows = [np.searchsorted(member.index, common) for member in members]
    first = members[0]
    for member, positions in zip(members, rows, strict=True):
        is_same = member.labels[positions] == first.labels[rows[0]]
        if not (is_same & (member.image[positions] == first.image[rows[0]])).all():
            return None
    return rows
