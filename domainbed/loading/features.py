"""The feed of the features of a frozen backbone."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from domainbed.loading.arrays import ArrayFeed
from domainbed.loading.base import Batch, Request
from domainbed.loading.sampling import draw_uniforms

BATCH_SIZE = 1024  # for evaluation


class FeatureFeed(ArrayFeed):
    """A feed of features. An augmented request draws one of the augmented views of each image.

    The features of a single view are not copied on a CPU, where they stay memory-mapped.

    Args:
        views: for each environment, the features [n, n_features] of each view: the images, then any augmented views.
        labels: for each environment, [n], integers.
        device, resident_gb: as in ArrayFeed.
    """

    def __init__(
        self,
        views: Sequence[Sequence[np.ndarray]],
        labels: Sequence[np.ndarray],
        device: torch.device,
        resident_gb: float | None = None,
    ) -> None:
        features = [v[0] if len(v) == 1 else np.concatenate(v) for v in views]
        repeated = [np.tile(y, len(v)) for v, y in zip(views, labels, strict=True)]
        super().__init__(features, repeated, device, resident_gb, BATCH_SIZE)
        self._sizes = [(len(y), len(v) - 1) for v, y in zip(views, labels, strict=True)]

    def batches(self, requests: Iterable[Sequence[Request]]) -> Iterator[list[Batch]]:
        return super().batches([self._choose_views(request) for request in group] for group in requests)

    def _choose_views(self, request: Request) -> Request:
        n_images, n_augmented = self._sizes[request.env]
        if request.augmentation_key is None or not n_augmented:
            return request
        stop = request.row + len(request.indices)
        uniform = draw_uniforms(request.augmentation_key, request.row, stop, 1)[:, 0]
        view = 1 + (uniform * n_augmented).astype(np.int64)
        return request._replace(indices=view * n_images + request.indices)
