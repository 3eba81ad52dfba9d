"""Declarations of hyperparameters (defaults and random draws), and overrides as JSON.

class GroupDRO(ERM):
    HPARAMS = {"groupdro_eta": Hparam(1e-2, power(10, -3, -1), at_least=0)}
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.random import RandomState

from domainbed.errors import UsageError
from domainbed.options import Bounds

Value: TypeAlias = Any  # bool, int, float or str
Hparams: TypeAlias = dict[str, Value]
Draw: TypeAlias = Callable[[RandomState], Value]


@dataclass(frozen=True)
class Hparam(Bounds):
    """The default, the random draw and the bounds of a hyperparameter, with variants for some datasets.

    The bounds are those of overrides, on all datasets. Defaults and draws satisfy them.

    Attributes:
        default: the value with `hparams_seed` 0; overrides must have its type.
        draw: draws a value from a random generator; None if random draws keep the default.
        small_images: the variant for datasets of small images; None if it is the same.
        datasets: variants for single datasets, by name; they take precedence.
    """

    default: Value
    draw: Draw | None = None
    small_images: "Hparam | None" = None
    datasets: Mapping[str, "Hparam"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.draw is not None and not callable(self.draw):
            raise UsageError(
                f"the draw of Hparam({self.default!r}, …) must be a function, such as uniform(0, 1), not {self.draw!r}"
            )
        object.__setattr__(self, "default", to_python(self.default))

    def variant(self, dataset: str, small_images: bool) -> "Hparam":
        """Return the variant for a dataset, with the bounds of this declaration."""
        variant = self.small_images if small_images and self.small_images else self
        variant = self.datasets.get(dataset, variant)
        if variant in (self, ABSENT):
            return variant
        return replace(self, default=variant.default, draw=variant.draw)


def to_python(value: Value) -> Value:
    """Return a NumPy scalar as a Python one, because neither JSON nor saved models can contain it; others unchanged."""
    return value.item() if isinstance(value, np.generic) else value


ABSENT = Hparam(None)  # a variant for datasets without this hyperparameter


def uniform(low: float, high: float) -> Draw:
    """Draw from U(low, high)."""
    return lambda r: r.uniform(low, high)


def int_uniform(low: float, high: float) -> Draw:
    """Draw from U(low, high), rounded down to an integer."""
    return lambda r: int(r.uniform(low, high))


def power(base: int, low: float, high: float) -> Draw:
    """Draw base^U(low, high)."""
    return lambda r: base ** r.uniform(low, high)


def int_power(base: int, low: float, high: float) -> Draw:
    """Draw base^U(low, high), rounded down to an integer."""
    return lambda r: int(base ** r.uniform(low, high))


def one_of(*values: Value) -> Draw:
    """Draw one of `values` with equal probability."""
    return lambda r: values[r.choice(len(values))]


# Optimizers scale float32 tensors by learning rates and weight decays, and fail if the factor overflows.
MAX_RATE = 10**6

LEARNING_RATE = Hparam(
    5e-5,
    power(10, -5, -3.5),
    small_images=Hparam(1e-3, power(10, -4.5, -2.5)),
    above=0,
    at_most=MAX_RATE,
)
WEIGHT_DECAY = Hparam(0.0, power(10, -6, -2), small_images=Hparam(0.0), at_least=0, at_most=MAX_RATE)

# Hyperparameters of all algorithms; "In Search of Lost Domain Generalization" (Gulrajani and Lopez-Paz, 2021), Table 8.
SHARED: Mapping[str, Hparam] = {
    "data_augmentation": Hparam(True),
    "backbone": Hparam("resnet50", small_images=ABSENT),
    "pretrained": Hparam(True, small_images=ABSENT),
    "frozen": Hparam(False, small_images=ABSENT),
    "resnet18": Hparam(False),
    "resnet50_augmix": Hparam(False),
    "freeze_bn": Hparam(True),
    "vit": Hparam(False),
    "dinov2": Hparam(False),
    "vit_attn_tune": Hparam(False),
    "resnet_dropout": Hparam(0.0, one_of(0.0, 0.1, 0.5), at_least=0, at_most=1),
    "vit_dropout": Hparam(0.0, one_of(0.0, 0.1, 0.5), at_least=0, at_most=1),
    "class_balanced": Hparam(False),
    "nonlinear_classifier": Hparam(False),
    "lr": LEARNING_RATE,
    "weight_decay": WEIGHT_DECAY,
    "batch_size": Hparam(
        32,
        int_power(2, 3, 5.5),
        small_images=Hparam(64, int_power(2, 3, 9)),
        datasets={"DomainNet": Hparam(32, int_power(2, 3, 5))},
        at_least=1,
        at_most=2**20,
    ),
}

# The defaults of each protocol that differ from those above: the published tables', and those of DomainBed's code since
# July 2024 (commit 3dfdc8e).
PROTOCOLS: Mapping[str, Hparams] = {"2021": {}, "head": {"resnet50_augmix": True, "freeze_bn": False}}


# The published MLP for vectors (DANN's discriminator, for example).
MLP: Mapping[str, Hparam] = {
    "mlp_width": Hparam(256, int_power(2, 6, 10), at_least=1, at_most=2**16),
    "mlp_depth": Hparam(3, one_of(3, 4, 5), at_least=2, at_most=2**10),
    "mlp_dropout": Hparam(0.0, one_of(0.0, 0.1, 0.5), at_least=0, at_most=1),
}

# Further hyperparameters of all algorithms if the backbone is frozen; the MLP is the published one for vectors.
FROZEN: Mapping[str, Hparam] = {
    # Augmented views of each training image; with 0, batches contain the features of the image itself.
    "feature_views": Hparam(0, at_least=0, at_most=100),
    "feature_dtype": Hparam("float32"),
    "linear_probe": Hparam(False),  # whether the classifier follows the backbone directly, without an MLP
    **MLP,
}


def parse_overrides(text: str | None) -> Hparams:
    """Return the overrides in a JSON object such as '{"batch_size": 16}'; names and types are not checked.

    Raises:
        UsageError: the text is not a JSON object.
    """
    if text is None:
        return {}
    example = "expected an object such as '{\"batch_size\": 16}'"
    try:
        overrides = json.loads(text)
        json.dumps(overrides)  # may allow less nesting
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--hparams {reprlib.repr(text)} is not JSON ({error}); {example}") from None
    if not isinstance(overrides, dict):
        raise UsageError(f"--hparams {reprlib.repr(text)} must be a JSON object; {example}")
    return overrides
