"""Environments whose images are arrays: on the device from the first step to the last, where they fit."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from domainbed.loading.base import Batch, Feed, Request
from domainbed.loading.residence import move_to_device

AHEAD = 1000  # requests whose indices go to the device at once: some megabytes


class ArrayFeed(Feed):
    """Draws batches by index from tensors.

    uint8 images stay uint8 (a quarter of the memory) and become floats in [0, 1] as they are drawn.

    Args:
        images: of each environment, [n, channels, height, width], uint8 or floating point.
        labels: of each environment, [n], integers.
        device: where batches are wanted.
        resident_gb: see `moved_if_it_fits`.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        device: torch.device,
        resident_gb: float | None = None,
    ) -> None:
        super().__init__()
        self.device = device
        self.batch_size = 64 if device.type == "cpu" else 2048  # a CPU is fastest where activations fit its cache
        host = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(images, labels, strict=True)]
        n_bytes = sum(x.nbytes + y.nbytes for x, y in host)

        def move(device: torch.device) -> list[Batch]:
            return [(x.to(device), y.to(device)) for x, y in host]

        self._environments = move_to_device(move, n_bytes, device, resident_gb) or host

    def batches(self, requests: Iterable[Sequence[Request]]) -> Iterator[list[Batch]]:
        # The indices of many requests are moved together, so that no batch waits for the host.
        requests = iter(requests)
        while block := list(itertools.islice(requests, AHEAD)):
            flat = [request for together in block for request in together]
            if not flat:
                yield from ([] for _ in block)
                continue
            table = torch.from_numpy(np.concatenate([request.indices for request in flat]))
            rows = iter(table.to(self._environments[0][1].device).split([len(request.indices) for request in flat]))
            for together in block:
                yield [self._draw(request.env, next(rows)) for request in together]

    def _draw(self, env: int, indices: torch.Tensor) -> Batch:
        images, labels = (self._to_device(values[indices]) for values in self._environments[env])
        return images.div(255) if images.dtype == torch.uint8 else images.float(), labels

    def _to_device(self, drawn: torch.Tensor) -> torch.Tensor:
        if drawn.device.type == "cpu" and self.device.type == "cuda":
            drawn = drawn.pin_memory()  # without which the host would wait for the copy
        return drawn.to(self.device, non_blocking=True)
