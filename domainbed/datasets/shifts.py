"""From one set of digits to several environments: by the correlation of colour and label, or by rotation.

The colours follow Arjovsky et al. 2019, the rotations Ghifary et al. 2015, both as DomainBed has them, but for one
thing: which image lands in which environment depends on the trial alone.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.random import RandomState
from PIL import Image

from domainbed.datasets.base import ArrayEnvironment, MultipleDomainDataset
from domainbed.hparams_registry import Hparams
from domainbed.seeding import seed_hash

LABEL_NOISE = 0.25


Share: TypeAlias = tuple[np.ndarray, np.ndarray]  # images, uint8 [n, height, width] in 0..255, and digits [n] in 0..9


class Digits(MultipleDomainDataset):
    """A set of digits, dealt out to environments."""

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int) -> None:
        self.environments = list(self._dealt_out(root, self.version(root), trial_seed))

    @classmethod
    @lru_cache(maxsize=2)  # a process that trains job after job makes a trial's environments once
    def _dealt_out(cls, root: str | None, version: Hashable, trial_seed: int) -> list[ArrayEnvironment]:
        rng = RandomState(seed_hash(trial_seed))
        return cls.shifted(deal(*cls.load_images(root), len(cls.ENVIRONMENTS), rng), rng)

    @staticmethod
    def load_images(root: str | None) -> Share:
        """All images and digits. They are taken to stay what they are as long as `version` does."""
        raise NotImplementedError("a set of digits says how it is loaded")

    @staticmethod
    def version(root: str | None) -> Hashable:
        """Something that changes when what `load_images` reads does."""
        return None

    @classmethod
    def shifted(cls, shares: Sequence[Share], rng: RandomState) -> list[ArrayEnvironment]:
        """The environments, made of their shares of the digits."""
        raise NotImplementedError("it says how environments differ")


class Colored(Digits):
    """Is the digit below 5? The colour knows better in training than it will in the test.

    Colour and label agree in 90 % and 80 % of the first two environments' images, and in 10 % of the last one's.
    """

    ENVIRONMENTS = ["+90%", "+80%", "-90%"]
    DISAGREEMENT = (0.1, 0.2, 0.9)
    num_classes = 2

    @classmethod
    def shifted(cls, shares: Sequence[Share], rng: RandomState) -> list[ArrayEnvironment]:
        return [color(*share, d, rng) for share, d in zip(shares, cls.DISAGREEMENT, strict=True)]


class Rotated(Digits):
    """Which digit is it, at an angle that training never showed?"""

    ENVIRONMENTS = ["0", "15", "30", "45", "60", "75"]
    num_classes = 10

    @classmethod
    def shifted(cls, shares: Sequence[Share], rng: RandomState) -> list[ArrayEnvironment]:
        return [rotate(*share, int(e)) for share, e in zip(shares, cls.ENVIRONMENTS, strict=True)]


def deal(images: np.ndarray, digits: np.ndarray, n: int, rng: RandomState) -> list[Share]:
    """Shuffle, and deal the images out: environment i of `n` takes every n-th, from the i-th on."""
    order = rng.permutation(len(images))
    return [(images[order[i::n]], digits[order[i::n]]) for i in range(n)]


def color(images: np.ndarray, digits: np.ndarray, disagreement: float, rng: RandomState) -> ArrayEnvironment:
    """Two classes, [digit < 5] with a quarter of the labels flipped, and a colour that tells the noisy label.

    Args:
        images: uint8 [n, height, width].
        digits: [n], 0..9.
        disagreement: how often colour and label differ.

    Returns:
        images uint8 [n, 2, height, width], of which channel `colour` holds the digit and the other one zeros.
    """
    labels = (digits < 5) ^ (rng.random_sample(len(digits)) < LABEL_NOISE)
    colour = labels ^ (rng.random_sample(len(labels)) < disagreement)
    both = np.zeros((len(images), 2, *images.shape[1:]), dtype=np.uint8)
    both[np.arange(len(images)), colour.astype(int)] = images
    return ArrayEnvironment(both, labels.astype(np.int64))


def rotate(images: np.ndarray, digits: np.ndarray, degrees: int) -> ArrayEnvironment:
    """Ten classes, turned counter-clockwise about the centre by PIL: bilinear, black fill, 256 grey levels.

    torchvision's rotation of tensors is faster, but differs at the borders (by up to 112 grey levels on MNIST); PIL's
    gives DomainBed's pixels to the bit.

    Args:
        images: uint8 [n, height, width].
        digits: [n], 0..9.
    """
    turned = [np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)) for image in images]
    return ArrayEnvironment(np.stack(turned)[:, None], digits.astype(np.int64))
