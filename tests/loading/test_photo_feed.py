"""Tests of the photo feed: pixels, worker processes, and broken images."""

import itertools
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed.errors import UsageError
from domainbed.loading.augmentation import NUM_UNIFORMS, Augmentation, augment, normalize, resized_crop
from domainbed.loading.base import Request
from domainbed.loading.image_cache import open_cached
from domainbed.loading.photo_feed import (
    FileImages,
    PhotoEnvironment,
    PhotoFeed,
    explain_dead_worker,
    replacement_candidates,
)
from domainbed.loading.sampling import draw_uniforms
from tests.images import write_image

CPU = torch.device("cpu")
SIZE = (16, 18)


@pytest.fixture
def environments(tmp_path: Path) -> list[PhotoEnvironment]:
    """Return two environments of 6 images of different sizes; labels 0 0 0 1 1 1, parts 0 0 1 0 0 1."""
    environments = []
    for env in range(2):
        files = [str(tmp_path / f"{env}" / f"{i}.png") for i in range(6)]
        for i, file in enumerate(files):
            write_image(Path(file), 10 * env + i, (20 + i, 30 - 2 * i))
        environments.append(
            PhotoEnvironment(FileImages(files), files, np.repeat([0, 1], 3), np.array([0, 0, 1, 0, 0, 1]))
        )
    return environments


def break_files(environment: PhotoEnvironment, *indices: int) -> None:
    for i in indices:
        Path(environment.files[i]).write_bytes(b"not an image")


def test_clean_images_are_resized_and_normalized(environments: list[PhotoEnvironment]):
    feed = PhotoFeed(environments, SIZE, CPU, workers=0)
    (((x, y),),) = feed.batches([[Request(1, np.array([5, 0, 5]))]])
    assert y.tolist() == [1, 0, 1]
    assert torch.equal(x[0], x[2])
    for i, index in enumerate([5, 0]):
        image = Image.open(environments[1].files[index]).resize(SIZE[::-1], Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(c)[:, None, None] for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        torch.testing.assert_close(x[i], (expected - mean) / std, atol=1.1 / 255 / 0.224, rtol=0)


def test_augmentation_uses_the_requested_rows(environments: list[PhotoEnvironment]):
    feed = PhotoFeed(environments, SIZE, CPU, workers=0)
    indices = np.array([1, 4, 2])
    (((x, _),),) = feed.batches([[Request(0, indices, augmentation_key=7, row=5)]])
    drawn = Augmentation(draw_uniforms(7, 5, 8, NUM_UNIFORMS))
    for i, index in enumerate(indices):
        image = environments[0].images[index]
        crop = resized_crop(image, drawn.crop(i, *image.shape[:2]), SIZE)[None]
        expected = augment(crop.float(), drawn[i : i + 1])
        torch.testing.assert_close(x[i], normalize(expected)[0], atol=0.51 / 255 / 0.224, rtol=0)  # rounded to uint8


def test_augmentation_on_the_device_is_equal_up_to_rounding(environments: list[PhotoEnvironment]):
    """Run the code that changes colors on a GPU on the CPU."""
    request = [[Request(0, np.arange(6), augmentation_key=3), Request(1, np.array([0]))]]
    on_host, on_device = (PhotoFeed(environments, SIZE, CPU, workers=0) for _ in range(2))
    on_device._dataset.augment_here = False
    ((a, b),), ((c, d),) = on_host.batches(request), on_device.batches(request)
    torch.testing.assert_close(a[0], c[0], atol=0.51 / 255 / 0.224, rtol=0)
    assert torch.equal(b[0], d[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_yield_the_same_batches_in_order(environments: list[PhotoEnvironment], workers: int):
    requests = [[Request(env, np.array([i % 6, 3]), env or None, 2 * i) for env in (0, 1)] for i in range(20)]
    state = torch.get_rng_state()
    expected = list(PhotoFeed(environments, SIZE, CPU, workers=0).batches(requests))
    found = list(PhotoFeed(environments, SIZE, CPU, workers=workers).batches(requests))
    assert torch.equal(torch.get_rng_state(), state), "the global generator advanced"
    assert len(found) == 20
    for one, other in zip(expected, found, strict=True):
        for (x, y), (x2, y2) in zip(one, other, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_endless_batches_support_training(environments: list[PhotoEnvironment]):
    feed = PhotoFeed(environments, SIZE, CPU, workers=0)
    endless = feed.batches([Request(0, np.array([i % 6]), 1, i)] for i in itertools.count())
    layer = torch.nn.Conv2d(3, 1, 3)
    for ((x, _),) in itertools.islice(endless, 3):
        layer(x).sum().backward()  # fails for tensors created in inference mode
    assert layer.weight.grad is not None


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_broken_image_is_an_error_that_names_the_file(environments: list[PhotoEnvironment], workers: int):
    break_files(environments[1], 2)
    feed = PhotoFeed(environments, SIZE, CPU, workers)
    batches = feed.batches([[Request(1, np.array([0]))], [Request(1, np.array([2]))]])
    next(batches)
    with pytest.raises(UsageError, match=r"1/2\.png is a broken image.*leave_out\.txt.*--on_bad_image skip") as error:
        next(batches)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_broken_image_is_replaced_with_the_next_of_its_class_and_part(
    environments: list[PhotoEnvironment], workers: int, capsys
):
    break_files(environments[1], 0)
    feed = PhotoFeed(environments, SIZE, CPU, workers, skip_bad=True)
    requests = [[Request(1, np.array([0, 0, 1, 3]))], [Request(1, np.array([0]))]]
    ((x, y),), ((again, _),) = feed.batches(requests)
    assert y.tolist() == [0, 0, 0, 1]
    assert torch.equal(x[0], x[2])
    assert torch.equal(again[0], x[2])
    assert feed.bad_images == {environments[1].files[0]}
    assert capsys.readouterr().out.count("Replacing broken image") == 1


def test_replacements_have_the_same_part_and_class(environments: list[PhotoEnvironment]):
    assert list(replacement_candidates(environments[0], 0)) == [1]
    assert list(replacement_candidates(environments[0], 1)) == [0]
    assert list(replacement_candidates(environments[0], 2)) == []
    big = PhotoEnvironment(None, [], np.zeros(5, int), np.zeros(5, int))  # type: ignore[arg-type]
    assert list(replacement_candidates(big, 3)) == [4, 0, 1, 2]
    break_files(environments[0], 0, 1)
    feed = PhotoFeed(environments, SIZE, CPU, workers=0, skip_bad=True)
    with pytest.raises(UsageError, match=r"0\.png and all other images of its class and split are broken"):
        list(feed.batches([[Request(0, np.array([0]))]]))


def test_unreadable_file_is_never_skipped(environments: list[PhotoEnvironment]):
    Path(environments[0].files[3]).unlink()
    feed = PhotoFeed(environments, SIZE, CPU, workers=0, skip_bad=True)
    with pytest.raises(UsageError, match=r"cannot read .*3\.png: No such file"):
        list(feed.batches([[Request(0, np.array([3]))]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("source", ["files", "pack", "resident pack"])
def test_gpu_batches_equal_cpu_batches_without_synchronization(
    environments: list[PhotoEnvironment], tmp_path: Path, source: str
):
    device = torch.device("cuda")
    requests = [[Request(env, np.array([i % 6, 3]), env or None, 2 * i) for env in (0, 1)] for i in range(20)]
    expected = list(PhotoFeed(environments, SIZE, CPU, workers=0).batches(requests))
    if source != "files":
        packs = open_cached(tmp_path / "cache", 1.0, {str(i): e.files for i, e in enumerate(environments)})
        assert packs is not None
        moved = [pack.to(device) if source == "resident pack" else pack for pack in packs]
        environments = [e._replace(images=pack) for e, pack in zip(environments, moved, strict=True)]
    feed = PhotoFeed(environments, SIZE, device, workers=0 if source == "resident pack" else 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(feed.batches(requests))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(expected, found, strict=True):
        for (x, y), (x2, y2) in zip(one, other, strict=True):
            assert x2.device.type == y2.device.type == "cuda"
            torch.testing.assert_close(x2.cpu(), x, atol=2.5 / 255 / 0.224, rtol=0)
            assert torch.equal(y2.cpu(), y)


def test_worker_death_during_a_transfer_is_explained(monkeypatch: pytest.MonkeyPatch):
    """The connection breaks before DataLoader's signal handler reports the death."""

    def handle(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(UsageError, match="an image loader process died"), explain_dead_worker():
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionResetError), explain_dead_worker():  # without a dead worker
        raise ConnectionResetError(104, "Connection reset by peer")
