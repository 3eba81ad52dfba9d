"""DomainBed's data loaders: an endless one for training, and one for evaluation that keeps its workers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, WeightedRandomSampler


class _EndlessBatches(Sampler[list[int]]):
    """Batches of indices, drawn with replacement, without end."""

    def __init__(self, weights: torch.Tensor, batch_size: int) -> None:
        self._sampler = WeightedRandomSampler(weights.tolist(), batch_size, replacement=True)

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield list(self._sampler)


class InfiniteDataLoader:
    """Yields batches of random items, drawn with replacement and with optional weights [n], without end."""

    def __init__(self, dataset: Dataset, weights: torch.Tensor | None, batch_size: int, num_workers: int) -> None:
        if weights is None:
            weights = torch.ones(len(dataset))  # type: ignore[arg-type]
        batches = _EndlessBatches(weights, batch_size)
        self._batches = iter(DataLoader(dataset, batch_sampler=batches, num_workers=num_workers))

    def __iter__(self) -> Iterator[Any]:
        return self._batches

    def __len__(self) -> int:
        raise ValueError("an InfiniteDataLoader has no length")


class FastDataLoader(DataLoader):
    """Yields each item once, in random order, in batches; worker processes are kept from one pass to the next."""

    def __init__(self, dataset: Dataset, batch_size: int, num_workers: int) -> None:
        super().__init__(dataset, batch_size, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0)
