"""Images as training sees them, from the same feed as a job's batches."""

from collections.abc import Sequence

import numpy as np
import torch

from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.feed import open_feed
from domainbed.inspection.reader import ImageReader, raw_values
from domainbed.loading.base import Request
from domainbed.loading.splits import Split
from domainbed.seeding import seed_hash


class TrainingViews:
    """The views of images that a job's first steps could see.

    Args:
        config: the job; its seed selects the augmentation.
        dataset: its dataset.
        reader: of the images of the same dataset.
    """

    def __init__(self, config: JobConfig, dataset: MultipleDomainDataset, reader: ImageReader) -> None:
        nothing = np.arange(0)
        splits = [Split(np.arange(len(environment)), nothing, nothing) for environment in reader.environments]
        self._feed = open_feed(config, dataset, splits, torch.device("cpu"))
        self._environments = reader.environments
        self._seed = config.seed

    def of_images(self, env: int, images: Sequence[int], n_augmented: int) -> list[np.ndarray]:
        """Return the views of each image: as in evaluation without augmentation, then augmented.

        Args:
            env: an environment whose images are augmented.
            images: indices of images that can be read.
            n_augmented: the number of augmented views.

        Returns:
            For each image, [views, channels, height, width], with the values of `raw_values`.
        """
        if not images:
            return []
        key = seed_hash("augmentation", self._seed, env)  # as in engine.data.Batches
        requests = [Request(env, np.array(images)), Request(env, np.repeat(images, n_augmented), key)]
        (batches,) = self._feed.batches([requests])
        plain, augmented = (raw_values(self._environments[env], x) for x, _ in batches)
        return [
            np.concatenate([plain[i : i + 1], augmented[i * n_augmented : (i + 1) * n_augmented]])
            for i in range(len(images))
        ]
