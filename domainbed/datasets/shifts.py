"""Environments built from one set of digits: by the correlation of color and label, or by rotation.

The colors follow Arjovsky et al. 2019 and the rotations Ghifary et al. 2015, both as implemented in DomainBed, with one
difference: the assignment of images to environments depends only on the trial.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.random import RandomState
from PIL import Image

from domainbed.datasets.base import ArrayEnvironment, MultipleDomainDataset
from domainbed.hparams import Hparams
from domainbed.seeding import seed_hash

LABEL_NOISE = 0.25

# Images, uint8 [n, height, width] in 0..255, and digits [n] in 0..9.
LabeledImages: TypeAlias = tuple[np.ndarray, np.ndarray]


class Digits(MultipleDomainDataset):
    """A set of digits, partitioned into environments. A subclass implements `load_images` and `make_environments`."""

    SMALL_IMAGES = True

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        self.environments = list(self._environments_of_trial(root, self.version(root), trial_seed))

    @classmethod
    @lru_cache(maxsize=2)  # a process that runs several jobs of a trial builds its environments once
    def _environments_of_trial(cls, root: str | None, version: Hashable, trial_seed: int) -> list[ArrayEnvironment]:
        images, digits = cls.load_images(root)
        n = len(cls.ENVIRONMENTS)
        rng = trial_rng(trial_seed)
        environments = cls.make_environments(partition(images, digits, n, rng), rng)
        sources, _ = zip(*partition(np.arange(len(digits)), digits, n, trial_rng(trial_seed)), strict=True)
        # A subclass may leave images out, which are then known by their index only.
        return [
            replace(environment, sources=numbers) if len(environment) == len(numbers) else environment
            for environment, numbers in zip(environments, sources, strict=True)
        ]

    @staticmethod
    def load_images(root: str | None) -> LabeledImages:
        """Return all images and digits. The result is cached until `version` changes."""
        raise NotImplementedError("a subclass must implement load_images")

    @staticmethod
    def version(root: str | None) -> Hashable:
        """Return a value that changes whenever the files that `load_images` reads change."""
        return None

    @classmethod
    def make_environments(cls, parts: Sequence[LabeledImages], rng: RandomState) -> list[ArrayEnvironment]:
        """Return the environments, each made from one part of the digits."""
        raise NotImplementedError("a subclass must implement make_environments")


class Colored(Digits):
    """Digits labeled as below 5 or not. Color predicts the label better than shape, except in the last environment.

    Color and label agree in 90%, 80% and 10% of the images of the three environments.
    """

    ENVIRONMENTS = ["+90%", "+80%", "-90%"]
    DISAGREEMENT = (0.1, 0.2, 0.9)
    num_classes = 2
    class_names = ("5 to 9", "0 to 4")

    @classmethod
    def make_environments(cls, parts: Sequence[LabeledImages], rng: RandomState) -> list[ArrayEnvironment]:
        return [color(*part, d, rng) for part, d in zip(parts, cls.DISAGREEMENT, strict=True)]


class Rotated(Digits):
    """Digits rotated by another angle in each environment."""

    ENVIRONMENTS = ["0", "15", "30", "45", "60", "75"]
    num_classes = 10
    class_names = tuple("0123456789")

    @classmethod
    def make_environments(cls, parts: Sequence[LabeledImages], rng: RandomState) -> list[ArrayEnvironment]:
        return [rotate(*part, int(angle)) for part, angle in zip(parts, cls.ENVIRONMENTS, strict=True)]


def trial_rng(trial_seed: int) -> RandomState:
    """Return the random generator that assigns a trial's images to environments, and draws their labels and colors."""
    return RandomState(seed_hash(trial_seed))


def partition(images: np.ndarray, digits: np.ndarray, n: int, rng: RandomState) -> list[LabeledImages]:
    """Shuffle the images and split them into `n` parts; part i takes every n-th image, starting at the i-th."""
    order = rng.permutation(len(images))
    return [(images[order[i::n]], digits[order[i::n]]) for i in range(n)]


def color(images: np.ndarray, digits: np.ndarray, disagreement: float, rng: RandomState) -> ArrayEnvironment:
    """Return an environment of two classes, [digit < 5] with 25% label noise, in which colors predict the noisy label.

    Args:
        images: uint8 [n, height, width].
        digits: [n], 0..9.
        disagreement: probability that color and label differ.

    Returns:
        An environment with images uint8 [n, 2, height, width]. One channel per color: one holds the digit, the
        other is zero.
    """
    labels = (digits < 5) ^ (rng.random_sample(len(digits)) < LABEL_NOISE)
    channel = labels ^ (rng.random_sample(len(labels)) < disagreement)
    colored = np.zeros((len(images), 2, *images.shape[1:]), dtype=np.uint8)
    colored[np.arange(len(images)), channel.astype(int)] = images
    return ArrayEnvironment(colored, labels.astype(np.int64))


def rotate(images: np.ndarray, digits: np.ndarray, degrees: int) -> ArrayEnvironment:
    """Return an environment of ten classes with the images rotated counterclockwise about their center.

    PIL rotates (bilinear, black fill, 256 gray levels), and the result is bit-identical to DomainBed's. torchvision's
    rotation of tensors is faster but differs at the borders, by up to 112 gray levels on MNIST.

    Args:
        images: uint8 [n, height, width].
        digits: [n], 0..9.
        degrees: angle of rotation.
    """
    rotated = [np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)) for image in images]
    return ArrayEnvironment(np.stack(rotated)[:, None], digits.astype(np.int64))
