"""The interface of a dataset: a list of environments. It defines images and labels, not how they are batched.

Importing this module or a dataset's module does not import torch, so listing environments and building the grid of a
sweep are fast.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from domainbed.errors import UsageError
from domainbed.hparams import Hparams

if TYPE_CHECKING:
    import torch

SIZE = (224, 224)  # height and width of photos as networks receive them


def _as_int64(labels: np.ndarray) -> np.ndarray:
    """Return labels in the type that losses require; others than integers, which are errors, as they are."""
    return labels.astype(np.int64, copy=False) if np.issubdtype(labels.dtype, np.integer) else labels


@dataclass(frozen=True)
class ArrayEnvironment:
    """An environment of images in memory, which are never augmented.

    Attributes:
        images: [n, channels, height, width]; uint8 in 0..255, or floating point, passed to the network unchanged.
        labels: [n], integers in 0..num_classes - 1.
        sources: [n], the number of each image in the set of images that environments are made of, if their assignment
            to environments depends on the trial; None if an environment always has the same images.
    """

    images: np.ndarray
    labels: np.ndarray
    sources: np.ndarray | None = None
    is_augmented: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (isinstance(self.images, np.ndarray) and isinstance(self.labels, np.ndarray)):
            found = f"{type(self.images).__name__} and {type(self.labels).__name__}"
            raise TypeError(f"images and labels must be NumPy arrays, not {found}")
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"expected images [n, channels, height, width] and labels [n], "
                f"got {self.images.shape} and {self.labels.shape}"
            )
        object.__setattr__(self, "labels", _as_int64(self.labels))

    @property
    def image_names(self) -> list[str] | None:
        """A name of each image that is the same in all trials; None if its index is."""
        return None if self.sources is None else list(map(str, self.sources.tolist()))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> "tuple[torch.Tensor, int]":
        """Return an image as the network receives it, float [channels, height, width], and its label."""
        import torch

        image = torch.from_numpy(self.images[i])
        return image.div(255) if image.dtype == torch.uint8 else image.float(), int(self.labels[i])


@dataclass(frozen=True)
class FileEnvironment:
    """An environment of image files of any size, which are resized to the dataset's `input_shape`.

    Attributes:
        folder: the folder that `files` are relative to.
        files: [n], relative paths.
        labels: [n], integers in 0..num_classes - 1.
        is_augmented: whether images are augmented, in training and (as in the published protocol) in evaluation.
        is_cropped: whether the augmentation includes random crops.
        is_resized_first: whether images are resized before the augmentation, too, and not only by it.
        groups: [n], what each image belongs to, such as a patient (text or integers); None if that is unknown.
            `--split_by group` keeps all images of a group in one split.
    """

    folder: Path
    files: Sequence[str]
    labels: np.ndarray
    is_augmented: bool
    is_cropped: bool = True
    is_resized_first: bool = False
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, values in (("labels", self.labels), ("groups", self.groups)):
            if values is not None and values.shape != (len(self.files),):
                raise ValueError(f"expected {name} [{len(self.files)}], one per file, got {values.shape}")
        object.__setattr__(self, "labels", _as_int64(self.labels))

    @property
    def image_names(self) -> list[str]:
        """The path of each image, relative to `folder`."""
        return list(self.files)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> "tuple[torch.Tensor, int]":
        """Return an image as the network receives it, but not augmented, float [3, *SIZE], and its label.

        Raises:
            UsageError: the image cannot be read.
        """
        from domainbed.loading.augmentation import normalize, resized_crop  # imports torch
        from domainbed.loading.photo_feed import FileImages

        image = FileImages([str(self.folder / self.files[i])])[0]
        resized = resized_crop(image, (0, 0, *image.shape[:2]), SIZE)
        return normalize(resized[None])[0], int(self.labels[i])


@dataclass(frozen=True)
class FeatureEnvironment:
    """An environment of features that a frozen network extracted from images.

    Attributes:
        views: for each view of the images, [n, n_features]: the images themselves, then augmented views, if any.
        labels: [n], integers in 0..num_classes - 1.
        image_names: [n], the paths of the images, as in FileEnvironment; None if they are unknown.
    """

    views: Sequence[np.ndarray]
    labels: np.ndarray
    image_names: Sequence[str] | None = None

    @property
    def is_augmented(self) -> bool:
        """Whether training and evaluation draw one of the augmented views of each image."""
        return len(self.views) > 1

    def __len__(self) -> int:
        return len(self.labels)


Environment: TypeAlias = ArrayEnvironment | FileEnvironment | FeatureEnvironment


@dataclass(frozen=True)
class DatasetSpec:
    """What determines the jobs on a dataset, in addition to the arguments of a launch.

    Attributes:
        environments: the environments' names.
        has_custom_environments: whether data_dir determines the environments, as for `Folder` and `Table`.
        n_steps: the default number of training steps.
        checkpoint_freq: the default number of steps between evaluations.
        n_testable: the number of environments, the first ones, that can be tested on; None for all.
    """

    environments: tuple[str, ...]
    has_custom_environments: bool
    n_steps: int
    checkpoint_freq: int
    n_testable: int | None = None


class MultipleDomainDataset:
    """A dataset of several environments (domains) with the same classes.

    A subclass sets the class attributes and implements `__init__(root, test_envs, hparams, trial_seed)`, which sets
    `environments`. The data must not depend on any job argument but `trial_seed`: all algorithms and hyperparameters
    of a trial see the same images and labels.

    Attributes:
        ENVIRONMENTS: the environments' names.
        N_TESTABLE: the number of environments, the first ones, that can be tested on; None for all. Each set of test
            environments has to contain one of them.
        N_STEPS: the default number of training steps.
        CHECKPOINT_FREQ: the default number of steps between evaluations.
        N_WORKERS: the number of processes per environment that loaders of DomainBed's scripts use; not used here.
        SMALL_IMAGES: selects the hyperparameters for small networks trained from scratch.
        input_shape: (channels, height, width) of the images as the network receives them.
        num_classes: the number of classes.
        class_names: the names of the classes, in the order of their labels; None if they have none.
        environments: one per name in ENVIRONMENTS.

    Args:
        root: the user's data_dir, as passed to `prepare`.
        test_envs: indices of the test environments, in which photos are not augmented.
        hparams: the job's hyperparameters (photo datasets read `data_augmentation`).
        trial_seed: the number of the trial.
    """

    ENVIRONMENTS: ClassVar[list[str]]
    N_TESTABLE: ClassVar[int | None] = None
    N_STEPS: ClassVar[int] = 5001
    CHECKPOINT_FREQ: ClassVar[int] = 100
    N_WORKERS: ClassVar[int] = 8
    SMALL_IMAGES: ClassVar[bool] = False
    input_shape: tuple[int, int, int]
    num_classes: int
    class_names: Sequence[str] | None = None
    environments: Sequence[Environment]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        raise NotImplementedError(f"{type(self).__name__} must implement __init__")

    @classmethod
    def environment_names(cls, root: str | None) -> list[str]:
        """Return the environments' names, which `Folder` and `Table` read from `root`.

        Raises:
            UsageError: the names cannot be read.
        """
        return cls.ENVIRONMENTS

    @classmethod
    def find_problems(cls, root: str | None) -> list[str]:
        """Return why the images in `root` cannot be used, one line each, without reading or downloading any.

        It is fast, and need not find everything that `prepare` and the constructor find.
        """
        return []

    @classmethod
    def with_columns(cls, columns: str | None) -> "type[MultipleDomainDataset]":
        """Return the dataset that reads these columns of a table (`--columns`); None stands for the usual ones.

        Raises:
            UsageError: the dataset is not a table, or the columns are not in the form ROLE=COLUMN,….
        """
        if columns is not None:
            raise UsageError(f"--columns applies to the Table dataset only; {cls.__name__} has no columns")
        return cls

    @classmethod
    def describe(cls, root: str | None) -> list[str]:
        """Return what a user should see of the images in `root` before training, one line each."""
        return []

    @classmethod
    def find_downloads(cls, root: str | None) -> list[str]:
        """Return what `prepare` will download, one line each."""
        return []

    @classmethod
    def prepare(cls, root: str | None) -> None:
        """Check that the images exist and download them if possible; called before the dataset is constructed.

        Raises:
            UsageError: the images cannot be used (`find_problems`); the message says how to get them.
        """
        if problems := cls.find_problems(root):
            raise UsageError("; ".join(problems))

    def __getitem__(self, index: int) -> Environment:
        return self.environments[index]

    def __len__(self) -> int:
        return len(self.environments)

    def __iter__(self) -> Iterator[Environment]:
        return iter(self.environments)
