"""What is in a dataset: the result of an inspection, which its tables, pictures and page show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from domainbed.inspection.image_files import Header
from domainbed.inspection.pixels import PixelStatistics


class Row(NamedTuple):
    """A row of pictures.

    Attributes:
        label: the lines of its label.
        description: what the pictures show, for people who do not see them.
        strip: the pictures side by side, as a WebP file; None if there are none.
        width, height: of the strip, in pixels.
    """

    label: Sequence[str]
    description: str
    strip: bytes | None
    width: int
    height: int


class Sheet(NamedTuple):
    """Rows of pictures, for the page, and all of them as a PNG file."""

    rows: list[Row]
    png: bytes


@dataclass(frozen=True)
class EnvironmentContents:
    """What is in an environment.

    Attributes:
        name: its name.
        counts: number of images of each class, [classes].
        headers: those of its image files that have one; empty for arrays.
        pixels: statistics of the sampled images.
        contact_sheet: random images of each class.
        views: images as training augments them; None if it does not.
    """

    name: str
    counts: np.ndarray
    headers: list[Header]
    pixels: PixelStatistics
    contact_sheet: Sheet
    views: Sheet | None


@dataclass(frozen=True)
class DatasetContents:
    """What is in a dataset.

    Attributes:
        name: its name.
        data_dir: the folder or file with its images; None if it needs none.
        classes: the names of the classes.
        input_shape: (channels, height, width) of the images as the network receives them.
        has_files: whether images are files.
        has_colors: whether the values of images are colors in 0..1, rather than any numbers.
        seed: of all random choices.
        environments: what is in each environment.
        warnings: what a user should know before training.
    """

    name: str
    data_dir: str | None
    classes: Sequence[str]
    input_shape: tuple[int, int, int]
    has_files: bool
    has_colors: bool
    seed: int
    environments: list[EnvironmentContents]
    warnings: list[str]

    @property
    def counts(self) -> np.ndarray:
        """The number of images, [classes, environments]."""
        return np.stack([environment.counts for environment in self.environments], axis=1)
