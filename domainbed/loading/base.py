"""The interface of a feed: it receives requests for batches and yields the batches, in order, on the device."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # images [n, channels, height, width], float32, and labels [n]


class Request(NamedTuple):
    """A request for a batch of one environment.

    Attributes:
        env: index of the environment.
        indices: [n], indices of the images.
        augmentation_key: selects the table of random numbers for the augmentation; None for no augmentation.
            Array environments, which are never augmented, ignore it.
        row: the table's row for the first image; the others use the rows that follow.
    """

    env: int
    indices: np.ndarray
    augmentation_key: int | None = None
    row: int = 0


class Feed:
    """A source of batches on the device.

    Attributes:
        batch_size: the suggested batch size for evaluation.
        bad_images: broken files that were replaced by other images.
    """

    batch_size: int

    def __init__(self) -> None:
        self.bad_images: set[str] = set()

    def batches(self, requests: Iterable[Sequence[Request]]) -> Iterator[list[Batch]]:
        """Yield, for each element of `requests`, its batches on the device.

        `requests` may be endless and is read ahead of the batches.

        Raises:
            UsageError: an image cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement batches")
