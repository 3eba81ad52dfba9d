import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.loading import arrays, device_memory
from domainbed.loading.arrays import ArrayFeed
from domainbed.loading.base import Request
from domainbed.loading.device_memory import move_to_device

CPU = torch.device("cpu")


def one(feed: ArrayFeed, env: int, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ((batch,),) = feed.batches([[Request(env, np.array(indices))]])
    return batch


def test_uint8_images_become_floats_in_batches():
    images = np.random.RandomState(0).randint(0, 256, (5, 2, 3, 3)).astype(np.uint8)
    feed = ArrayFeed([images], [np.arange(5)], CPU)
    x, y = one(feed, 0, [4, 0, 0])
    assert x.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(images[[4, 0, 0]]).float() / 255)
    assert y.tolist() == [4, 0, 0]
    assert torch.equal(one(feed, 0, [0])[0], x[1:2]), "selecting a batch modified the stored images"


def test_float_images_are_unchanged():
    images = np.random.RandomState(0).rand(5, 1, 2, 2)
    assert torch.equal(one(ArrayFeed([images], [np.arange(5)], CPU), 0, [3])[0], torch.from_numpy(images[[3]]).float())


@pytest.mark.parametrize("block_size", [1, 2, 1000])
def test_batches_have_the_order_of_requests_for_any_block_size(block_size: int, monkeypatch):
    monkeypatch.setattr(arrays, "REQUESTS_PER_TRANSFER", block_size)
    images = [np.full((n, 1, 2, 2), n, dtype=np.float32) for n in (3, 4)]
    feed = ArrayFeed(images, [np.arange(3), np.arange(4)], CPU)
    requests = [[Request(0, np.array([0, 2])), Request(1, np.array([3]))], [], [Request(1, np.array([1, 0, 1]))]]
    found = list(feed.batches(requests))
    assert [[y.tolist() for _, y in batches] for batches in found] == [[[0, 2], [3]], [], [[1, 0, 1]]]
    assert [x.unique().tolist() for batches in found for x, _ in batches] == [[3.0], [4.0], [4.0]]
    endless = feed.batches([Request(0, np.array([i % 3]))] for i in itertools.count())
    assert [y.item() for ((_, y),) in itertools.islice(endless, 5)] == [0, 1, 2, 0, 1]


sizes = st.lists(st.integers(0, 5), max_size=4)  # of the requests of a step


@given(steps=st.lists(st.lists(st.tuples(st.integers(0, 2), sizes), max_size=3), max_size=9), n_read=st.integers(1, 99))
@settings(max_examples=100, deadline=None)
def test_batches_are_those_of_single_requests(steps: list[list[tuple[int, list[int]]]], n_read: int):
    """However many are read at once, also if a step requests an environment twice, or no images."""
    images = [np.random.RandomState(env).randint(0, 256, (6, 1, 2, 1 + env)).astype(np.uint8) for env in range(3)]
    labels = [np.arange(6) + 10 * env for env in range(3)]
    requests = [[Request(env, np.array(indices, dtype=np.int64)) for env, indices in step] for step in steps]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "VALUES_PER_READ", n_read)
        patch.setattr(arrays, "REQUESTS_PER_TRANSFER", 4)
        found = list(ArrayFeed(images, labels, CPU).batches(requests))
    assert [len(batches) for batches in found] == [len(step) for step in steps]
    for step, batches in zip(requests, found, strict=True):
        for request, (x, y) in zip(step, batches, strict=True):
            expected = torch.from_numpy(images[request.env])[request.indices].float() / 255
            assert x.shape == expected.shape
            assert x.is_contiguous()
            assert torch.equal(x, expected)
            assert y.tolist() == labels[request.env][request.indices].tolist()


def test_images_that_do_not_fit_stay_on_the_host(monkeypatch, capsys):
    """Use the meta device as a device with little memory."""
    device = torch.device("meta")
    monkeypatch.setattr(device_memory, "free_bytes", lambda device: 1000)
    assert move_to_device(str, 500, device, None) == "meta"
    assert move_to_device(str, 501, device, None) is None
    assert "the limit on the device is 0.00 GiB (half of the free memory)" in capsys.readouterr().out
    assert move_to_device(str, 2**30, device, 1.0) == "meta"
    assert move_to_device(str, 2**30 + 1, device, 1.0) is None
    assert move_to_device(str, 1, device, 0) is None

    def full(device: torch.device) -> None:
        raise torch.OutOfMemoryError("no")

    capsys.readouterr()
    assert move_to_device(full, 10, device, None) is None
    assert "do not fit on meta and stay in host memory" in capsys.readouterr().out


def test_images_on_the_host_are_moved_batch_by_batch():
    feed = ArrayFeed([np.zeros((3, 1, 2, 2), np.uint8)], [np.arange(3)], torch.device("meta"), resident_gb=0)
    assert feed._environments[0][0].device == CPU
    x, y = one(feed, 0, [2, 1])
    assert (x.device.type, y.device.type, x.shape) == ("meta", "meta", (2, 1, 2, 2))
