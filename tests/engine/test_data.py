"""The images that steps and evaluations request, and their augmentation."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from domainbed.datasets import DATASETS, FileEnvironment, MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, evaluation_requests, load_data
from domainbed.engine.feed import num_loader_workers, part_numbers
from domainbed.loading.base import Feed, Request
from domainbed.loading.splits import split_environment

SIZES = (50, 40, 30, 20)


class Album(MultipleDomainDataset):
    """Four environments of photographs with a rare class 1."""

    ENVIRONMENTS = ["a", "b", "c", "d"]
    input_shape = (3, 224, 224)
    num_classes = 2

    def __init__(self, root, test_envs, hparams, trial_seed):
        self.environments = [
            FileEnvironment(
                "/album",
                [f"{env}/{i}.jpg" for i in range(n)],
                (np.arange(n) % 10 == 0).astype(np.int64),
                hparams["data_augmentation"] and env not in test_envs,
            )
            for env, n in enumerate(SIZES)
        ]


class RequestFeed(Feed):
    """A feed that returns the requests in place of images."""

    def batches(self, requests):
        for step in requests:
            yield [(request, None) for request in step]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with DATASETS.temporarily("Album", Album):
        yield


def make(**kwargs) -> JobConfig:
    defaults = {"test_envs": (1,), "hparams": '{"batch_size": 6}', "seed": 3}
    return JobConfig("Album", "ERM", **{**defaults, **kwargs})


def training_requests(steps: int, **kwargs) -> list[tuple[list[Request], list[Request]]]:
    config = make(**kwargs)
    hparams = config.resolved_hparams()
    dataset, splits = load_data(config, hparams)
    batches = Batches(config, hparams, dataset, splits, RequestFeed()).steps(0, steps)
    return [([request for request, _ in labeled], unlabeled or []) for labeled, unlabeled in batches]


def requests_of_evaluation(step: int = 5, batch_size: int = 7, **kwargs) -> list[tuple[str, Request]]:
    config = make(**kwargs)
    return list(evaluation_requests(config, *load_data(config, config.resolved_hparams()), step, batch_size))


def test_step_requests_a_batch_of_each_training_environment():
    for labeled, unlabeled in training_requests(30):
        assert [request.env for request in labeled] == [0, 2, 3]
        assert unlabeled == []
        for request in labeled:
            assert len(request.indices) == 6
            assert np.isin(request.indices, split_environment(SIZES[request.env], request.env, 0, 0.2).in_).all()


def test_domain_adaptation_requests_the_uda_split_without_augmentation():
    adaptation = {"task": "domain_adaptation", "uda_holdout_fraction": 0.5}
    for labeled, unlabeled in training_requests(30, **adaptation):
        assert [request.env for request in labeled] == [0, 2, 3]
        (request,) = unlabeled
        assert (request.env, request.augmentation_key) == (1, None)
        assert np.isin(request.indices, split_environment(SIZES[1], 1, 0, 0.2, 0.5).uda).all()


def augmentation_rows(steps: int, **kwargs) -> set[tuple[int, int]]:
    """Return (key, row) of each image's augmentation."""
    rows = [
        (request.augmentation_key, request.row + i)
        for labeled, _ in training_requests(steps, **kwargs)
        for request in labeled
        for i in range(len(request.indices))
    ]
    assert len(set(rows)) == len(rows), "two images share an augmentation"
    return set(rows)


def test_every_image_has_its_own_augmentation():
    first = augmentation_rows(40)
    assert len(first) == 40 * 3 * 6
    assert augmentation_rows(40) == first
    assert augmentation_rows(20) < first, "a batch does not depend on the number of steps"
    assert not augmentation_rows(40, seed=4) & first


def test_augmentation_can_be_disabled():
    for labeled, _ in training_requests(3, hparams='{"data_augmentation": false}'):
        assert {request.augmentation_key for request in labeled} == {None}


def test_class_balanced_batches_contain_all_classes_equally():
    def rare_fraction(hparams: str) -> float:
        dataset = Album(None, (), {"data_augmentation": True}, 0)
        drawn = [
            dataset[request.env].labels[request.indices]
            for labeled, _ in training_requests(300, hparams=hparams)
            for request in labeled
        ]
        return float(np.concatenate(drawn).mean())

    assert abs(rare_fraction('{"class_balanced": true}') - 0.5) < 0.03
    assert rare_fraction('{"class_balanced": false}') < 0.2


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_evaluation_requests_each_image_once(batch_size: int):
    named_requests = requests_of_evaluation(batch_size=batch_size)
    for env, n in enumerate(SIZES):
        split = split_environment(n, env, 0, 0.2)
        for part, indices in split.parts().items():
            requests = [request for name, request in named_requests if name == f"env{env}_{part}_acc"]
            assert np.concatenate([request.indices for request in requests]).tolist() == indices.tolist()
            assert max(len(request.indices) for request in requests) <= batch_size
            assert {request.env for request in requests} == {env}
    assert sum(len(request.indices) for _, request in named_requests) == sum(SIZES)


def augmentation_keys(named_requests: list[tuple[str, Request]]) -> dict[str, set]:
    keys: dict[str, set] = {}
    for name, request in named_requests:
        keys.setdefault(name, set()).add(request.augmentation_key)
    assert all(len(keys_of_split) == 1 for keys_of_split in keys.values())
    return keys


def test_both_splits_of_training_environments_are_evaluated_with_augmentation():
    for name, keys in augmentation_keys(requests_of_evaluation()).items():
        assert (keys == {None}) == name.startswith("env1_"), name
    for options in ({"clean_evaluation": True}, {"hparams": '{"data_augmentation": false}'}):
        assert {request.augmentation_key for _, request in requests_of_evaluation(**options)} == {None}


def test_evaluation_does_not_depend_on_the_batch_size():
    def augmentations(**kwargs) -> dict[tuple[str, int], tuple[int | None, int]]:
        return {
            (name, int(index)): (request.augmentation_key, request.row + i)
            for name, request in requests_of_evaluation(**kwargs)
            for i, index in enumerate(request.indices)
        }

    augmented = [p for (name, _), p in augmentations().items() if not name.startswith("env1_")]
    assert max(Counter(augmented).values()) == 1, "two images share an augmentation"
    assert augmentations(batch_size=1) == augmentations(batch_size=7) == augmentations(batch_size=1000)
    for other in ({"step": 6}, {"seed": 4}):
        assert not set(augmentations(**other).values()) & set(augmented)
    omitted = {"env0_in_acc", "env2_in_acc", "env3_in_acc"}
    assert augmentations(eval="splits") == {k: v for k, v in augmentations().items() if k[0] not in omitted}


def test_part_numbers_differ_between_parts():
    split = split_environment(30, 0, 0, 0.2, 0.5)
    numbers = part_numbers(split)
    assert len(numbers) == 30
    for (_, first), (_, second) in itertools.combinations(split.parts().items(), 2):
        assert len(set(numbers[first])) == len(set(numbers[second])) == 1
        assert numbers[first][0] != numbers[second][0]


def test_default_number_of_loader_workers():
    import torch

    assert num_loader_workers(None, torch.device("cpu")) == 0
    assert 1 <= num_loader_workers(None, torch.device("cuda")) <= 8
    assert num_loader_workers(3, torch.device("cpu")) == num_loader_workers(3, torch.device("cuda")) == 3
