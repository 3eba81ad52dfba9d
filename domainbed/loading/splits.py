"""Random split of each environment into images to train on and held-out images."""

from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState

from domainbed.errors import UsageError
from domainbed.seeding import seed_hash


@dataclass(frozen=True)
class Split:
    """Indices into one environment.

    Attributes:
        in_: images that a training environment is trained on and that a test environment is evaluated on.
        out: held-out images (validation).
        uda: in domain adaptation, images of a test environment that the algorithm receives without labels.
    """

    in_: np.ndarray
    out: np.ndarray
    uda: np.ndarray

    def parts(self) -> dict[str, np.ndarray]:
        """Return the parts that are not empty, by their names in records."""
        return {name: part for name, part in (("in", self.in_), ("out", self.out), ("uda", self.uda)) if len(part)}


def split_environment(n: int, env: int, trial_seed: int, holdout_fraction: float, uda_fraction: float = 0.0) -> Split:
    """Split the `n` images of environment `env`.

    The indices are shuffled with a seed derived from trial and environment, and the first int(n * holdout_fraction) are
    held out. The others are shuffled again with the same seed, and the first int(len * uda_fraction) of them are set
    aside for adaptation.

    Raises:
        UsageError: the in or the out split would be empty.
    """
    out, rest = _shuffle_and_split(np.arange(n), int(n * holdout_fraction), seed_hash(trial_seed, env))
    if not len(out) or not len(rest):
        raise UsageError(
            f"environment {env} is too small to split: --holdout_fraction {holdout_fraction} would hold out "
            f"{len(out)} of its {n} images and leave {len(rest)}"
        )
    if uda_fraction == 0:
        return Split(rest, out, uda=rest[:0])
    uda, in_ = _shuffle_and_split(rest, int(len(rest) * uda_fraction), seed_hash(trial_seed, env))
    return Split(in_, out, uda)


def _shuffle_and_split(indices: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle indices and return the first `n` and the others."""
    positions = list(range(len(indices)))
    RandomState(seed).shuffle(positions)
    return indices[positions[:n]], indices[positions[n:]]
