import numpy as np
import pytest
import torch

from domainbed.algorithms.base import Algorithm
from domainbed.engine.evaluate import split_means, split_on_oom
from domainbed.loading.arrays import ArrayFeed
from domainbed.loading.base import Request


class RunsOutOfMemory(Algorithm):
    """An algorithm that runs out of memory on batches larger than `max_images`."""

    def __init__(self, max_images: int) -> None:
        super().__init__((1, 1, 2), 2, 1, {})
        self.max_images = max_images
        self.sizes: list[int] = []

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.max_images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(x))
        return x.flatten(1)


@pytest.mark.parametrize(("max_images", "sizes"), [(9, [9]), (5, [5, 4]), (2, [2, 1, 2, 2, 2]), (1, [1] * 9)])
def test_batch_that_does_not_fit_is_split_into_halves(max_images: int, sizes: list[int]):
    x = torch.randn(9, 1, 1, 2)
    algorithm = RunsOutOfMemory(max_images)
    assert torch.equal(split_on_oom(algorithm.predict, x), x.flatten(1))
    assert algorithm.sizes == sizes


def test_batches_of_a_size_that_the_algorithm_sets_are_not_halved():
    images, labels = np.zeros((4, 1, 1, 2)), np.zeros(4, dtype=int)
    feed, requests = ArrayFeed([images], [labels], torch.device("cpu")), [("env0_in_acc", Request(0, np.arange(4)))]
    algorithm = RunsOutOfMemory(2)
    assert split_means(algorithm, feed, requests) == {"env0_in_acc": 1}
    algorithm.EVAL_BATCH_SIZE = 4  # type: ignore[misc]
    with pytest.raises(torch.OutOfMemoryError):
        split_means(algorithm, feed, requests)


def test_single_image_that_does_not_fit_raises():
    with pytest.raises(torch.OutOfMemoryError):
        split_on_oom(RunsOutOfMemory(0).predict, torch.randn(3, 1, 1, 2))


def test_other_errors_are_raised():
    algorithm = RunsOutOfMemory(9)
    algorithm.predict = lambda x: x @ torch.zeros(7)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="size"):
        split_on_oom(algorithm.predict, torch.randn(3, 1, 1, 2))


def test_requests_of_one_name_form_one_split():
    images = np.random.RandomState(0).randn(10, 1, 1, 2)
    labels = np.arange(10) % 2
    requests = [
        ("env0_in_acc", Request(0, np.array([0, 1, 2]))),
        ("env0_out_acc", Request(0, np.array([9]))),
        ("env0_in_acc", Request(0, np.array([5]))),
    ]
    measured = split_means(RunsOutOfMemory(2), ArrayFeed([images], [labels], torch.device("cpu")), requests)
    correct = images.reshape(10, 2).argmax(1) == labels
    assert measured == {"env0_in_acc": correct[[0, 1, 2, 5]].mean(), "env0_out_acc": float(correct[9])}
