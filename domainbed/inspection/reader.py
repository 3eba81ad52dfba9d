"""Reads the images of a dataset as the network receives them, before the normalization of their colors."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from domainbed.datasets import ArrayEnvironment, FileEnvironment
from domainbed.errors import UsageError, one_line
from domainbed.loading.augmentation import denormalize

ImageEnvironment: TypeAlias = ArrayEnvironment | FileEnvironment
Key: TypeAlias = tuple[int, int]  # an environment, and the index of an image in it


class ImageReader:
    """Reads images without augmentation, and remembers those that cannot be read.

    Attributes:
        environments: the environments.
        names: their names.
        broken: each image that could not be read -> a message that names it.
    """

    def __init__(self, environments: Sequence[ImageEnvironment], names: Sequence[str]) -> None:
        self.environments = environments
        self.names = names
        self.broken: dict[Key, str] = {}

    def name(self, env: int, i: int) -> str:
        """Return what identifies an image for people: its path, or its environment and index."""
        environment = self.environments[env]
        return environment.files[i] if isinstance(environment, FileEnvironment) else f"{self.names[env]}[{i}]"

    def read(self, env: int, i: int) -> np.ndarray | None:
        """Return an image, [channels, height, width], with the values of `raw_values`; None if it cannot be read."""
        if (env, i) in self.broken:
            return None
        try:
            x, _ = self.environments[env][i]
        except UsageError as error:
            self.broken[env, i] = one_line(error)
            return None
        return raw_values(self.environments[env], x[None])[0]


def raw_values(environment: ImageEnvironment, x: torch.Tensor) -> np.ndarray:
    """Return inputs of the network, [n, channels, height, width], without the normalization that photos have.

    Colors of photos and of uint8 arrays are in 0..1; other arrays have their own units.
    """
    return (denormalize(x) / 255 if isinstance(environment, FileEnvironment) else x).numpy()


def has_colors(environment: ImageEnvironment) -> bool:
    """Return whether the values of the images are colors in 0..1, rather than any numbers."""
    return isinstance(environment, FileEnvironment) or environment.images.dtype == np.uint8
