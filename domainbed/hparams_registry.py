"""Every hyperparameter of every algorithm: its default and how it is drawn at random.

The figures are those of "In Search of Lost Domain Generalization" (Gulrajani and Lopez-Paz, 2021), Table 8, and, for
Fishr, of Rame, Dancette and Cord (ICML 2022). Each hyperparameter is drawn from a generator of its own, so adding one
never changes another.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.random import RandomState

from domainbed.errors import UsageError, suggest
from domainbed.seeding import seed_hash

Value: TypeAlias = Any  # bool, int, float or str
Hparams: TypeAlias = dict[str, Value]

# Datasets of small images train a small network from scratch: larger steps, larger batches, no weight decay.
# A module of your own that registers such a dataset adds its name here.
SMALL_IMAGES = {"ColoredDigits", "RotatedDigits", "ColoredMNIST", "RotatedMNIST"}


@dataclass(frozen=True)
class Hparam:
    """A hyperparameter's default and its random draw; `draw` is None where the protocol never varies it."""

    default: Value
    draw: Callable[[RandomState], Value] | None = None


def power(base: int, low: float, high: float) -> Callable[[RandomState], float]:
    """base^U(low, high)."""
    return lambda r: base ** r.uniform(low, high)


def int_power(base: int, low: float, high: float) -> Callable[[RandomState], int]:
    """int(base^U(low, high))."""
    return lambda r: int(base ** r.uniform(low, high))


def one_of(*values: float) -> Callable[[RandomState], float]:
    """One of `values`, each as likely, of the type it has here."""
    return lambda r: values[r.choice(len(values))]


def _shared(dataset: str) -> dict[str, Hparam]:
    """What every algorithm has. `small` image sets differ from photographs, and DomainNet in its batch."""
    small = dataset in SMALL_IMAGES
    if small:
        batch_size = Hparam(64, int_power(2, 3, 9))
    else:
        batch_size = Hparam(32, int_power(2, 3, 5 if dataset == "DomainNet" else 5.5))
    backbone = {} if small else {"backbone": Hparam("resnet50"), "pretrained": Hparam(True)}
    return {
        "data_augmentation": Hparam(True),
        **backbone,
        "resnet18": Hparam(False),
        "resnet_dropout": Hparam(0.0, one_of(0.0, 0.1, 0.5)),
        "class_balanced": Hparam(False),
        "nonlinear_classifier": Hparam(False),
        "lr": _learning_rate(small),
        "weight_decay": _weight_decay(small),
        "batch_size": batch_size,
    }


def _learning_rate(small: bool) -> Hparam:
    return Hparam(1e-3, power(10, -4.5, -2.5)) if small else Hparam(5e-5, power(10, -5, -3.5))


def _weight_decay(small: bool) -> Hparam:
    return Hparam(0.0, lambda r: 0.0) if small else Hparam(0.0, power(10, -6, -2))


def _dann(dataset: str) -> dict[str, Hparam]:
    small = dataset in SMALL_IMAGES
    return {
        "lambda": Hparam(1.0, power(10, -2, 2)),
        "lr_g": _learning_rate(small),
        "lr_d": _learning_rate(small),
        "weight_decay_g": _weight_decay(small),
        "weight_decay_d": Hparam(0.0, power(10, -6, -2)),
        "d_steps_per_g_step": Hparam(1, int_power(2, 0, 3)),
        "grad_penalty": Hparam(0.0, power(10, -2, 1)),
        "beta1": Hparam(0.5, one_of(0.0, 0.5)),
        "mlp_width": Hparam(256, int_power(2, 6, 10)),
        "mlp_depth": Hparam(3, one_of(3, 4, 5)),
        "mlp_dropout": Hparam(0.0, one_of(0.0, 0.1, 0.5)),
    }


# An algorithm's own hyperparameters, given the dataset's name.
_OWN: dict[str, Callable[[str], dict[str, Hparam]]] = {
    "ERM": lambda dataset: {},
    "CORAL": lambda dataset: {"mmd_gamma": Hparam(1.0, power(10, -1, 1))},
    "DANN": _dann,
    "IRM": lambda dataset: {
        "irm_lambda": Hparam(100.0, power(10, -1, 5)),
        "irm_penalty_anneal_iters": Hparam(500, int_power(10, 0, 4)),
    },
    "VREx": lambda dataset: {
        "vrex_lambda": Hparam(10.0, power(10, -1, 5)),
        "vrex_penalty_anneal_iters": Hparam(500, int_power(10, 0, 4)),
    },
    "Fish": lambda dataset: {"meta_lr": Hparam(0.5, one_of(0.05, 0.1, 0.5))},
    "Fishr": lambda dataset: {
        "lambda": Hparam(1000.0, power(10, 1, 4)),
        "penalty_anneal_iters": Hparam(1500, lambda r: int(r.uniform(0, 5000))),
        "ema": Hparam(0.95, lambda r: r.uniform(0.90, 0.99)),
        "variant": Hparam("variance"),
    },
}


def register_hparams(algorithm: str, **hparams: Hparam) -> None:
    """Give an algorithm of your own hyperparameters beside the shared ones. Raises UsageError if it has some."""
    if algorithm in _OWN:
        raise UsageError(f"algorithm {algorithm!r} has its hyperparameters already; choose another name")
    _OWN[algorithm] = lambda dataset: hparams


def hparams_of(algorithm: str, dataset: str) -> dict[str, Hparam]:
    """Every hyperparameter of `algorithm` on `dataset`: the shared ones, then its own."""
    own = _OWN.get(algorithm, lambda dataset: {})
    return {**_shared(dataset), **own(dataset)}


def default_hparams(algorithm: str, dataset: str) -> Hparams:
    """The defaults (hparams_seed 0)."""
    return {name: h.default for name, h in hparams_of(algorithm, dataset).items()}


def random_hparams(algorithm: str, dataset: str, seed: int) -> Hparams:
    """One random draw; `seed` is `seed_hash(hparams_seed, trial_seed)`."""
    return {
        name: h.default if h.draw is None else _plain(h.draw(RandomState(seed_hash(seed, name))))
        for name, h in hparams_of(algorithm, dataset).items()
    }


def _plain(value: Value) -> Value:
    """Python's own number in place of NumPy's, which JSON does not know."""
    return value.item() if isinstance(value, np.generic) else value


def resolve_hparams(
    algorithm: str, dataset: str, hparams_seed: int, trial_seed: int, overrides: str | None = None
) -> Hparams:
    """What a job trains with: defaults (hparams_seed 0) or a draw, then the user's overrides.

    Args:
        overrides: a JSON object such as '{"batch_size": 16}', or None.

    Raises:
        UsageError: the overrides are no JSON object, or name an unknown hyperparameter, or give one a wrong type.
    """
    if hparams_seed == 0:
        hparams = default_hparams(algorithm, dataset)
    else:
        hparams = random_hparams(algorithm, dataset, seed_hash(hparams_seed, trial_seed))
    for name, value in _parse(overrides).items():
        if name not in hparams:
            raise UsageError(f"--hparams: {algorithm} has no hyperparameter {name!r}; {suggest(name, hparams)}")
        hparams[name] = _checked(name, value, like=hparams[name])
    return hparams


def _parse(overrides: str | None) -> dict[str, Any]:
    if overrides is None:
        return {}
    try:
        parsed = json.loads(overrides)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--hparams {overrides!r} is not JSON ({error}); write it like '{{\"batch_size\": 16}}'"
        ) from None
    if not isinstance(parsed, dict):
        raise UsageError(f"--hparams {overrides!r} must be a JSON object; write it like '{{\"batch_size\": 16}}'")
    return parsed


def _checked(name: str, value: Any, like: Value) -> Value:
    """`value`, if it is of the type of the hyperparameter's own value `like` (a whole number will do for a float)."""
    if isinstance(value, int) and isinstance(like, float) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise UsageError(f"--hparams: {name} must be a finite number, not one of so many digits") from None
    if type(value) is not type(like):
        raise UsageError(
            f"--hparams: {name} must be of type {type(like).__name__}, like {json.dumps(like)}, not {value!r}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--hparams: {name} must be a finite number, not {value}")
    if name == "batch_size" and value < 1:
        raise UsageError(f"--hparams: batch_size must be at least 1, not {value!r}")
    return value
