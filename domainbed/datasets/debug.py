"""Debug28 and Debug224: random images with random labels, on which DomainBed's own tests train."""

from collections.abc import Sequence

import numpy as np

from domainbed.datasets.base import SIZE, ArrayEnvironment, MultipleDomainDataset
from domainbed.hparams import Hparams
from domainbed.seeding import seed_hash

N_IMAGES = 16


class Debug(MultipleDomainDataset):
    """Three environments of 16 images, of N(0, 1) pixels and two classes, so there is nothing to learn."""

    ENVIRONMENTS = ["0", "1", "2"]
    num_classes = 2

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        rng = np.random.RandomState(seed_hash(trial_seed))
        self.environments = [
            ArrayEnvironment(
                rng.standard_normal((N_IMAGES, *self.input_shape)).astype(np.float32),
                rng.randint(0, self.num_classes, N_IMAGES).astype(np.int64),
            )
            for _ in self.ENVIRONMENTS
        ]


class Debug28(Debug):
    """3x28x28, with the hyperparameters of small images."""

    SMALL_IMAGES = True
    input_shape = (3, 28, 28)


class Debug224(Debug):
    """3x224x224, with the hyperparameters of photos."""

    input_shape = (3, *SIZE)
