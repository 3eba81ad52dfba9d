"""The contract of a dataset: a list of environments that says what an image and a label are, not how they are batched.

Nothing here or in the dataset files imports torch when imported: listing environments and making a sweep's grid stay
instant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from domainbed.hparams_registry import Hparams


@dataclass(frozen=True)
class ArrayEnvironment:
    """One environment whose images lie in memory.

    Attributes:
        images: [n, channels, height, width]; uint8 in 0..255, or floating point as the network shall see it.
        labels: [n], integers in 0..num_classes - 1.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"images [n, channels, height, width] and labels [n] are wanted, "
                f"not {self.images.shape} and {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)


class MultipleDomainDataset:
    """A dataset of several environments (domains) that share their classes.

    A dataset's constructor takes `(root, test_envs, hparams, trial_seed)` and sets `environments`. What it holds may
    depend on `trial_seed` and on nothing else of a job, so that all algorithms and hyperparameters of a trial see the
    same data.

    Args of every constructor:
        root: the user's data_dir, as given to `prepare`.
        test_envs: indices of the environments that are not trained on (photographs are not augmented there).
        hparams: the job's hyperparameters (for data_augmentation).
        trial_seed: the trial's number.
    """

    ENVIRONMENTS: ClassVar[list[str]]
    N_STEPS: ClassVar[int] = 5001
    CHECKPOINT_FREQ: ClassVar[int] = 100
    input_shape: tuple[int, int, int]
    num_classes: int
    environments: Sequence[ArrayEnvironment]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no constructor")

    @classmethod
    def prepare(cls, root: str | None) -> None:
        """See that the images are there (download them where that can be done); called before they are read.

        Raises:
            UsageError: they are not, with what to do about it.
        """

    def __getitem__(self, index: int) -> ArrayEnvironment:
        return self.environments[index]

    def __len__(self) -> int:
        return len(self.environments)

    def __iter__(self) -> Iterator[ArrayEnvironment]:
        return iter(self.environments)
