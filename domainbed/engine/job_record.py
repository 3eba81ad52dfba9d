"""The record of an evaluation of a job."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from domainbed.engine.algorithm_checks import recorded_hparams
from domainbed.engine.algorithm_errors import step_place
from domainbed.engine.averaging.base import Averaging, Images
from domainbed.engine.checkpoint import Progress
from domainbed.engine.config import JobConfig
from domainbed.engine.data import evaluation_requests, validation_requests
from domainbed.engine.evaluate import cross_entropy, split_means
from domainbed.engine.metrics import NonFiniteError, check_weights
from domainbed.engine.setup import Setup
from domainbed.engine.tracking import tracked_entries
from domainbed.loading.base import Request
from domainbed.records import EVALUATED_ONCE, SELECTIVE, read_job, records_length, validation_accuracy


def make_record(
    config: JobConfig,
    setup: Setup,
    progress: Progress,
    earlier: Mapping[str, Any] | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return the record of the last update's step. With averaging, it describes the average, except for the metrics.

    Args:
        config: the job.
        setup: what it is trained with.
        progress: its position, between an update and its evaluation.
        earlier: its best record so far (`best_earlier_record`).
        before_batch: as in `split_means`.

    Raises:
        NonFiniteError: training diverged.
    """
    algorithm, averaging, feed, tracker = setup.algorithm, setup.averaging, setup.feed, setup.tracker
    step = progress.step - 1
    metrics = progress.metrics.mean()  # synchronizes, so that the time below includes all of the device's work
    progress.add_time()
    check_weights(algorithm, step)
    batch_size = algorithm.EVAL_BATCH_SIZE or feed.batch_size
    place = f"evaluation after {step_place(algorithm, step)}"
    losses: dict[str, float] = {}
    if averaging.NEEDS_LOSS:
        requests = validation_requests(config, setup.splits, batch_size)
        losses = split_means(
            algorithm, feed, requests, before_batch, cross_entropy, place, n_classes=setup.dataset.num_classes
        )
        if infinite := {name: loss for name, loss in losses.items() if not math.isfinite(loss)}:
            raise NonFiniteError(step, " and ".join(f"{name} is {loss}" for name, loss in infinite.items()))
    averaging.end_interval(step, fmean(losses.values()) if losses else math.nan)
    requests = evaluation_requests(config, setup.dataset, setup.splits, step, batch_size)
    n_classes = setup.dataset.num_classes
    measure = partial(split_means, algorithm, feed, before_batch=before_batch, place=place, n_classes=n_classes)
    if setup.predictions:
        measure = partial(measure, observe=setup.predictions.add)
    with averaging.applied(final_images(config, setup, progress)):
        if config.eval in SELECTIVE:
            accuracies = measure_needed(config, averaging, step, list(requests), earlier, measure)
        else:
            accuracies = measure(requests)
        if setup.device.type == "cuda":
            progress.peak_memory = max(progress.peak_memory, torch.cuda.max_memory_allocated())
        tracked = tracked_entries(tracker) if tracker else {}
        if tracker and setup.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
    steps_per_epoch = min(len(split.in_) for split in setup.splits) / algorithm.hparams["batch_size"]
    return {
        "step": step,
        "epoch": step / steps_per_epoch,
        **metrics,
        **losses,
        **accuracies,
        "bad_images": len(feed.bad_images),
        "step_time": progress.seconds / config.updates_since_evaluation(step),
        "mem_gb": progress.peak_memory / 2**30,  # without the tracker's
        **tracked,
        **({"ended_early": True} if averaging.has_ended and step < config.steps - 1 else {}),
        **({"code": setup.code} if setup.code else {}),
        **({"backbone_weights": setup.backbone_weights} if setup.backbone_weights else {}),
        "environments": setup.environments,
        "args": config.args(),
        "hparams": recorded_hparams(algorithm),
    }


def measure_needed(
    config: JobConfig,
    averaging: Averaging,
    step: int,
    requests: Sequence[tuple[str, Request]],
    earlier: Mapping[str, Any] | None,
    measure: Callable[[Iterable[tuple[str, Request]]], dict[str, float]],
) -> dict[str, float]:
    """Return the accuracies that a built-in selection method can still read, whatever happens later in the job.

    Args:
        config: the job; its `eval` is one of `records.SELECTIVE`.
        averaging: the scheme, whose interval has ended.
        step: the last update's step.
        requests: those of all splits (`evaluation_requests`).
        earlier: the job's best record so far (`best_earlier_record`).
        measure: returns the accuracies on the splits of these requests.
    """
    accuracies = measure(r for r in requests if r[1].env not in config.test_envs)
    parts: tuple[str, ...] = ()
    if step == config.steps - 1 or averaging.has_ended:
        parts = ("in", "out")
    elif config.averaging in EVALUATED_ONCE:
        pass  # only the last record counts
    elif config.eval == "leave_one_out" or improves_validation({"args": config.args(), **accuracies}, earlier):
        parts = ("in",)
    names = {f"env{env}_{part}_acc" for env in config.test_envs for part in parts}
    return accuracies | measure(r for r in requests if r[0] in names)


def final_images(config: JobConfig, setup: Setup, progress: Progress) -> Images | None:
    """Return a reader of the batches after the last update, as one tensor of images each; None before the end."""
    step = progress.step
    if step < config.steps and not setup.averaging.has_ended:
        return None

    def read(n: int) -> Iterator[torch.Tensor]:
        for minibatches, _ in setup.batches.steps(step, step + n):
            yield torch.cat([x for x, _ in minibatches])

    return read


def best_earlier_record(config: JobConfig) -> Mapping[str, Any] | None:
    """Return the best record by training-domain that the job has written, of equals the earliest.

    Returns:
        None if there is none, or nothing that the job saves or evaluates depends on it.
    """
    if not (config.save_best_model or config.save_predictions or config.eval == "selection"):
        return None
    folder = Path(config.output_dir)
    records = read_job(folder)[0] if records_length(folder) else []
    return max(records, key=validation_accuracy, default=None)


def improves_validation(record: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> bool:
    """Return whether a record is better, by training-domain, than the best earlier one."""
    return earlier is None or validation_accuracy(record) > validation_accuracy(earlier)
