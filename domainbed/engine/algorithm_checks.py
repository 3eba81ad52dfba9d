"""Checks of users' algorithms: what they must provide. Without them, training would fail with unclear errors."""

import json
from collections.abc import Iterator

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.state import training_state
from domainbed.errors import UsageError, list_some
from domainbed.hparams import Hparams, to_python
from domainbed.registry import is_builtin

MAX_NAMED = 3  # parameters that a note names


def check_attributes(algorithm: Algorithm) -> None:
    """Check the attributes that the engine reads.

    Raises:
        UsageError: `phase` is not text, or `hparams` is not a dict.
    """
    name = type(algorithm).__name__
    if not isinstance(algorithm.phase, str):
        raise UsageError(
            f"{name}.phase must be a string, not a {type(algorithm.phase).__name__}; is @property missing?"
        )
    if not isinstance(algorithm.hparams, dict):
        raise UsageError(
            f"{name}.hparams must be the dict of hyperparameters, not a {type(algorithm.hparams).__name__}"
        )


def recorded_hparams(algorithm: Algorithm) -> Hparams:
    """Return the hyperparameters as values that records and saved models can contain.

    Raises:
        UsageError: the algorithm has set one to another value.
    """
    values = {name: to_python(value) for name, value in algorithm.hparams.items()}
    for name, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{type(algorithm).__name__}.hparams[{name!r}] is {value!r}, which records cannot contain; keep values "
                "other than numbers, booleans, text, and lists and dicts of these in an attribute of their own"
            ) from error
    return values


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
        f"the parameters {list_some(names, MAX_NAMED)} are not in any optimizer, so updates do not change them; if "
        "they replace those of a base class, also replace its network and optimizer, or call requires_grad_(False)"
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
