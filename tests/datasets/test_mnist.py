"""Tests of the MNIST datasets: sizes and statistics on the complete MNIST, loading and errors on a small one."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torchvision

from domainbed.datasets import mnist
from domainbed.datasets.mnist import ColoredMNIST, RotatedMNIST
from domainbed.datasets.shifts import rotate
from domainbed.errors import UsageError


@pytest.fixture(scope="module")
def images_and_digits(mnist_dir):
    return ColoredMNIST.load_images(mnist_dir)


def sorted_images(images: np.ndarray) -> list[bytes]:
    return sorted(map(bytes, images))


@pytest.fixture(scope="module")
def colored(mnist_dir):
    return ColoredMNIST(mnist_dir, [0], {}, trial_seed=0)


@pytest.fixture(scope="module")
def digit_of(images_and_digits):
    """Map the bytes of each MNIST image to its digit (no two images are equal)."""
    images, digits = images_and_digits
    known = {image.tobytes(): digit for image, digit in zip(images, digits, strict=True)}
    assert len(known) == 70_000
    return known


def test_colored_mnist_partitions_all_images(colored, images_and_digits):
    assert [len(e) for e in colored] == [23_334, 23_333, 23_333]
    assert all(e.images.shape[1:] == (2, 28, 28) for e in colored)
    assert sorted_images(np.concatenate([e.images.max(axis=1) for e in colored])) == sorted_images(images_and_digits[0])


def test_label_noise_and_color_frequencies(colored, digit_of):
    """Frequencies are within four standard deviations for 23,333 draws."""
    for environment, disagreement in zip(colored, (0.1, 0.2, 0.9), strict=True):
        n = len(environment)
        gray = environment.images.max(axis=1)
        digits = np.array([digit_of[image.tobytes()] for image in gray])
        noise = np.mean(environment.labels != (digits < 5))
        assert noise == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / n))

        channel_sums = environment.images.sum(axis=(2, 3), dtype=np.int64)
        assert ((channel_sums == 0).sum(axis=1) == 1).all(), "exactly one channel is empty"
        color = channel_sums.argmax(axis=1)
        differ = np.mean(color != environment.labels)
        assert differ == pytest.approx(disagreement, abs=4 * np.sqrt(disagreement * (1 - disagreement) / n))
        flipped = environment.labels != (digits < 5)
        assert np.mean(color[flipped] != environment.labels[flipped]) == pytest.approx(disagreement, abs=0.02)


def test_rotated_mnist_sizes_and_angles(mnist_dir, images_and_digits, digit_of):
    dataset = RotatedMNIST(mnist_dir, [0], {}, trial_seed=0)
    assert [len(e) for e in dataset] == [11_667, 11_667, 11_667, 11_667, 11_666, 11_666]
    labels = np.concatenate([e.labels for e in dataset])
    assert np.bincount(labels).tolist() == np.bincount(images_and_digits[1]).tolist()
    unrotated = dataset[0]
    assert [digit_of[i.tobytes()] for i in unrotated.images[:200, 0]] == unrotated.labels[:200].tolist()
    for environment, angle in zip(dataset, (0, 15, 30, 45, 60, 75), strict=True):
        assert abs(_measured_angle(unrotated, environment) - angle) < 3


def _measured_angle(unrotated, environment) -> float:
    """Return the rotation of the mean image of each digit that best matches the environment, in degrees."""
    errors = {}
    for angle in range(-5, 90):
        error = 0.0
        for digit in range(10):
            mean = unrotated.images[unrotated.labels == digit, 0].mean(axis=0)
            rotated = rotate(mean.astype(np.uint8)[None], np.zeros(1), angle).images[0, 0]
            error += np.square(rotated - environment.images[environment.labels == digit, 0].mean(axis=0)).sum()
        errors[angle] = error
    return min(errors, key=errors.__getitem__)


def test_training_and_test_images_are_combined(small_mnist_dir):
    images, digits = ColoredMNIST.load_images(small_mnist_dir)
    assert images.shape == (120, 28, 28)
    assert digits.shape == (120,)
    for _ in range(2):  # the second time from the cached environments
        with pytest.warns(UserWarning, match="has 120 images, not MNIST's 70000; results are not comparable"):
            assert [len(e) for e in ColoredMNIST(small_mnist_dir, [0], {}, 0)] == [40, 40, 40]


def test_changed_files_invalidate_cached_environments(small_mnist_dir: str):
    with pytest.warns(UserWarning, match="120 images"):
        first, again, other = (ColoredMNIST(small_mnist_dir, [0], {}, trial).environments for trial in (0, 0, 1))
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert not np.array_equal(other[0].images, first[0].images)
    file = mnist.raw_folder(small_mnist_dir) / "train-images-idx3-ubyte"
    images = file.read_bytes()
    file.write_bytes(images[:16] + bytes(255 - value for value in images[16:]))
    with pytest.warns(UserWarning, match="120 images"):
        assert not np.array_equal(ColoredMNIST(small_mnist_dir, [0], {}, 0)[0].images, first[0].images)


def test_missing_data_dir_is_an_error():
    with pytest.raises(UsageError, match="ColoredMNIST requires --data_dir"):
        ColoredMNIST.prepare(None)
    with pytest.raises(UsageError, match="--data_dir '/no/such/folder' is not a folder"):
        RotatedMNIST.prepare("/no/such/folder")


def test_failed_download_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(UsageError, match="could not be downloaded") as error:
        ColoredMNIST.prepare(str(tmp_path))
    assert str(tmp_path / "MNIST" / "raw") in str(error.value)
    assert "train-images-idx3-ubyte" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_download_adds_only_missing_files(small_mnist_dir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Use a copy of the small MNIST instead of torchvision's download."""
    source = Path(small_mnist_dir) / "MNIST" / "raw"
    target = tmp_path / "other" / "MNIST" / "raw"
    target.mkdir(parents=True)
    (target / mnist.FILES[0]).write_bytes(b"mine")

    def fetch(root, download):
        assert Path(root).parent == target, "files cannot be renamed from one disk to another"
        folder = Path(root) / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for name in mnist.FILES:
            (folder / name).write_bytes((source / name).read_bytes())

    monkeypatch.setattr(torchvision.datasets, "MNIST", fetch)
    ColoredMNIST.prepare(str(tmp_path / "other"))
    assert mnist.missing_files(str(tmp_path / "other")) == []
    assert (target / mnist.FILES[0]).read_bytes() == b"mine"
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["MNIST"]
    assert sorted(p.name for p in target.iterdir()) == sorted(mnist.FILES)


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_damaged_file_is_an_error(small_mnist_dir, length: int):
    damaged = Path(small_mnist_dir) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:length])
    ColoredMNIST.prepare(small_mnist_dir)
    with pytest.raises(UsageError, match="cannot read MNIST in"):
        ColoredMNIST(small_mnist_dir, [0], {}, 0)


def test_label_count_mismatch_is_an_error(small_mnist_dir):
    raw = Path(small_mnist_dir) / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(UsageError, match="120 images, but 60 labels"):
        ColoredMNIST(small_mnist_dir, [0], {}, 0)
