"""Which images a step and an evaluation ask for, and how they are augmented."""

import itertools
from collections import Counter

import numpy as np
import pytest

from domainbed.datasets import DATASETS, FileEnvironment, MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches, evaluation_requests, load_data
from domainbed.engine.feed import loader_workers, part_numbers
from domainbed.loading.base import Feed, Request
from domainbed.loading.splits import split_environment

SIZES = (50, 40, 30, 20)


class Album(MultipleDomainDataset):
    """Four environments of photographs, of which class 1 is rare."""

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


class Recorder(Feed):
    """Brings no images, only the requests."""

    def batches(self, requests):
        for together in requests:
            yield [(request, None) for request in together]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(DATASETS._registered, "Album", Album)


def make(**kwargs) -> JobConfig:
    defaults = {"test_envs": (1,), "hparams": '{"batch_size": 6}', "seed": 3}
    return JobConfig("Album", "ERM", **{**defaults, **kwargs})


def asked_in_training(steps: int, **kwargs) -> list[tuple[list[Request], list[Request]]]:
    config = make(**kwargs)
    dataset, splits = load_data(config)
    batches = Batches(config, dataset, splits, Recorder()).steps(0, steps)
    return [([request for request, _ in labeled], unlabeled or []) for labeled, unlabeled in batches]


def asked_in_evaluation(step: int = 5, batch_size: int = 7, **kwargs) -> list[tuple[str, Request]]:
    config = make(**kwargs)
    return list(evaluation_requests(config, *load_data(config), step, batch_size))


def test_a_step_asks_for_a_batch_of_each_training_environments_in_split():
    for labeled, unlabeled in asked_in_training(30):
        assert [request.env for request in labeled] == [0, 2, 3]
        assert unlabeled == []
        for request in labeled:
            assert len(request.indices) == 6
            assert np.isin(request.indices, split_environment(SIZES[request.env], request.env, 0, 0.2).in_).all()


def test_in_adaptation_the_test_environment_comes_last_clean_and_from_its_uda_split():
    adapt = {"task": "domain_adaptation", "uda_holdout_fraction": 0.5}
    for labeled, unlabeled in asked_in_training(30, **adapt):
        assert [request.env for request in labeled] == [0, 2, 3]
        (request,) = unlabeled
        assert (request.env, request.augmentation_key) == (1, None)
        assert np.isin(request.indices, split_environment(SIZES[1], 1, 0, 0.2, 0.5).uda).all()


def rows_used(steps: int, **kwargs) -> set[tuple[int, int]]:
    """(key, row) of each image's augmentation."""
    used = [
        (request.augmentation_key, request.row + i)
        for labeled, _ in asked_in_training(steps, **kwargs)
        for request in labeled
        for i in range(len(request.indices))
    ]
    assert len(set(used)) == len(used), "two images are augmented alike"
    return set(used)


def test_every_image_of_every_step_and_environment_is_augmented_on_its_own():
    first = rows_used(40)
    assert len(first) == 40 * 3 * 6
    assert rows_used(40) == first
    assert rows_used(20) < first, "what a step sees does not depend on how many there are"
    assert not rows_used(40, seed=4) & first


def test_without_augmentation_there_is_none():
    for labeled, _ in asked_in_training(3, hparams='{"data_augmentation": false}'):
        assert {request.augmentation_key for request in labeled} == {None}


def test_class_balanced_batches_hold_the_rare_class_as_often():
    def rare(hparams: str) -> float:
        dataset = Album(None, (), {"data_augmentation": True}, 0)
        drawn = [
            dataset[request.env].labels[request.indices]
            for labeled, _ in asked_in_training(300, hparams=hparams)
            for request in labeled
        ]
        return float(np.concatenate(drawn).mean())

    assert abs(rare('{"class_balanced": true}') - 0.5) < 0.03
    assert rare('{"class_balanced": false}') < 0.2


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_an_evaluation_asks_for_each_image_once(batch_size: int):
    asked = asked_in_evaluation(batch_size=batch_size)
    for env, n in enumerate(SIZES):
        split = split_environment(n, env, 0, 0.2)
        for part, indices in split.parts().items():
            requests = [request for name, request in asked if name == f"env{env}_{part}_acc"]
            assert np.concatenate([request.indices for request in requests]).tolist() == indices.tolist()
            assert max(len(request.indices) for request in requests) <= batch_size
            assert {request.env for request in requests} == {env}
    assert sum(len(request.indices) for _, request in asked) == sum(SIZES)


def keys(asked: list[tuple[str, Request]]) -> dict[str, set]:
    found: dict[str, set] = {}
    for name, request in asked:
        found.setdefault(name, set()).add(request.augmentation_key)
    assert all(len(of_name) == 1 for of_name in found.values())
    return found


def test_training_environments_are_evaluated_augmented_both_splits_of_them():
    for name, of_name in keys(asked_in_evaluation()).items():
        assert (of_name == {None}) == name.startswith("env1_"), name
    assert set().union(*keys(asked_in_evaluation(clean_evaluation=True)).values()) == {None}
    assert set().union(*keys(asked_in_evaluation(hparams='{"data_augmentation": false}')).values()) == {None}


def test_the_same_pictures_are_evaluated_whatever_the_batches():
    def pictures(**kwargs) -> dict[tuple[str, int], tuple[int | None, int]]:
        return {
            (name, int(index)): (request.augmentation_key, request.row + i)
            for name, request in asked_in_evaluation(**kwargs)
            for i, index in enumerate(request.indices)
        }

    augmented = [p for (name, _), p in pictures().items() if not name.startswith("env1_")]
    assert max(Counter(augmented).values()) == 1, "two images are augmented alike"
    assert pictures(batch_size=1) == pictures(batch_size=7) == pictures(batch_size=1000)
    for other in ({"step": 6}, {"seed": 4}):
        assert not set(pictures(**other).values()) & set(augmented)
    fewer = pictures(eval="splits")
    assert fewer == {k: v for k, v in pictures().items() if k[0] not in ("env0_in_acc", "env2_in_acc", "env3_in_acc")}


def test_parts_are_numbered_image_by_image():
    split = split_environment(30, 0, 0, 0.2, 0.5)
    numbers = part_numbers(split)
    assert len(numbers) == 30
    for (_, one), (_, other) in itertools.combinations(split.parts().items(), 2):
        assert len(set(numbers[one])) == len(set(numbers[other])) == 1
        assert numbers[one][0] != numbers[other][0]


def test_a_cpu_reads_by_itself_and_a_gpu_has_help():
    import torch

    assert loader_workers(None, torch.device("cpu")) == 0
    assert 1 <= loader_workers(None, torch.device("cuda")) <= 8
    assert loader_workers(3, torch.device("cpu")) == loader_workers(3, torch.device("cuda")) == 3
