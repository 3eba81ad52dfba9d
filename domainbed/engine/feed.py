"""The feed of a job: brings images to the device from arrays, features, a cache of photographs, or image files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from domainbed.datasets import ArrayEnvironment, FeatureEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.frozen import FeatureDataset
from domainbed.errors import UsageError
from domainbed.loading.arrays import ArrayFeed
from domainbed.loading.base import Feed
from domainbed.loading.device_memory import move_to_device
from domainbed.loading.features import FeatureFeed
from domainbed.loading.image_cache import open_cached
from domainbed.loading.pack import Pack
from domainbed.loading.photo_feed import FileImages, ImageSource, PhotoEnvironment, PhotoFeed
from domainbed.loading.splits import Split

MAX_LOADER_WORKERS = 8  # more than a GPU needs


def open_feed(
    config: JobConfig,
    dataset: MultipleDomainDataset,
    splits: Sequence[Split],
    device: torch.device,
    check_stop: Callable[[], object] = lambda: None,
) -> Feed:
    """Return the feed that brings the dataset's images to the device.

    Args:
        config: the job.
        dataset: its dataset.
        splits: the split of each environment.
        device: the device of the batches.
        check_stop: called many times per second while the cache is filled, which it stops by raising an exception.

    Raises:
        UsageError: the images cannot be read.
    """
    if isinstance(dataset, FeatureDataset):
        features = [environment for environment in dataset if isinstance(environment, FeatureEnvironment)]
        return FeatureFeed([e.views for e in features], [e.labels for e in features], device, config.resident_gb)
    arrays = [e for e in dataset if isinstance(e, ArrayEnvironment)]
    photographs = [e for e in dataset if isinstance(e, FileEnvironment)]
    if not photographs:
        return ArrayFeed([e.images for e in arrays], [e.labels for e in arrays], device, config.resident_gb)
    if arrays:
        raise UsageError(f"the environments of {config.dataset} must be either all arrays or all files")

    # Resolve links, so that the same files always use the same cache.
    files = [[f"{folder}/{file}" for file in e.files] for e in photographs for folder in [os.path.realpath(e.folder)]]
    sources, are_on_device = _image_sources(config, files, device, check_stop)
    environments = [
        PhotoEnvironment(source, paths, e.labels, part_numbers(split), e.is_cropped, e.is_resized_first)
        for source, paths, e, split in zip(sources, files, photographs, splits, strict=True)
    ]
    workers = 0 if are_on_device else num_loader_workers(config.loader_workers, device)
    return PhotoFeed(environments, dataset.input_shape[1:], device, workers, config.on_bad_image == "skip")


def _image_sources(
    config: JobConfig, files: Sequence[Sequence[str]], device: torch.device, check_stop: Callable[[], object]
) -> tuple[Sequence[ImageSource], bool]:
    """Return the source of each environment's images, and whether the sources are on the device."""
    packs = None
    if config.cache:
        names = [f"{config.dataset}-{name}" for name in config.environment_names()]
        packs = open_cached(Path(config.cache), config.cache_gb, dict(zip(names, files, strict=True)), check_stop)
    if packs is None:
        return [FileImages(environment_files) for environment_files in files], False
    if device.type == "cpu" or not all(pack.is_decoded for pack in packs):
        return packs, False
    if config.deterministic:  # a GPU resizes with other rounding, and whether they fit depends on its free memory
        return packs, False

    def move(device: torch.device) -> list[Pack]:
        return [pack.to(device) for pack in packs]

    moved = move_to_device(move, sum(pack.n_bytes for pack in packs), device, config.resident_gb)
    return moved or packs, moved is not None


def part_numbers(split: Split) -> np.ndarray:
    """Return the number [images] of the part (in, out, …) that each image of an environment belongs to."""
    numbers = np.zeros(sum(map(len, split.parts().values())), dtype=np.int8)
    for number, indices in enumerate(split.parts().values()):
        numbers[indices] = number
    return numbers


def num_loader_workers(requested: int | None, device: torch.device) -> int:
    """Return the number of processes that read photographs ahead.

    By default, that is one per core of this job with a GPU, and none without, because the network occupies the cores.
    """
    if requested is not None:
        return requested
    return 0 if device.type == "cpu" else min(MAX_LOADER_WORKERS, torch.get_num_threads())
