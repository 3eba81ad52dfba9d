"""The parts of an inspection against plain references."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from domainbed import scripts
from domainbed.datasets import get_dataset_class
from domainbed.engine.config import JobConfig
from domainbed.engine.data import Batches
from domainbed.engine.feed import open_feed
from domainbed.inspection.duplicates import find_duplicates
from domainbed.inspection.image_files import Header, read_header
from domainbed.inspection.measure import load_with_warnings
from domainbed.inspection.pictures import make_sheet, make_strip, to_picture
from domainbed.inspection.pixels import PixelStatistics
from domainbed.inspection.reader import ImageReader
from domainbed.inspection.sampling import round_robin, sample_classes, sample_images
from domainbed.inspection.views import TrainingViews
from domainbed.loading.augmentation import denormalize, normalize
from domainbed.loading.splits import Split
from tests.images import write_image, write_tree


def test_views_are_the_images_of_a_jobs_first_step(tmp_path: Path):
    """Bit for bit: the batch that training receives is normalized, and the views are not."""
    tree = write_tree(tmp_path, {"a": {"x": 9, "y": 9}, "b": {"x": 9, "y": 9}, "c": {"x": 9, "y": 9}})
    config = JobConfig(dataset="Folder", algorithm="ERM", test_envs=(0,), data_dir=str(tree), seed=3, loader_workers=0)
    hparams = {**config.resolved_hparams(), "batch_size": 4}
    test_dataset = get_dataset_class("Folder")(str(tree), (0,), hparams, 0)
    nothing = np.arange(0)
    splits = [Split(np.arange(18), nothing, nothing) for _ in range(3)]
    feed = open_feed(config, test_dataset, splits, torch.device("cpu"))
    batches = Batches(config, hparams, test_dataset, splits, feed)
    (minibatches, _), *_ = batches.steps(0, 1)
    dataset, messages = load_with_warnings(config)
    assert not messages
    reader = ImageReader(dataset.environments, ["a", "b", "c"])
    views = TrainingViews(config, dataset, reader)
    for env, (x, _) in zip((1, 2), minibatches, strict=True):
        indices = batches._samplers[env].batches(0, 1)[0].tolist()
        seen = views.of_images(env, indices, 1)
        for image, i, (plain, augmented) in zip(x, indices, seen, strict=True):
            assert np.array_equal(augmented, (denormalize(image[None]) / 255)[0].numpy())
            assert np.allclose(plain, reader.read(env, i), atol=1e-6)
            assert not np.array_equal(plain, augmented)
    assert views.of_images(1, [], 3) == []


def test_denormalize_inverts_normalize():
    x = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[None, :, None]
    assert torch.equal(denormalize(normalize(x)).round().byte(), x)


@settings(max_examples=40, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.just(3), st.integers(1, 4), st.integers(1, 4)),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_pixel_statistics(images: np.ndarray):
    statistics = PixelStatistics()
    for image in images:
        statistics.add(image, has_colors=True)
    statistics.add(np.full((3, 2, 2), np.nan, np.float32), has_colors=True)
    pixels = images.astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(statistics.mean, pixels.mean(1), atol=1e-9)
    np.testing.assert_allclose(statistics.std, pixels.std(1), atol=1e-5)
    assert (statistics.n, statistics.n_not_finite) == (len(images), 1)
    assert (statistics.low, statistics.high) == (images.min(), images.max())
    assert statistics.n_constant == sum((image == image[:, :1, :1]).all() for image in images)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=8), min_size=1, max_size=3))
def test_duplicates(environments: list[list[tuple[int, int]]]):
    """Each environment is a list of (content, label)."""
    labels = [np.array([label for _, label in images], dtype=int) for images in environments]
    contents = [((env, i), c) for env, images in enumerate(environments) for i, (c, _) in enumerate(images)]
    found = find_duplicates(contents, labels)
    expected = []
    for j, (key, content) in enumerate(contents):
        earlier = [k for k, c in contents[:j] if c == content]
        if earlier:
            expected.append((earlier[0], key))
    assert found.pairs == expected
    assert found.across_environments == [(a, b) for a, b in expected if a[0] != b[0]]
    assert found.across_classes == [(a, b) for a, b in expected if labels[a[0]][a[1]] != labels[b[0]][b[1]]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6), st.integers(0, 3))
def test_samples(labels: list[int], size: int, seed: int):
    by_class = sample_classes(np.array(labels, dtype=int), 5, size, seed, 1)
    assert by_class == sample_classes(np.array(labels, dtype=int), 5, size, seed, 1)
    for label, images in enumerate(by_class):
        assert len(set(images)) == len(images) == min(size, labels.count(label))
        assert all(labels[i] == label for i in images)
    order = round_robin(by_class, seed, 1)
    assert sorted(order) == sorted(itertools.chain.from_iterable(by_class))
    n_present = len(set(labels))
    assert len({labels[i] for i in order[:n_present]}) == n_present
    images = sample_images(len(labels), size, seed, 1)
    assert images == sorted(set(images))
    assert len(images) == min(size, len(labels))
    assert sample_images(len(labels), 0, seed, 1) == list(range(len(labels)))


def test_headers(tmp_path: Path):
    expected = {}
    for suffix, format in ((".jpg", "JPEG"), (".png", "PNG"), (".bmp", "BMP"), (".webp", "WEBP"), (".tif", "TIFF")):
        write_image(tmp_path / f"a{suffix}", 1, (31, 17))
        expected[tmp_path / f"a{suffix}"] = format
    for path, format in expected.items():
        header = read_header(path)
        assert isinstance(header, Header)
        assert header[:6] == (31, 17, format, "RGB", False, False)
    Image.new("P", (5, 5)).save(tmp_path / "p.png", transparency=0)
    palette = read_header(tmp_path / "p.png")
    assert isinstance(palette, Header)
    assert palette.is_transparent
    exif = Image.Exif()
    for orientation, is_rotated in ((1, False), (6, True), (2, True)):
        exif[0x0112] = orientation
        for suffix in (".jpg", ".png", ".webp", ".tif"):
            Image.new("RGB", (5, 5)).save(tmp_path / f"exif{suffix}", exif=exif)
            rotated = read_header(tmp_path / f"exif{suffix}")
            assert isinstance(rotated, Header)
            assert rotated.is_rotated == is_rotated
    (tmp_path / "folder.png").mkdir()
    assert read_header(tmp_path / "folder.png") == "Is a directory"
    assert read_header(tmp_path / "none.png") == "No such file or directory"
    for name, content in (("bad.png", b"\x89PNG\r\n\x1a\n" + b"x" * 40), ("bad.jpg", b"\xff\xd8\xff")):
        (tmp_path / name).write_bytes(content)
        assert isinstance(read_header(tmp_path / name), str)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 8, 8), (3, 300, 200), (7, 5, 90), (3, 1, 4000)])
def test_pictures_of_any_shape(shape: tuple[int, int, int]):
    image = np.linspace(-2, 5, np.prod(shape)).reshape(shape)
    image[0, 0, 0] = np.inf
    picture = to_picture(image, -2, 5, 84)
    assert (picture.size, picture.mode) == ((84, 84), "RGBA")
    strip = make_strip([picture, None, picture], 84)
    assert strip.size == (3 * 86 - 2, 84)
    sheet = make_sheet("title " * 60, [(["class " * 30, "n"], [picture]), (["no images"], [])], 84)
    assert sheet.size[0] > 60 * 10
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert make_sheet("no rows", [], 84).size[0] > 0


def test_picture_of_equal_values():
    assert to_picture(np.full((1, 4, 4), 3.0), 3, 3, 8).getpixel((4, 4)) == (0, 0, 0, 255)


@pytest.mark.parametrize("script", ["train", "inspect"])
def test_scripts_run_by_path(script: str):
    """The name of one script is that of a standard module, which others import."""
    path = Path(scripts.__file__).with_name(f"{script}.py")
    finished = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("usage: ")
