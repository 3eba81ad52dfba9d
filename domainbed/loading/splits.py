"""Which images of an environment are trained on and which are held out."""

from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState

from domainbed.errors import UsageError
from domainbed.seeding import seed_hash


@dataclass(frozen=True)
class Split:
    """Indices into one environment.

    Attributes:
        in_: what a training environment is trained on, and what a test environment is scored on.
        out: the held-out part (validation).
        uda: of a test environment in domain adaptation, what is shown to the algorithm without labels.
    """

    in_: np.ndarray
    out: np.ndarray
    uda: np.ndarray

    def parts(self) -> dict[str, np.ndarray]:
        """The parts that hold images, by the name they have in records."""
        return {name: part for name, part in (("in", self.in_), ("out", self.out), ("uda", self.uda)) if len(part)}


def split_environment(n: int, env: int, trial_seed: int, holdout_fraction: float, uda_fraction: float = 0.0) -> Split:
    """Split the `n` images of environment number `env`.

    The indices are shuffled by a seed of trial and environment; the first int(n * holdout_fraction) are held out. Of
    the rest, shuffled again by the same seed, int(len(rest) * uda_fraction) are set aside for adaptation.

    Raises:
        UsageError: one of the two parts would be empty.
    """
    out, rest = _shuffled(np.arange(n), int(n * holdout_fraction), seed_hash(trial_seed, env))
    if not len(out) or not len(rest):
        raise UsageError(
            f"environment {env} is too small to split: of its {n} images, --holdout_fraction {holdout_fraction} "
            f"holds out {len(out)} and leaves {len(rest)}"
        )
    if uda_fraction == 0:
        return Split(rest, out, uda=rest[:0])
    uda, in_ = _shuffled(rest, int(len(rest) * uda_fraction), seed_hash(trial_seed, env))
    return Split(in_, out, uda)


def _shuffled(indices: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `n` of the shuffled positions, and the others."""
    positions = list(range(len(indices)))
    RandomState(seed).shuffle(positions)
    return indices[positions[:n]], indices[positions[n:]]
