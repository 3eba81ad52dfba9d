"""Ensembles of saved models: averages of their weights or logits, evaluated as a job evaluates its model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.compute import set_precision
from domainbed.engine.averaging.base import RunningMean
from domainbed.engine.config import JobConfig
from domainbed.engine.data import evaluation_requests, validation_requests
from domainbed.engine.evaluate import split_means
from domainbed.engine.feed import open_feed
from domainbed.engine.frozen import check_backbone, load_inputs
from domainbed.engine.model import load_model
from domainbed.engine.setup import set_determinism
from domainbed.errors import UsageError


class Evaluation(NamedTuple):
    """The evaluation of an ensemble.

    Attributes:
        members: positions of the models in the ensemble, in the order in which they were included.
        accuracies: the accuracy on each split, by its name in records.
        test_accuracy: the accuracy on all images of the test environments, as published for DiWA and EoA.
        bad_images: number of broken images replaced.
    """

    members: list[int]
    accuracies: dict[str, float]
    test_accuracy: float
    bad_images: int


class MeanLogits(Algorithm):
    """Predicts the mean of the logits of several models."""

    def __init__(self, models: Sequence[Algorithm]) -> None:
        nn.Module.__init__(self)
        self.models = nn.ModuleList(models)
        sizes = [model.EVAL_BATCH_SIZE for model in models if model.EVAL_BATCH_SIZE]
        self.EVAL_BATCH_SIZE = min(sizes, default=None)  # type: ignore[misc]

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([model.predict(x) for model in self.models]).mean(0)  # type: ignore[operator]


@torch.no_grad()
def average_weights(
    paths: Sequence[Path], load: Callable[[Path], Algorithm], validate: Callable[[Algorithm], float] | None = None
) -> tuple[Algorithm, list[int]]:
    """Return a model with the uniform mean of the parameters of saved models, and the positions of those included.

    Buffers are those of the first model.

    Args:
        paths: the models.
        load: loads a model.
        validate: if given, the first model is included, and of the others, in this order, those with which the mean has
            at least the best validation accuracy so far.

    Raises:
        UsageError: a model cannot be loaded, or is of another network than the first.
    """
    average = load(paths[0])
    parameters: list[torch.Tensor] = list(average.parameters())
    mean = RunningMean(parameters, 1)
    best = validate(average) if validate else 0.0
    included = [0]
    for i, path in enumerate(paths[1:], 1):
        others = list(load(path).parameters())
        if [p.shape for p in others] != [p.shape for p in parameters]:
            raise UsageError(f"cannot average {path} with {paths[0]}: their networks differ")
        candidate = RunningMean(mean.tensors, mean.count)
        candidate.add(others)
        if validate:
            torch._foreach_copy_(parameters, candidate.tensors)
            if (accuracy := validate(average)) < best:
                continue
            best = accuracy
        mean = candidate
        included.append(i)
    torch._foreach_copy_(parameters, mean.tensors)
    return average, included


def evaluate_ensemble(
    config: JobConfig, paths: Sequence[Path], averages_weights: bool, is_restricted: bool
) -> Evaluation:
    """Combine saved models, and evaluate the result on the splits of a job; see `average_weights`.

    Args:
        config: the job.
        paths: the models.
        averages_weights: whether to average weights; otherwise logits.
        is_restricted: whether to include only models that do not lower the accuracy on the pooled out splits of the
            training environments, without augmentation.

    Raises:
        UsageError: the data or a model cannot be used.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_determinism(config.deterministic)
    dataset, splits = load_inputs(config, config.resolved_hparams(), device)
    feed = open_feed(config, dataset, splits, device)

    def validate(model: Algorithm) -> float:
        set_precision(config.precision, model)
        requests = validation_requests(config, splits, model.EVAL_BATCH_SIZE or feed.batch_size)
        return split_means(model, feed, [("out", request) for _, request in requests])["out"]

    def load(path: Path) -> Algorithm:
        model = load_model(path, device)
        check_backbone(model.metadata, dataset, path)
        return model.algorithm

    if averages_weights:
        model, members = average_weights(paths, load, validate if is_restricted else None)
    else:
        model, members = MeanLogits([load(path) for path in paths]), list(range(len(paths)))
    set_precision(config.precision, model)
    batch_size = model.EVAL_BATCH_SIZE or feed.batch_size
    requests = list(evaluation_requests(config, dataset, splits, config.steps - 1, batch_size))
    accuracies = split_means(model, feed, requests)
    images = {name: 0 for name, request in requests if request.env in config.test_envs}
    for name, request in requests:
        if name in images:
            images[name] += len(request.indices)
    correct = sum(accuracies[name] * n for name, n in images.items())
    return Evaluation(members, accuracies, correct / sum(images.values()), len(feed.bad_images))


def as_record(config: JobConfig, evaluation: Evaluation, **args: Any) -> dict[str, Any]:
    """Return the record of an ensemble, with further `args`."""
    return {
        "step": config.steps - 1,
        "epoch": 0.0,
        **evaluation.accuracies,
        "test_accuracy": evaluation.test_accuracy,
        "bad_images": evaluation.bad_images,
        "step_time": 0.0,
        "mem_gb": 0.0,
        "environments": config.environment_names(),
        "args": {**config.args(), **args},
        "hparams": {},
    }
