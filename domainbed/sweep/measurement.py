"""The costs of a kind of jobs that are measured when its algorithm is created."""

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from domainbed import predictions
from domainbed.engine.config import JobConfig
from domainbed.hparams import Hparams
from domainbed.sweep.job import Kind
from domainbed.sweep.step_times import StepTime

if TYPE_CHECKING:
    from domainbed.algorithms.base import Algorithm
    from domainbed.datasets import MultipleDomainDataset

TIMED_UPDATES = 2  # after one that is not timed
QUICK_LIMIT = 1.0  # seconds after which a launch starts no more timings
LONG_LIMIT = 60.0  # the same, with --estimate


class Measurement(NamedTuple):
    """The costs of a kind of jobs that are measured when its algorithm is created.

    Attributes:
        model_bytes: size of a saved model, or None if it is unknown.
        step_time: time per update, if it was timed.
        prediction_bytes: size of the saved predictions, at most, without the names of images; 0 if none are saved.
    """

    model_bytes: int | None
    step_time: StepTime | None
    prediction_bytes: int = 0


@dataclass(frozen=True)
class Timing:
    """Which kinds of jobs to time, and how.

    Attributes:
        kinds: the kinds whose time per update is unknown.
        limit: time in seconds after which no more timings are started.
        only_quick: whether to time small images on a CPU only.
    """

    kinds: Collection[Kind] = ()
    limit: float = 0.0
    only_quick: bool = True


def measure(
    config: JobConfig, hparams: Hparams, dataset: "MultipleDomainDataset", algorithm: "Algorithm", timing: Timing | None
) -> Measurement:
    """Measure what a job of this kind costs.

    Args:
        config: the job.
        hparams: its hyperparameters.
        dataset: its dataset.
        algorithm: its algorithm, on any device.
        timing: how to time updates, or None.
    """
    import torch

    from domainbed.registry import is_builtin

    model_bytes = None
    with suppress(Exception):  # the job reports it, if it fails for the same reason
        # As in the saved file, a tensor that has several names counts once.
        tensors = {id(t): t for t in algorithm.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)}
        model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    n_images = sum(map(len, dataset)) if config.save_predictions else 0
    prediction_bytes = predictions.file_size(n_images, dataset.num_classes)
    on_gpu = torch.cuda.is_available()
    is_quick = dataset.SMALL_IMAGES and not on_gpu
    step_time = None
    # Updates of other algorithms may do anything, such as never end.
    if timing and is_builtin(type(algorithm)) and (is_quick or not timing.only_quick):
        with suppress(Exception):
            step_time = StepTime(time_updates(config, hparams, dataset), 0, on_gpu)
    return Measurement(model_bytes, step_time, prediction_bytes)


def time_updates(config: JobConfig, hparams: Hparams, dataset: "MultipleDomainDataset") -> float:
    """Return the time per update of a job in seconds, on random images and one CPU thread.

    Updates are neither captured nor compiled.
    """
    import torch

    from domainbed.backbones import without_weights
    from domainbed.compute import set_precision
    from domainbed.engine.model import make_algorithm
    from domainbed.engine.steps import fuse_adam
    from domainbed.seeding import get_rng_state, set_rng_state

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n_threads, generators = torch.get_num_threads(), get_rng_state()
    torch.set_num_threads(1)  # as in a sweep with one worker per core
    try:
        with without_weights():
            algorithm = make_algorithm(config, hparams, dataset).to(device)
        set_precision(config.precision, algorithm)
        fuse_adam(algorithm, device)
        algorithm.train()
        shape, n_envs = (hparams["batch_size"], *dataset.input_shape), len(dataset) - len(config.test_envs)
        batches = [
            (torch.rand(shape, device=device), torch.randint(dataset.num_classes, shape[:1], device=device))
            for _ in range(n_envs)
        ]
        start = 0.0
        for step in range(1 + TIMED_UPDATES):
            if step == 1:
                _synchronize(device)
                start = time.perf_counter()
            algorithm.update(batches, None)
        _synchronize(device)
        return (time.perf_counter() - start) / TIMED_UPDATES
    finally:
        torch.set_num_threads(n_threads)
        set_rng_state(generators)


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
