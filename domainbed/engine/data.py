"""What a job trains on: its dataset, split, on the device, and the batches of each step."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from domainbed.algorithms.base import Minibatch
from domainbed.datasets import MultipleDomainDataset, get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.loading.resident import ResidentImages
from domainbed.loading.sampling import BatchSampler
from domainbed.loading.splits import Split, split_environment


def load_data(config: JobConfig) -> tuple[MultipleDomainDataset, list[Split]]:
    """The job's dataset, fetched first where it must and can be, and the split of each environment.

    Raises:
        UsageError: the images are not there, can't be read, or are too few to split.
    """
    dataset_class = get_dataset_class(config.dataset)
    dataset_class.prepare(config.data_dir)
    dataset = dataset_class(config.data_dir, config.test_envs, config.resolved_hparams(), config.trial_seed)
    splits = [
        split_environment(
            len(environment),
            i,
            config.trial_seed,
            config.holdout_fraction,
            config.uda_holdout_fraction if i in config.test_envs else 0.0,
        )
        for i, environment in enumerate(dataset)
    ]
    return dataset, splits


TABLE = 1000  # steps whose indices are drawn at once: at most 4 MB an environment


class Batches:
    """The batches of every step: one a training environment and, in domain adaptation, one a test environment."""

    def __init__(
        self, config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], resident: list[ResidentImages]
    ) -> None:
        hparams = config.resolved_hparams()
        self._resident = resident
        self._labeled: dict[int, BatchSampler] = {}
        self._unlabeled: dict[int, BatchSampler] = {}
        for env, split in enumerate(splits):
            indices = split.uda if env in config.test_envs else split.in_
            if not len(indices):
                continue
            labels = dataset[env].labels[indices] if hparams["class_balanced"] else None
            samplers = self._unlabeled if env in config.test_envs else self._labeled
            samplers[env] = BatchSampler(indices, int(hparams["batch_size"]), config.seed, env, labels)

    def steps(self, start: int, stop: int) -> Iterator[tuple[list[Minibatch], list[torch.Tensor] | None]]:
        """Minibatches and unlabeled images of the steps start, …, stop - 1.

        The indices of up to TABLE steps go to the device together, so that no step waits for the host.
        """
        for first in range(start, stop, TABLE):
            yield from self._table(first, min(first + TABLE, stop))

    def _table(self, start: int, stop: int) -> Iterator[tuple[list[Minibatch], list[torch.Tensor] | None]]:
        labeled = {env: self._on_device(sampler.batches(start, stop)) for env, sampler in self._labeled.items()}
        unlabeled = {env: self._on_device(sampler.batches(start, stop)) for env, sampler in self._unlabeled.items()}
        for k in range(stop - start):
            minibatches = [self._resident[env].batch(table[k]) for env, table in labeled.items()]
            yield minibatches, [self._resident[env].batch(table[k])[0] for env, table in unlabeled.items()] or None

    def _on_device(self, table: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(table).to(self._resident[0].labels.device)
