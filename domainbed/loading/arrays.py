"""The feed of array environments: all images stay on the device during the job if they fit."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from domainbed.loading.base import Batch, Feed, Request
from domainbed.loading.device_memory import move_to_device

# Numbers in the images that are read at once (8 MiB): a few operations serve many small batches.
VALUES_PER_READ = 2**21
# Indices are moved to the device for this many requests at once or, with large batches, about this many indices.
REQUESTS_PER_TRANSFER = 1000
INDICES_PER_TRANSFER = 2**20


class ArrayFeed(Feed):
    """A feed that indexes tensors.

    uint8 images are stored as uint8 (a quarter of the memory) and converted to floats in [0, 1] batch by batch.

    Args:
        images: for each environment, images [n, channels, height, width] or features [n, n_features], uint8 or
            floating point.
        labels: for each environment, [n], integers.
        device: the device of the batches.
        resident_gb: as `limit_gb` of `move_to_device`.
        batch_size: the suggested batch size for evaluation; by default, what suits images.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        device: torch.device,
        resident_gb: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.device = device
        # A CPU is fastest if activations fit in its cache.
        self.batch_size = batch_size or (64 if device.type == "cpu" else 2048)
        host = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(images, labels, strict=True)]
        n_bytes = sum(x.nbytes + y.nbytes for x, y in host)

        def move(device: torch.device) -> list[Batch]:
            return [(x.to(device), y.to(device)) for x, y in host]

        self._image_sizes = [x.shape[1:].numel() for x, _ in host]
        self._environments = move_to_device(move, n_bytes, device, resident_gb) or host

    def batches(self, requests: Iterable[Sequence[Request]]) -> Iterator[list[Batch]]:
        # The indices of many requests are transferred together, so that no batch waits for the host.
        for block in _blocks(requests):
            runs = list(self._runs(block))
            by_env = [_group_by_env(run) for run in runs]
            selections = [selection for envs in by_env for selection in envs.values()]
            if not selections:
                yield from ([] for _ in block)
                continue
            all_indices = torch.from_numpy(np.concatenate([r.indices for selection in selections for r in selection]))
            lengths = [sum(len(r.indices) for r in selection) for selection in selections]
            indices = iter(all_indices.to(self._environments[0][1].device).split(lengths))
            for run, envs in zip(runs, by_env, strict=True):
                read = {env: self._select(env, next(indices), selection) for env, selection in envs.items()}
                yield from ([next(read[request.env]) for request in group] for group in run)

    def _runs(self, block: Sequence[Sequence[Request]]) -> Iterator[list[Sequence[Request]]]:
        """Split successive elements of `requests` into runs that are each read at once."""
        run: list[Sequence[Request]] = []
        n_values = 0
        for group in block:
            n_new = sum(len(request.indices) * self._image_sizes[request.env] for request in group)
            if run and n_values + n_new > VALUES_PER_READ:
                yield run
                run, n_values = [], 0
            run.append(group)
            n_values += n_new
        yield run

    def _select(self, env: int, indices: torch.Tensor, requests: Sequence[Request]) -> Iterator[Batch]:
        """Return the batches of some requests for an environment, given the indices of all of them."""
        images, labels = (self._to_device(values.index_select(0, indices)) for values in self._environments[env])
        images = images.div(255) if images.dtype == torch.uint8 else images.float()
        lengths = [len(request.indices) for request in requests]
        return zip(images.split(lengths), labels.split(lengths), strict=True)

    def _to_device(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and self.device.type == "cuda":
            x = x.pin_memory()  # copies from pageable memory block the host
        return x.to(self.device, non_blocking=True)


def _blocks(requests: Iterable[Sequence[Request]]) -> Iterator[list[Sequence[Request]]]:
    """Split `requests` into blocks whose indices are transferred at once."""
    block: list[Sequence[Request]] = []
    n_indices = 0
    for group in requests:
        block.append(group)
        n_indices += sum(len(request.indices) for request in group)
        if len(block) == REQUESTS_PER_TRANSFER or n_indices >= INDICES_PER_TRANSFER:
            yield block
            block, n_indices = [], 0
    if block:
        yield block


def _group_by_env(groups: Iterable[Sequence[Request]]) -> dict[int, list[Request]]:
    """Return the requests for each environment, in their order."""
    requests: dict[int, list[Request]] = {}
    for group in groups:
        for request in group:
            requests.setdefault(request.env, []).append(request)
    return requests
