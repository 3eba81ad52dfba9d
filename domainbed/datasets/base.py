"""The contract of a dataset: a list of environments that says what an image and a label are, not how they are batched.

Nothing here or in the dataset files imports torch when imported: listing environments and making a sweep's grid stay
instant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

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
    augmented: ClassVar[bool] = False  # only photographs are

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"images [n, channels, height, width] and labels [n] are wanted, "
                f"not {self.images.shape} and {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FileEnvironment:
    """One environment whose images are files, of any size, to be seen at the dataset's `input_shape`.

    Attributes:
        folder: where the files lie.
        files: [n], paths relative to `folder`.
        labels: [n], integers in 0..num_classes - 1.
        augmented: whether the published protocol shows its images augmented (in training and in evaluation alike).
    """

    folder: Path
    files: Sequence[str]
    labels: np.ndarray
    augmented: bool

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.files),):
            raise ValueError(f"there are {len(self.files)} files, but labels {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)


Environment: TypeAlias = ArrayEnvironment | FileEnvironment


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
    environments: Sequence[Environment]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no constructor")

    @classmethod
    def environment_names(cls, root: str | None) -> list[str]:
        """The environments' names. Most datasets know them; one that is read from a tree has to look.

        Raises:
            UsageError: they are to be read, and can't be.
        """
        return cls.ENVIRONMENTS

    @classmethod
    def prepare(cls, root: str | None) -> None:
        """See that the images are there (download them where that can be done); called before they are read.

        Raises:
            UsageError: they are not, with what to do about it.
        """

    def __getitem__(self, index: int) -> Environment:
        return self.environments[index]

    def __len__(self) -> int:
        return len(self.environments)

    def __iter__(self) -> Iterator[Environment]:
        return iter(self.environments)
