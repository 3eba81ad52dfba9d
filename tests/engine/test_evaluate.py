import numpy as np
import pytest
import torch

from domainbed.algorithms.base import Algorithm
from domainbed.engine.evaluate import accuracies, split_on_oom
from domainbed.loading.arrays import ArrayFeed
from domainbed.loading.base import Request


class Small(Algorithm):
    """Runs out of memory above `most` images."""

    def __init__(self, most: int) -> None:
        super().__init__((1, 1, 2), 2, 1, {})
        self.most = most
        self.sizes: list[int] = []

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(x))
        return x.flatten(1)


@pytest.mark.parametrize(("most", "sizes"), [(9, [9]), (5, [5, 4]), (2, [2, 1, 2, 2, 2]), (1, [1] * 9)])
def test_what_does_not_fit_is_predicted_in_halves(most: int, sizes: list[int]):
    x = torch.randn(9, 1, 1, 2)
    algorithm = Small(most)
    assert torch.equal(split_on_oom(algorithm.predict, x), x.flatten(1))
    assert algorithm.sizes == sizes


def test_one_image_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        split_on_oom(Small(0).predict, torch.randn(3, 1, 1, 2))


def test_other_errors_are_not_swallowed():
    algorithm = Small(9)
    algorithm.predict = lambda x: x @ torch.zeros(7)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="size"):
        split_on_oom(algorithm.predict, torch.randn(3, 1, 1, 2))


def test_requests_of_one_name_are_counted_together():
    images = np.random.RandomState(0).randn(10, 1, 1, 2)
    labels = np.arange(10) % 2
    requests = [
        ("env0_in_acc", Request(0, np.array([0, 1, 2]))),
        ("env0_out_acc", Request(0, np.array([9]))),
        ("env0_in_acc", Request(0, np.array([5]))),
    ]
    found = accuracies(Small(2), ArrayFeed([images], [labels], torch.device("cpu")), requests)
    right = images.reshape(10, 2).argmax(1) == labels
    assert found == {"env0_in_acc": right[[0, 1, 2, 5]].mean(), "env0_out_acc": float(right[9])}
