"""What a job trains on: its dataset, split, and which images each step and each evaluation asks for."""

from collections.abc import Iterator, Sequence

import torch

from domainbed.algorithms.base import Minibatch
from domainbed.datasets import MultipleDomainDataset, get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.loading.base import Feed, Request
from domainbed.loading.sampling import BatchSampler
from domainbed.loading.splits import Split, split_environment
from domainbed.seeding import seed_hash


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

    def __init__(self, config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], feed: Feed) -> None:
        hparams = config.resolved_hparams()
        self._feed = feed
        self._batch_size = int(hparams["batch_size"])
        self._samplers: dict[int, BatchSampler] = {}
        self._augmentation_keys: dict[int, int | None] = {}
        # Training environments first, for the algorithm has them apart.
        self._labeled = [env for env in range(len(dataset)) if env not in config.test_envs]
        unlabeled = [env for env in config.test_envs if len(splits[env].uda)]
        for env in [*self._labeled, *unlabeled]:
            indices = splits[env].uda if env in config.test_envs else splits[env].in_
            labels = dataset[env].labels[indices] if hparams["class_balanced"] else None
            self._samplers[env] = BatchSampler(indices, self._batch_size, config.seed, env, labels)
            is_augmented = dataset[env].augmented
            self._augmentation_keys[env] = seed_hash("augmentation", config.seed, env) if is_augmented else None

    def steps(self, start: int, stop: int) -> Iterator[tuple[list[Minibatch], list[torch.Tensor] | None]]:
        """Minibatches and unlabeled images of the steps start, …, stop - 1, read ahead."""
        for batches in self._feed.batches(self._requests(start, stop)):
            labeled, unlabeled = batches[: len(self._labeled)], batches[len(self._labeled) :]
            yield labeled, [x for x, _ in unlabeled] or None

    def _requests(self, start: int, stop: int) -> Iterator[list[Request]]:
        for first in range(start, stop, TABLE):
            last = min(first + TABLE, stop)
            tables = {env: sampler.batches(first, last) for env, sampler in self._samplers.items()}
            for step in range(first, last):
                row = step * self._batch_size
                yield [
                    Request(env, table[step - first], self._augmentation_keys[env], row)
                    for env, table in tables.items()
                ]


def evaluation_requests(
    config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], step: int, batch_size: int
) -> Iterator[tuple[str, Request]]:
    """All that the evaluation after `step` looks at, each image once: the record's name for it, and a request.

    As published, a training environment that is augmented is so in its evaluation, too; with --clean_evaluation it is
    not. Its in split may be left out by --eval splits.
    """
    for env, (environment, split) in enumerate(zip(dataset, splits, strict=True)):
        for part, indices in split.parts().items():
            if config.eval == "splits" and part == "in" and env not in config.test_envs:
                continue
            key = None
            if environment.augmented and not config.clean_evaluation:
                key = seed_hash("evaluation", config.seed, env, part, step)
            for row in range(0, len(indices), batch_size):
                yield f"env{env}_{part}_acc", Request(env, indices[row : row + batch_size], key, row)
