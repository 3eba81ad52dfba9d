"""The data of a job: dataset, splits, and the images that each step and each evaluation requests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from domainbed.algorithms.base import Minibatch
from domainbed.datasets import MultipleDomainDataset
from domainbed.datasets.check import check_dataset
from domainbed.engine.algorithm_errors import location
from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError, list_some, one_line
from domainbed.hparams import Hparams
from domainbed.loading.base import Feed, Request
from domainbed.loading.sampling import BatchSampler
from domainbed.loading.splits import Split, split_environment
from domainbed.registry import is_builtin
from domainbed.seeding import seed_hash

CHUNK_STEPS = 1000  # steps whose indices are drawn at once,
CHUNK_INDICES = 2**19  # but with large batches, only about as many as this: 4 MB per environment


@contextmanager
def locate_dataset_errors(dataset_class: type[MultipleDomainDataset], name: str) -> Iterator[None]:
    """Turn errors in the code of a user's dataset into a UsageError that names the line."""
    try:
        yield
    except (UsageError, OSError):
        raise
    except Exception as error:
        if is_builtin(dataset_class):
            raise
        message = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
        raise UsageError(f"dataset {name!r}: {message}{location(error, dataset_class)}") from error


def load_dataset(config: JobConfig, hparams: Hparams, test_envs: tuple[int, ...]) -> MultipleDomainDataset:
    """Return the job's dataset, downloaded first if necessary and possible. Images of `test_envs` are not augmented.

    Raises:
        UsageError: the images are missing or cannot be read, or the dataset is not what its class declares.
    """
    dataset_class = config.dataset_class()
    with locate_dataset_errors(dataset_class, config.dataset):
        dataset_class.prepare(config.data_dir)
        dataset = dataset_class(config.data_dir, test_envs, hparams, config.trial_seed)
        check_dataset(config.dataset, dataset, config.environment_names())
    return dataset


def load_data(config: JobConfig, hparams: Hparams) -> tuple[MultipleDomainDataset, list[Split]]:
    """Return the job's dataset, and the split of each environment.

    Raises:
        UsageError: as `load_dataset`; or the images are too few to split; or the job splits groups, and the dataset has
            none, or some in several environments.
    """
    dataset = load_dataset(config, hparams, config.test_envs)
    groups = environment_groups(config, dataset) if config.splits_groups() else [None] * len(dataset)
    splits = [
        split_environment(
            len(environment),
            i,
            config.trial_seed,
            config.holdout_fraction,
            config.uda_holdout_fraction if i in config.test_envs else 0.0,
            groups[i],
        )
        for i, environment in enumerate(dataset)
    ]
    return dataset, splits


def environment_groups(config: JobConfig, dataset: MultipleDomainDataset) -> list[np.ndarray]:
    """Return the groups of each environment's images.

    Raises:
        UsageError: images have no groups, or a group has images in several environments.
    """
    names = config.environment_names()
    groups = [values for environment in dataset if (values := getattr(environment, "groups", None)) is not None]
    if len(groups) < len(dataset):
        raise UsageError(
            f"--split_by group: {config.dataset} does not define groups of images; a Table does if --columns names "
            "that column, such as --columns group=patient"
        )
    environment_of: dict[object, str] = {}
    shared = {
        group: f"{group} in {environment_of[group]} and {name}"
        for name, values in zip(names, groups, strict=True)
        for group in dict.fromkeys(values)
        if environment_of.setdefault(group, name) != name
    }
    if shared:
        raise UsageError(
            f"--split_by group: {len(shared):,} groups have images in several environments, so they would be in both "
            f"training and test data ({list_some([*shared.values()], 3, '; ')}). If these are different groups of the "
            "same name, rename them, e.g. hospital1-patient1. Otherwise, delete their images from all but one "
            "environment, or pass --split_by image"
        )
    return groups


class Batches:
    """The batches of all steps: one per training environment and, in domain adaptation, one per test environment."""

    def __init__(
        self,
        config: JobConfig,
        hparams: Hparams,
        dataset: MultipleDomainDataset,
        splits: Sequence[Split],
        feed: Feed,
    ) -> None:
        self._feed = feed
        self._batch_size = int(hparams["batch_size"])
        self._samplers: dict[int, BatchSampler] = {}
        self._augmentation_keys: dict[int, int | None] = {}
        # Training environments first, because an algorithm receives the unlabeled batches separately.
        self._labeled = [env for env in range(len(dataset)) if env not in config.test_envs]
        unlabeled = [env for env in config.test_envs if len(splits[env].uda)]
        for env in [*self._labeled, *unlabeled]:
            indices = splits[env].uda if env in config.test_envs else splits[env].in_
            labels = dataset[env].labels[indices] if hparams["class_balanced"] else None
            self._samplers[env] = BatchSampler(indices, self._batch_size, config.seed, env, labels)
            is_augmented = dataset[env].is_augmented
            self._augmentation_keys[env] = seed_hash("augmentation", config.seed, env) if is_augmented else None

    def steps(self, start: int, stop: int) -> Iterator[tuple[list[Minibatch], list[torch.Tensor] | None]]:
        """Yield minibatches and unlabeled images of the steps start, …, stop - 1, read ahead."""
        for batches in self._feed.batches(self._requests(start, stop)):
            labeled, unlabeled = batches[: len(self._labeled)], batches[len(self._labeled) :]
            yield labeled, [x for x, _ in unlabeled] or None

    def _requests(self, start: int, stop: int) -> Iterator[list[Request]]:
        chunk_steps = max(1, min(CHUNK_STEPS, CHUNK_INDICES // self._batch_size))
        for first in range(start, stop, chunk_steps):
            last = min(first + chunk_steps, stop)
            indices = {env: sampler.batches(first, last) for env, sampler in self._samplers.items()}
            for step in range(first, last):
                row = step * self._batch_size
                yield [
                    Request(env, chunk[step - first], self._augmentation_keys[env], row)
                    for env, chunk in indices.items()
                ]


def evaluation_requests(
    config: JobConfig, dataset: MultipleDomainDataset, splits: Sequence[Split], step: int, batch_size: int
) -> Iterator[tuple[str, Request]]:
    """Yield the requests of the evaluation after `step`, each with the name of its accuracy in the record.

    Every image is requested once. As in the published protocol, the augmentation of training environments also applies
    to their evaluation, unless --clean_evaluation is given. Their in splits are requested only by `--eval all`.
    """
    for env, (environment, split) in enumerate(zip(dataset, splits, strict=True)):
        for part, indices in split.parts().items():
            if config.eval != "all" and part == "in" and env not in config.test_envs:
                continue
            key = None
            if environment.is_augmented and not config.clean_evaluation:
                key = seed_hash("evaluation", config.seed, env, part, step)
            for row in range(0, len(indices), batch_size):
                yield f"env{env}_{part}_acc", Request(env, indices[row : row + batch_size], key, row)


def validation_requests(config: JobConfig, splits: Sequence[Split], batch_size: int) -> Iterator[tuple[str, Request]]:
    """Yield the requests of the training environments' out splits, without augmentation, each with its loss's name."""
    for env, split in enumerate(splits):
        if env not in config.test_envs:
            for row in range(0, len(split.out), batch_size):
                yield f"env{env}_out_loss", Request(env, split.out[row : row + batch_size], None, row)
