"""The contract of a feed: it is asked for batches by index and brings them, in order, to the device."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # images [n, channels, height, width], float32, and labels [n]


class Request(NamedTuple):
    """A batch of one environment.

    Attributes:
        env: the environment's number.
        indices: [n], which of its images.
        augmentation_key: names the table of numbers that says how each image is augmented; None to leave them as they
            are. Images that are never augmented (arrays) ignore it.
        row: the first of the table's n rows that are meant.
    """

    env: int
    indices: np.ndarray
    augmentation_key: int | None = None
    row: int = 0


class Feed:
    """Brings images to the device.

    Attributes:
        batch_size: how many images at once are good for evaluation.
        bad_images: the files that could not be decoded and were replaced.
    """

    batch_size: int

    def __init__(self) -> None:
        self.bad_images: set[str] = set()

    def batches(self, requests: Iterable[Sequence[Request]]) -> Iterator[list[Batch]]:
        """For each of `requests`, which may be endless, the batches that it asks for, on the device.

        Requests are read ahead of what has been delivered.

        Raises:
            UsageError: an image can't be read.
        """
        raise NotImplementedError(f"{type(self).__name__} feeds nothing")
