"""Collects the predictions of an evaluation, and saves those that model selection may choose (`--save_predictions`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from domainbed.algorithms.base import predicted_classes
from domainbed.datasets import MultipleDomainDataset
from domainbed.errors import UsageError, printable
from domainbed.loading.base import Request
from domainbed.loading.splits import Split
from domainbed.predictions import (
    MIN_LOG_PROBABILITY,
    NOT_EVALUATED,
    PARTS,
    PREDICTIONS_FILE,
    DamagedError,
    Predictions,
    load_predictions,
    save_predictions,
)


class PredictionLog:
    """The predictions of the current evaluation. The images of a job have one row each, environment by environment.

    Args:
        dataset: the job's dataset.
        environments: the names of its environments.
        splits: the split of each environment.
    """

    def __init__(self, dataset: MultipleDomainDataset, environments: Sequence[str], splits: Sequence[Split]) -> None:
        self._environments = tuple(environments)
        self._classes = tuple(map(str, dataset.class_names or range(dataset.num_classes)))
        self._starts = np.cumsum([0, *map(len, dataset)])
        self._environment = np.repeat(np.arange(len(dataset), dtype=np.int16), np.diff(self._starts))
        self._index = np.concatenate([np.arange(len(environment), dtype=np.int32) for environment in dataset])
        self._label = np.concatenate([environment.labels for environment in dataset]).astype(np.int32)
        names = [environment.image_names or list(map(str, range(len(environment)))) for environment in dataset]
        self._image = np.concatenate([np.array(of_environment, dtype=str) for of_environment in names])
        self._part = np.zeros(len(self._label), dtype=np.uint8)
        for start, split in zip(self._starts, splits, strict=False):
            for part, indices in split.parts().items():
                self._part[start + indices] = PARTS.index(part)
        self._rows: list[np.ndarray] = []
        self._outputs: list[tuple[torch.Tensor, ...]] = []

    @torch.no_grad()
    def add(self, request: Request, logits: torch.Tensor) -> None:
        """Add the logits [n, classes] of requested images. They stay on their device until `save`.

        Raises:
            UsageError: there are not as many logits as classes.
        """
        if logits.shape[1] != len(self._classes) and (logits.shape[1], len(self._classes)) != (1, 2):
            raise UsageError(
                f"--save_predictions requires a logit of each of the {len(self._classes)} classes, but the algorithm "
                f"returns {logits.shape[1]}; launch without it"
            )
        predicted = predicted_classes(logits).int()
        logits = logits.float()
        if logits.shape[1] == 1:  # the logit of class 1; that of class 0 is zero
            logits = F.pad(logits, (1, 0))
        logarithms = F.log_softmax(logits, 1).clamp(min=MIN_LOG_PROBABILITY).half()
        self._rows.append(self._starts[request.env] + request.indices)
        self._outputs.append((predicted, logarithms, logits.logsumexp(1)))

    def clear(self) -> None:
        """Forget the predictions of an evaluation."""
        self._rows, self._outputs = [], []

    def save(self, folder: Path, step: int, best_step: int) -> None:
        """Write the predictions of this evaluation, and keep those of the best one in the file.

        Args:
            folder: the job's folder.
            step: the step of this evaluation.
            best_step: the step of the evaluation with the best validation accuracy so far; the same if it is this one.
        """
        slices = {step: self._collect()}
        if best_step != step:
            if (best := self._load(folder, best_step)) is not None:
                slices[best_step] = best
            else:
                tqdm.write(
                    f"{folder / PREDICTIONS_FILE} lacks the predictions of step {best_step}, the best by validation "
                    "accuracy; it will have those of the last step only"
                )
        steps = sorted(slices)
        predicted, logarithms, logsumexp = (
            np.stack(arrays) for arrays in zip(*(slices[step] for step in steps), strict=True)
        )
        is_kept = (predicted != NOT_EVALUATED).any(0)
        saved = Predictions(
            self._environments,
            self._classes,
            self._environment[is_kept],
            self._index[is_kept],
            self._image[is_kept],
            self._part[is_kept],
            self._label[is_kept],
            np.array(steps, dtype=np.int64),
            predicted[:, is_kept],
            logarithms[:, is_kept],
            logsumexp[:, is_kept],
        )
        save_predictions(folder, saved)

    def _empty(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the arrays of an evaluation without images: predicted, log_probabilities, logsumexp."""
        n, n_classes = len(self._label), len(self._classes)
        return (
            np.full(n, NOT_EVALUATED, dtype=np.int32),
            np.full((n, n_classes), np.nan, dtype=np.float16),
            np.full(n, np.nan, dtype=np.float32),
        )

    def _collect(self) -> tuple[np.ndarray, ...]:
        """Return the arrays of this evaluation."""
        arrays = self._empty()
        rows = np.concatenate(self._rows)
        for array, batches in zip(arrays, zip(*self._outputs, strict=True), strict=True):
            array[rows] = torch.cat(batches).cpu().numpy()
        return arrays

    def _load(self, folder: Path, step: int) -> tuple[np.ndarray, ...] | None:
        """Return the arrays of an earlier evaluation in the file, or None if it does not have them."""
        try:
            saved = load_predictions(folder)
        except (OSError, DamagedError):
            return None
        position = saved.position(step)
        names = (self._environments, self._classes)
        if position is None or (saved.environments, saved.classes) != tuple(tuple(map(printable, n)) for n in names):
            return None
        arrays = self._empty()
        rows = self._starts[saved.environment] + saved.index
        if rows.size and rows.max() >= len(self._label):
            return None
        for array, values in zip(arrays, (saved.predicted, saved.log_probabilities, saved.logsumexp), strict=True):
            array[rows] = values[position]
        return arrays
