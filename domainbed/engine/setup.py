"""Everything that a job is trained with."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.averaging.base import Averaging, make_averaging
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches
from domainbed.engine.digest import code_digest
from domainbed.engine.feed import open_feed
from domainbed.engine.frozen import FeatureDataset, load_inputs
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.memory import keep_freed_memory
from domainbed.engine.model import load_initial_weights, make_algorithm, to_device
from domainbed.engine.predictions import PredictionLog
from domainbed.engine.steps import fuse_adam, should_capture
from domainbed.engine.tracking import Tracker, make_tracker
from domainbed.loading.base import Feed
from domainbed.loading.device_memory import explain_out_of_memory
from domainbed.loading.splits import Split
from domainbed.seeding import get_rng_state, seed_everything, set_rng_state


class Setup(NamedTuple):
    """Everything that a job is trained with, created from its configuration alone."""

    dataset: MultipleDomainDataset
    environments: list[str]
    splits: list[Split]
    device: torch.device
    algorithm: Algorithm
    averaging: Averaging
    feed: Feed
    batches: Batches
    tracker: Tracker | None
    predictions: PredictionLog | None
    is_captured: bool
    code: str | None

    @property
    def backbone_weights(self) -> str:
        """The hash of the weights of a frozen backbone, shortened as in records; "" if nothing is frozen."""
        return self.dataset.backbone_weights[:16] if isinstance(self.dataset, FeatureDataset) else ""


def set_up(config: JobConfig, should_stop: Callable[[], bool]) -> Setup:
    """Load the data, seed all random generators, and create the algorithm. Nothing is written but --cache.

    Raises:
        Interrupted: `should_stop` returned True.
    """

    def check_stop() -> None:
        if should_stop():
            raise Interrupted("stopped while preparing the data", updates=0)

    hparams = config.resolved_hparams()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    code = code_digest([ALGORITHMS[config.algorithm], config.dataset_class()])  # soon after it has been imported
    is_captured = should_capture(config.engine, device)
    set_determinism(config.deterministic)  # before features of a frozen backbone are extracted
    with explain_out_of_memory():
        dataset, splits = load_inputs(config, hparams, device, check_stop)
    if device.type == "cuda":
        gc.collect()  # objects of the previous job in this process
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        keep_freed_memory()
    seed_everything(config.seed)
    with explain_out_of_memory():
        algorithm = make_algorithm(config, hparams, dataset)
        load_initial_weights(algorithm, config)
        algorithm = to_device(algorithm, config, device)
        fuse_adam(algorithm, device)
        algorithm.train()
        averaging = make_averaging(config, algorithm)
        feed = open_feed(config, dataset, splits, device, check_stop)
    batches = Batches(config, hparams, dataset, splits, feed)
    tracker = make_tracker(config, algorithm, splits, feed)
    names = config.environment_names()
    predictions = PredictionLog(dataset, names, splits) if config.save_predictions else None
    return Setup(
        dataset, names, splits, device, algorithm, averaging, feed, batches, tracker, predictions, is_captured, code
    )


def set_determinism(is_required: bool) -> None:
    """Make cuDNN deterministic and, if required, reject all nondeterministic operations on a GPU."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # Read once per process, at the first matrix product on a GPU; a later job may require it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_required)


@contextmanager
def preserved_settings() -> Iterator[None]:
    """Restore the global random generators and the settings of torch that a job changes, at the end of the block."""
    cudnn, generators = torch.backends.cudnn, get_rng_state()
    settings = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    precision = torch.get_float32_matmul_precision()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = settings
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        set_rng_state(generators)
