"""Hyperparameters of a job: those shared by all algorithms, and those declared by its own.

Each hyperparameter is drawn from its own random generator, so adding one never changes another.
"""

import json
import math
import reprlib

from numpy.random import RandomState

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.errors import UsageError, one_line, suggest
from domainbed.hparams import (
    ABSENT,
    FROZEN,
    PROTOCOLS,
    SHARED,
    Draw,
    Hparam,
    Hparams,
    Value,
    parse_overrides,
    to_python,
)
from domainbed.options import Bounds
from domainbed.registry import is_builtin
from domainbed.seeding import seed_hash


def hparams_of(algorithm: str, dataset: str, frozen: bool = False) -> dict[str, Hparam]:
    """Return the declarations of all hyperparameters: the shared ones, then the algorithm's own (`HPARAMS`).

    With a frozen backbone, those of the network on its features follow.

    An unregistered algorithm has no hyperparameters of its own. An unregistered dataset is treated as one of photos.
    """
    own = ALGORITHMS[algorithm].HPARAMS if algorithm in ALGORITHMS else {}
    small_images = dataset in DATASETS and DATASETS[dataset].SMALL_IMAGES
    declared = {**SHARED, **own, **({name: h for name, h in FROZEN.items() if name not in own} if frozen else {})}
    variants = {name: hparam.variant(dataset, small_images) for name, hparam in declared.items()}
    return {name: hparam for name, hparam in variants.items() if hparam is not ABSENT}


def default_hparams(algorithm: str, dataset: str, frozen: bool = False) -> Hparams:
    """Return the default hyperparameters (hparams_seed 0)."""
    return {name: hparam.default for name, hparam in hparams_of(algorithm, dataset, frozen).items()}


def random_hparams(algorithm: str, dataset: str, seed: int, frozen: bool = False) -> Hparams:
    """Return one random draw; `seed` is `seed_hash(hparams_seed, trial_seed)`."""
    return {
        name: hparam.default if hparam.draw is None else _draw(name, hparam.draw, RandomState(seed_hash(seed, name)))
        for name, hparam in hparams_of(algorithm, dataset, frozen).items()
    }


def _draw(name: str, draw: Draw, rng: RandomState) -> Value:
    """Return a random value as a Python number, which JSON can represent; name the hyperparameter in errors."""
    try:
        value = draw(rng)
    except Exception as error:
        raise UsageError(
            f"hyperparameter {name!r}: its draw failed ({type(error).__name__}: {one_line(error)}); a draw takes a "
            "random generator, as uniform(0, 1) does"
        ) from error
    return to_python(value)


def resolve_hparams(
    algorithm: str,
    dataset: str,
    hparams_seed: int,
    trial_seed: int,
    overrides: str | None = None,
    protocol: str = "2021",
) -> Hparams:
    """Return the hyperparameters of a job: the defaults (hparams_seed 0) or a random draw, then the overrides.

    Args:
        overrides: a JSON object such as '{"batch_size": 16}', or None.
        protocol: a name in PROTOCOLS; its defaults also apply to random draws, because none of them is drawn.

    Raises:
        UsageError: the overrides are malformed JSON, or have an unknown name or a value of the wrong type or
            out of bounds.
    """
    changes = parse_overrides(overrides)
    frozen = changes.get("frozen") is True
    if hparams_seed == 0:
        hparams = default_hparams(algorithm, dataset, frozen)
    else:
        hparams = random_hparams(algorithm, dataset, seed_hash(hparams_seed, trial_seed), frozen)
    hparams |= PROTOCOLS[protocol]
    declared = hparams_of(algorithm, dataset, frozen)
    for name, value in changes.items():
        if name not in hparams and isinstance(value, bool | int | float | str) and not _declares_hparams(algorithm):
            hparams[name] = _check_override(name, value, value, Bounds())
            continue
        if name not in hparams:
            raise UsageError(f"--hparams: {algorithm} has no hyperparameter {name!r}; {suggest(name, hparams)}")
        hparams[name] = _check_override(name, value, hparams[name], declared[name])
    return hparams


def _declares_hparams(algorithm: str) -> bool:
    """Return whether an algorithm declares hyperparameters or is built in. DomainBed's classes declare none."""
    if algorithm not in ALGORITHMS:
        return True
    cls = ALGORITHMS[algorithm]
    return is_builtin(cls) or bool(cls.HPARAMS)


def _check_override(name: str, value: Value, like: Value, bounds: Bounds) -> Value:
    """Return `value` if its type is that of `like` and it is within bounds; convert an integer if `like` is a float."""
    if type(value) is int and isinstance(like, float):
        try:
            value = float(value)
        except OverflowError:
            raise UsageError(f"--hparams: {name} must be a finite number; it is too large") from None
    if type(value) is not type(like):
        kind = f"of type {type(like).__name__}, like {json.dumps(like)}"
        raise UsageError(f"--hparams: {name} must be {kind}, not {reprlib.repr(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--hparams: {name} must be a finite number, not {value}")
    if type(value) is int and value.bit_length() > 63:
        raise UsageError(f"--hparams: {name} must be a 64-bit integer; it is too large")
    if isinstance(value, int | float):
        bounds.check(f"--hparams {name}", value)
    return value
