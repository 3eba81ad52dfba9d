"""The check that a dataset is what its class declares. Without it, training would fail with unclear errors."""

import operator
from collections.abc import Sequence

import numpy as np

from domainbed.datasets.base import ArrayEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.errors import UsageError, printable


def check_dataset(name: str, dataset: MultipleDomainDataset, environment_names: Sequence[str]) -> None:
    """Check the environments of a dataset, their images and labels, and its class names.

    Numbers and names become those of Python if they are NumPy's, because saved models can contain no others.

    Raises:
        UsageError: they are not what the dataset declares; the error names the environment.
    """
    for attribute in ("num_classes", "input_shape", "environments"):
        if not hasattr(dataset, attribute):
            raise UsageError(f"dataset {name!r} has no attribute {attribute}; set it in the class or in __init__")
    _make_plain(name, dataset)
    names = dataset.class_names
    if names is not None and len(names) != dataset.num_classes:
        raise UsageError(f"dataset {name!r} has {len(names)} class_names, but num_classes is {dataset.num_classes}")
    if len(dataset) != len(environment_names):
        raise UsageError(f"dataset {name!r} has {len(dataset)} environments, but {len(environment_names)} ENVIRONMENTS")
    for environment, title in zip(dataset, environment_names, strict=True):
        place = f"dataset {name!r}, environment {printable(title)!r}"
        if not isinstance(environment, ArrayEnvironment | FileEnvironment):
            raise UsageError(
                f"{place} is a {type(environment).__name__}; make it an ArrayEnvironment(images, labels) or a "
                "FileEnvironment (from domainbed.datasets)"
            )
        if isinstance(environment, ArrayEnvironment):
            _check_images(place, environment.images, dataset.input_shape)
        elif dataset.input_shape[0] != 3:
            raise UsageError(f"{place}: image files have 3 channels, but input_shape is {dataset.input_shape}")
        _check_labels(place, environment.labels, dataset.num_classes)


def _make_plain(name: str, dataset: MultipleDomainDataset) -> None:
    """Convert the attributes that describe a dataset, unless they are of the right types."""
    if not isinstance(dataset.num_classes, int):
        try:
            dataset.num_classes = operator.index(dataset.num_classes)
        except TypeError:
            raise UsageError(f"dataset {name!r}: num_classes is {dataset.num_classes!r}, not an integer") from None
    if not (isinstance(dataset.input_shape, tuple) and all(type(n) is int for n in dataset.input_shape)):
        dataset.input_shape = tuple(map(int, dataset.input_shape))  # type: ignore[assignment]
    if dataset.class_names is not None and not all(type(n) is str for n in dataset.class_names):
        dataset.class_names = [str(n) for n in dataset.class_names]


def _check_memory(place: str, kind: str, array: np.ndarray) -> None:
    """Raise UsageError if torch cannot use the array's memory."""
    if not array.dtype.isnative or array.dtype.itemsize > 8:
        raise UsageError(f"{place}: {kind} are {array.dtype!r}, which torch does not support; convert them (astype)")
    if min(array.strides, default=0) < 0:
        raise UsageError(f"{place}: {kind} are a reversed view, which torch does not support; copy them (array.copy())")


def _check_images(place: str, images: np.ndarray, shape: tuple[int, ...]) -> None:
    _check_memory(place, "images", images)
    if images.shape[1:] != shape:
        raise UsageError(f"{place}: images are {images.shape[1:]}, but input_shape is {shape}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise UsageError(f"{place}: images are {images.dtype}; convert them to uint8 (0..255) or a float type")


def _check_labels(place: str, labels: np.ndarray, num_classes: int) -> None:
    _check_memory(place, "labels", labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{place}: labels are {labels.dtype}; convert them to integers 0..num_classes - 1")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise UsageError(
            f"{place}: labels are {labels.min()} to {labels.max()}, but must be 0 to {num_classes - 1} "
            f"(num_classes is {num_classes})"
        )
