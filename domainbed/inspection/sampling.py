"""Deterministic random choices of images."""

from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState

from domainbed.seeding import seed_hash


def sample_images(n: int, size: int, seed: int, env: int) -> list[int]:
    """Return the sorted indices of `size` random images of an environment of `n`; of all if `size` is 0."""
    if size == 0 or size >= n:
        return list(range(n))
    return sorted(RandomState(seed_hash("inspect", seed, env)).permutation(n)[:size].tolist())


def sample_classes(labels: np.ndarray, n_classes: int, size: int, seed: int, env: int) -> list[list[int]]:
    """Return the indices of up to `size` random images of each class of an environment with these labels."""
    picked = []
    for label in range(n_classes):
        (images,) = np.nonzero(labels == label)
        rng = RandomState(seed_hash("inspect", seed, env, label))
        picked.append(images[rng.permutation(len(images))[:size]].tolist())
    return picked


def round_robin(by_class: Sequence[Sequence[int]], seed: int, env: int) -> list[int]:
    """Return all these images in an order that begins with one of each class; classes are in random order."""
    order = RandomState(seed_hash("inspect views", seed, env)).permutation(len(by_class)).tolist()
    longest = max(map(len, by_class), default=0)
    return [by_class[label][k] for k in range(longest) for label in order if k < len(by_class[label])]
