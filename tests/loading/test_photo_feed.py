"""A feed of photographs: its images against sums done here, with and without workers, and broken ones."""

import itertools
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed.errors import UsageError
from domainbed.loading.augmentation import COLUMNS, Augmentation, augmented, normalised, resized_crop
from domainbed.loading.base import Request
from domainbed.loading.image_cache import open_cached
from domainbed.loading.photo_feed import Files, PhotoEnvironment, PhotoFeed, explain_dead_worker, replacements
from domainbed.loading.sampling import uniforms
from tests.images import write_image

CPU = torch.device("cpu")
SIZE = (16, 18)


@pytest.fixture
def environments(tmp_path: Path) -> list[PhotoEnvironment]:
    """Two environments of 6 images of different sizes; labels 0 0 0 1 1 1, parts 0 0 1 0 0 1."""
    made = []
    for env in range(2):
        files = [str(tmp_path / f"{env}" / f"{i}.png") for i in range(6)]
        for i, file in enumerate(files):
            write_image(Path(file), 10 * env + i, (20 + i, 30 - 2 * i))
        made.append(PhotoEnvironment(Files(files), files, np.repeat([0, 1], 3), np.array([0, 0, 1, 0, 0, 1])))
    return made


def break_files(environment: PhotoEnvironment, *indices: int) -> None:
    for i in indices:
        Path(environment.files[i]).write_bytes(b"not an image")


def test_clean_images_are_resized_and_normalised(environments: list[PhotoEnvironment]):
    feed = PhotoFeed(environments, SIZE, CPU, workers=0)
    (((x, y),),) = feed.batches([[Request(1, np.array([5, 0, 5]))]])
    assert y.tolist() == [1, 0, 1]
    assert torch.equal(x[0], x[2])
    for i, index in enumerate([5, 0]):
        image = Image.open(environments[1].files[index]).resize(SIZE[::-1], Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(c)[:, None, None] for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        torch.testing.assert_close(x[i], (expected - mean) / std, atol=1.1 / 255 / 0.224, rtol=0)


def test_augmented_images_follow_their_rows(environments: list[PhotoEnvironment]):
    feed = PhotoFeed(environments, SIZE, CPU, workers=0)
    indices = np.array([1, 4, 2])
    (((x, _),),) = feed.batches([[Request(0, indices, augmentation_key=7, row=5)]])
    drawn = Augmentation(uniforms(7, 5, 8, COLUMNS))
    for i, index in enumerate(indices):
        image = environments[0].images[index]
        crop = resized_crop(image, drawn.crop(i, *image.shape[:2]), SIZE)[None]
        expected = augmented(crop.float(), drawn[i : i + 1])
        torch.testing.assert_close(x[i], normalised(expected)[0], atol=0.51 / 255 / 0.224, rtol=0)  # rounded to bytes


def test_what_the_device_augments_is_the_same_but_for_rounding(environments: list[PhotoEnvironment]):
    """On a GPU the colours are left to the device; here that code runs on the CPU."""
    request = [[Request(0, np.arange(6), augmentation_key=3), Request(1, np.array([0]))]]
    here, there = (PhotoFeed(environments, SIZE, CPU, workers=0) for _ in range(2))
    there._desk._augment = False
    ((a, b),), ((c, d),) = here.batches(request), there.batches(request)
    torch.testing.assert_close(a[0], c[0], atol=0.51 / 255 / 0.224, rtol=0)
    assert torch.equal(b[0], d[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_bring_the_same_in_the_same_order(environments: list[PhotoEnvironment], workers: int):
    requests = [[Request(env, np.array([i % 6, 3]), env or None, 2 * i) for env in (0, 1)] for i in range(20)]
    state = torch.get_rng_state()
    alone = list(PhotoFeed(environments, SIZE, CPU, workers=0).batches(requests))
    shared = list(PhotoFeed(environments, SIZE, CPU, workers=workers).batches(requests))
    assert torch.equal(torch.get_rng_state(), state), "the job's own generator was drawn from"
    assert len(shared) == 20
    for one, other in zip(alone, shared, strict=True):
        for (x, y), (x2, y2) in zip(one, other, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_batches_can_be_trained_on_and_go_on_for_ever(environments: list[PhotoEnvironment]):
    feed = PhotoFeed(environments, SIZE, CPU, workers=0)
    endless = feed.batches([Request(0, np.array([i % 6]), 1, i)] for i in itertools.count())
    layer = torch.nn.Conv2d(3, 1, 3)
    for ((x, _),) in itertools.islice(endless, 3):
        layer(x).sum().backward()  # refuses tensors of inference mode
    assert layer.weight.grad is not None


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_broken_image_ends_it_by_name(environments: list[PhotoEnvironment], workers: int):
    break_files(environments[1], 2)
    feed = PhotoFeed(environments, SIZE, CPU, workers)
    batches = feed.batches([[Request(1, np.array([0]))], [Request(1, np.array([2]))]])
    next(batches)
    with pytest.raises(UsageError, match=r"1/2\.png is a broken image.*leave_out\.txt.*--on_bad_image skip") as error:
        next(batches)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_or_is_replaced_by_the_next_of_its_class_and_part(environments: list[PhotoEnvironment], workers: int, capsys):
    break_files(environments[1], 0)
    feed = PhotoFeed(environments, SIZE, CPU, workers, skip_bad=True)
    requests = [[Request(1, np.array([0, 0, 1, 3]))], [Request(1, np.array([0]))]]
    ((x, y),), ((again, _),) = feed.batches(requests)
    assert y.tolist() == [0, 0, 0, 1]
    assert torch.equal(x[0], x[2])
    assert torch.equal(again[0], x[2])
    assert feed.bad_images == {environments[1].files[0]}
    assert capsys.readouterr().out.count("another of its class takes its place") == 1


def test_no_replacement_comes_from_another_part_or_class(environments: list[PhotoEnvironment]):
    assert list(replacements(environments[0], 0)) == [1]
    assert list(replacements(environments[0], 1)) == [0]
    assert list(replacements(environments[0], 2)) == []
    big = PhotoEnvironment(None, [], np.zeros(5, int), np.zeros(5, int))  # type: ignore[arg-type]
    assert list(replacements(big, 3)) == [4, 0, 1, 2]
    break_files(environments[0], 0, 1)
    feed = PhotoFeed(environments, SIZE, CPU, workers=0, skip_bad=True)
    with pytest.raises(UsageError, match=r"0\.png is broken, and so is every other image of its class and split"):
        list(feed.batches([[Request(0, np.array([0]))]]))


def test_a_file_that_cannot_be_read_is_never_skipped(environments: list[PhotoEnvironment]):
    Path(environments[0].files[3]).unlink()
    feed = PhotoFeed(environments, SIZE, CPU, workers=0, skip_bad=True)
    with pytest.raises(UsageError, match=r"can't read .*3\.png: No such file"):
        list(feed.batches([[Request(0, np.array([3]))]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["files", "pack", "resident pack"])
def test_a_gpu_gets_what_a_cpu_gets_without_waiting(environments: list[PhotoEnvironment], tmp_path: Path, where: str):
    device = torch.device("cuda")
    requests = [[Request(env, np.array([i % 6, 3]), env or None, 2 * i) for env in (0, 1)] for i in range(20)]
    expected = list(PhotoFeed(environments, SIZE, CPU, workers=0).batches(requests))
    if where != "files":
        packs = open_cached(tmp_path / "cache", 1.0, {str(i): e.files for i, e in enumerate(environments)})
        assert packs is not None
        moved = [pack.to(device) if where == "resident pack" else pack for pack in packs]
        environments = [e._replace(images=pack) for e, pack in zip(environments, moved, strict=True)]
    feed = PhotoFeed(environments, SIZE, device, workers=0 if where == "resident pack" else 2)
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


def test_a_worker_that_dies_as_it_hands_images_over_is_told(monkeypatch: pytest.MonkeyPatch):
    """The connection breaks before torch hears of the death, which it does by a signal."""

    def hear(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, hear)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(UsageError, match="a process that reads photographs died"), explain_dead_worker():
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(ConnectionResetError), explain_dead_worker():  # of something else
        raise ConnectionResetError(104, "Connection reset by peer")
