"""Checks of users' algorithms and datasets: what they must provide, before training finds out in other words."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.state import is_builtin, training_state
from domainbed.datasets import ArrayEnvironment, FeatureEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.errors import UsageError, list_some, printable

MAX_NAMED = 3  # parameters that a note names


def check_training_state(algorithm: Algorithm) -> None:
    """Check that a class which overrides `training_state` extends it.

    Raises:
        UsageError: a job could not be resumed, or would resume from untrained weights.
    """
    cls = type(algorithm)
    if cls.training_state is Algorithm.training_state:
        return
    missing = training_state(algorithm, None).keys() - algorithm.training_state().keys()
    if missing:
        raise UsageError(
            f"{cls.__name__}.training_state lacks {', '.join(sorted(missing))}; extend the result of "
            "super().training_state(), and call super().load_training_state(saved)"
        )


def describe_untrained(algorithm: Algorithm) -> str:
    """Return which parameters of a user's algorithm no optimizer has, such as those of a replaced module; or "".

    Nothing is said about an algorithm without an optimizer among its attributes.
    """
    optimizers = [value for value in _values(vars(algorithm)) if isinstance(value, torch.optim.Optimizer)]
    if is_builtin(type(algorithm)) or not optimizers:
        return ""
    trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    names = [name for name, p in algorithm.named_parameters() if p.requires_grad and id(p) not in trained]
    if not names:
        return ""
    return (
        f"no optimizer has the parameters {list_some(names, MAX_NAMED)}, so updates do not change them; if they "
        "replace those of a base class, also replace its network and optimizer, or call requires_grad_(False)"
    )


def _values(attributes: dict[str, object]) -> Iterator[object]:
    """Yield the attributes of an object, and the items of those that are containers."""
    for value in attributes.values():
        if isinstance(value, nn.Module):
            continue
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list | tuple | set):
            yield from value
        else:
            yield value


def check_dataset(name: str, dataset: MultipleDomainDataset, environment_names: Iterable[str]) -> None:
    """Check that a user's dataset is what its class declares.

    Raises:
        UsageError: it is not; the error names the environment.
    """
    names = list(environment_names)
    for attribute in ("num_classes", "input_shape", "environments"):
        if not hasattr(dataset, attribute):
            raise UsageError(f"dataset {name!r} has no attribute {attribute}; set it in the class or in __init__")
    if len(dataset) != len(names):
        raise UsageError(f"dataset {name!r} has {len(dataset)} environments, but {len(names)} ENVIRONMENTS")
    for environment, title in zip(dataset, names, strict=True):
        place = f"dataset {name!r}, environment {printable(title)!r}"
        if not isinstance(environment, ArrayEnvironment | FileEnvironment | FeatureEnvironment):
            raise UsageError(
                f"{place} is a {type(environment).__name__}; make it an ArrayEnvironment(images, labels) or a "
                "FileEnvironment (from domainbed.datasets)"
            )
        if isinstance(environment, ArrayEnvironment):
            images, shape = environment.images, tuple(dataset.input_shape)
            if images.shape[1:] != shape:
                raise UsageError(f"{place}: images are {images.shape[1:]}, but input_shape is {shape}")
            if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
                raise UsageError(f"{place}: images are {images.dtype}; convert them to uint8 (0..255) or a float type")
        labels = environment.labels
        if not np.issubdtype(labels.dtype, np.integer):
            raise UsageError(f"{place}: labels are {labels.dtype}; convert them to integers 0..num_classes - 1")
        if len(labels) and not (labels.min() >= 0 and labels.max() < dataset.num_classes):
            raise UsageError(
                f"{place}: labels are {labels.min()} to {labels.max()}, but must be 0 to {dataset.num_classes - 1} "
                f"(num_classes is {dataset.num_classes})"
            )
