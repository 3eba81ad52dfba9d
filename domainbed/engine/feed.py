"""Which feed brings a job's images to the device: arrays, a cache of photographs, or their files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from domainbed.datasets import ArrayEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.loading.arrays import ArrayFeed
from domainbed.loading.base import Feed
from domainbed.loading.image_cache import open_cached
from domainbed.loading.pack import Pack
from domainbed.loading.photo_feed import Files, Images, PhotoEnvironment, PhotoFeed
from domainbed.loading.residence import move_to_device
from domainbed.loading.splits import Split

MOST_WORKERS = 8  # more than a GPU asks for


def open_feed(config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], device: torch.device) -> Feed:
    """What brings the dataset's images to the device.

    Raises:
        UsageError: they can't be read.
    """
    arrays = [e for e in dataset if isinstance(e, ArrayEnvironment)]
    photographs = [e for e in dataset if isinstance(e, FileEnvironment)]
    if not photographs:
        return ArrayFeed([e.images for e in arrays], [e.labels for e in arrays], device, config.resident_gb)
    if arrays:
        raise UsageError(f"the environments of {config.dataset} must all be arrays, or all be files")

    # Real paths: the same files have the same cache, however the user came to them.
    files = [[f"{folder}/{file}" for file in e.files] for e in photographs for folder in [os.path.realpath(e.folder)]]
    images, are_on_device = _images(config, files, device)
    environments = [
        PhotoEnvironment(images[i], files[i], photographs[i].labels, part_numbers(split))
        for i, split in enumerate(splits)
    ]
    workers = 0 if are_on_device else loader_workers(config.loader_workers, device)
    return PhotoFeed(environments, dataset.input_shape[1:], device, workers, config.on_bad_image == "skip")


def _images(config: JobConfig, files: Sequence[Sequence[str]], device: torch.device) -> tuple[Sequence[Images], bool]:
    """Where each environment's images are read from, and whether that is the device itself."""
    packs = None
    if config.cache:
        names = [f"{config.dataset}-{name}" for name in config.environment_names()]
        packs = open_cached(Path(config.cache), config.cache_gb, dict(zip(names, files, strict=True)))
    if packs is None:
        return [Files(of_environment) for of_environment in files], False
    if device.type == "cpu" or not all(pack.is_decoded for pack in packs):
        return packs, False

    def move(device: torch.device) -> list[Pack]:
        return [pack.to(device) for pack in packs]

    moved = move_to_device(move, sum(pack.n_bytes for pack in packs), device, config.resident_gb)
    return moved or packs, moved is not None


def part_numbers(split: Split) -> np.ndarray:
    """For each image of an environment, the number of the part that it belongs to."""
    numbers = np.zeros(sum(map(len, split.parts().values())), dtype=np.int8)
    for number, indices in enumerate(split.parts().values()):
        numbers[indices] = number
    return numbers


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """How many processes read ahead: what is wanted or, beside a GPU, one for each core that this job may use.

    Without a GPU the network itself keeps the cores busy.
    """
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else min(MOST_WORKERS, torch.get_num_threads())
