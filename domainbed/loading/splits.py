"""Random split of each environment into images to train on and held-out images."""

from collections.abc import Sequence
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


def split_environment(
    n: int,
    env: int,
    trial_seed: int,
    holdout_fraction: float,
    uda_fraction: float = 0.0,
    groups: np.ndarray | None = None,
) -> Split:
    """Split the `n` images of environment `env`.

    The indices are shuffled with a seed derived from trial and environment, and the first int(n * holdout_fraction) are
    held out. The others are shuffled again with the same seed, and the first int(len * uda_fraction) of them are set
    aside for adaptation.

    With groups, the groups are shuffled instead, in the order of their first images, and `choose_groups` selects those
    to hold out, with about as many images. If each image is a group, the split is the same as without groups.

    Args:
        n: number of images.
        env: index of the environment.
        trial_seed: seed of the trial.
        holdout_fraction: fraction of the images to hold out.
        uda_fraction: fraction of the others to set aside for adaptation.
        groups: [n], the group of each image; images of a group are in the same part. None: each on its own.

    Raises:
        UsageError: the in or the out split would be empty.
    """

    def split(indices: np.ndarray, n_first: int) -> tuple[np.ndarray, np.ndarray]:
        seed = seed_hash(trial_seed, env)
        if groups is None:
            return _shuffle_and_split(indices, n_first, seed)
        members = _members(groups[indices])
        if n_first and len(members) < 2:
            raise UsageError(
                f"environment {env} cannot be split by groups: all of its {len(indices)} images to split belong to the "
                f"same group, {groups[indices[0]]}"
            )
        order, _ = _shuffle_and_split(np.arange(len(members)), len(members), seed)
        sizes = np.array([len(members[group]) for group in order], dtype=np.int64)
        is_chosen = np.repeat(choose_groups(sizes.tolist(), n_first), sizes)
        shuffled = indices[np.concatenate([indices[:0], *(members[group] for group in order)])]
        return shuffled[is_chosen], shuffled[~is_chosen]

    out, rest = split(np.arange(n), int(n * holdout_fraction))
    if not len(out) or not len(rest):
        raise UsageError(
            f"environment {env} is too small to split: --holdout_fraction {holdout_fraction} would hold out "
            f"{len(out)} of its {n} images and leave {len(rest)}"
        )
    if uda_fraction == 0:
        return Split(rest, out, uda=rest[:0])
    uda, in_ = split(rest, int(len(rest) * uda_fraction))
    return Split(in_, out, uda)


def choose_groups(sizes: Sequence[int], n: int) -> np.ndarray:
    """Return for each group whether it is chosen, so that about `n` images are chosen, but never all groups.

    The groups are visited in order. One is chosen if that brings the number of chosen images closer to `n`; groups that
    are too large for that are passed over. If all of them are, the first of the smallest ones is chosen.

    Args:
        sizes: number of images of each group, at least two groups if `n` is not 0.
        n: number of images to choose.

    Returns:
        Boolean, one per group.
    """
    is_chosen = np.zeros(len(sizes), dtype=bool)
    total, n_images = 0, sum(sizes)
    for i, size in enumerate(sizes):
        if abs(total + size - n) < abs(total - n) and total + size < n_images:
            is_chosen[i] = True
            total += size
    if n and not total:
        is_chosen[int(np.argmin(sizes))] = True
    return is_chosen


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """Return the positions of the images of each group, groups in the order of their first images."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups.tolist()))}
    codes = np.array([numbers[group] for group in groups.tolist()], dtype=np.int64)
    ends = np.bincount(codes, minlength=len(numbers)).cumsum()
    return np.split(np.argsort(codes, kind="stable"), ends[:-1])


def _shuffle_and_split(indices: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle indices and return the first `n` and the others."""
    positions = list(range(len(indices)))
    RandomState(seed).shuffle(positions)
    return indices[positions[:n]], indices[positions[n:]]
