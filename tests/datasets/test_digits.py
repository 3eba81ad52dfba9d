"""Tests of the 8x8 digits. test_mnist.py tests the shared code on 70,000 images."""

import numpy as np
import pytest
import torchvision.transforms.functional as TF
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import InterpolationMode

from domainbed.datasets import DATASETS, num_environments
from domainbed.datasets.base import ArrayEnvironment
from domainbed.datasets.digits import ColoredDigits, RotatedDigits
from domainbed.datasets.shifts import Colored, color, rotate


def make(dataset_class, trial_seed=0):
    return dataset_class(None, [0], {}, trial_seed)


def test_colored_digits_partitions_all_images_into_three_environments():
    dataset = make(ColoredDigits)
    assert ColoredDigits.ENVIRONMENTS == ["+90%", "+80%", "-90%"]
    assert [len(e) for e in dataset] == [599, 599, 599]
    assert len(dataset) == num_environments("ColoredDigits") == 3
    for environment in dataset:
        assert environment.images.shape[1:] == ColoredDigits.input_shape == (2, 8, 8)
        assert set(environment.labels) == {0, 1}
    gray = np.concatenate([e.images.max(axis=1) for e in dataset])
    assert sorted(map(bytes, gray)) == sorted(map(bytes, np.rint(load_digits().images * 255 / 16).astype(np.uint8)))


def test_rotated_digits_partitions_all_images_into_six_environments():
    dataset = make(RotatedDigits)
    assert RotatedDigits.ENVIRONMENTS == ["0", "15", "30", "45", "60", "75"]
    assert [len(e) for e in dataset] == [300, 300, 300, 299, 299, 299]
    labels = np.concatenate([e.labels for e in dataset])
    assert np.bincount(labels).tolist() == np.bincount(load_digits().target).tolist()
    assert dataset[0].images.shape[1:] == RotatedDigits.input_shape == (1, 8, 8)


def test_label_noise_and_colors():
    """A quarter of the labels are wrong; color agrees with the label in 90%, 80% and 10% of the images."""
    n = 20_000
    images = np.random.RandomState(0).randint(1, 256, (n, 2, 2)).astype(np.uint8)
    digits = np.arange(n) % 10
    for disagreement in Colored.DISAGREEMENT:
        environment = color(images, digits, disagreement, np.random.RandomState(1))
        is_flipped = environment.labels != (digits < 5)
        channel = environment.images.sum(axis=(2, 3)).argmax(axis=1)
        assert (environment.images.min(axis=1) == 0).all(), "one channel is empty"
        assert (environment.images.max(axis=1) == images).all()
        # Frequencies are within four standard deviations.
        for frequency, expected in ((is_flipped, 0.25), (channel != environment.labels, disagreement)):
            assert frequency.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))
        assert (channel != environment.labels)[is_flipped].mean() == pytest.approx(disagreement, abs=0.02)
    assert Colored.DISAGREEMENT == (0.1, 0.2, 0.9)


def test_rotation_equals_torchvision_on_pil_images():
    """DomainBed rotates image by image: counterclockwise, bilinear, black fill."""
    images = np.random.RandomState(0).randint(0, 256, (10, 28, 28)).astype(np.uint8)
    for angle in (0, 15, 75):
        for image, (rotated,) in zip(images, rotate(images, np.zeros(10), angle).images, strict=True):
            expected = TF.rotate(Image.fromarray(image), angle, InterpolationMode.BILINEAR, fill=(0,))
            assert np.array_equal(np.asarray(expected), rotated)


@pytest.mark.parametrize("name", ["ColoredDigits", "RotatedDigits"])
def test_environments_depend_only_on_the_trial(name: str):
    def load(trial_seed, test_envs=(0,), hparams=None):
        return [(e.images, e.labels) for e in DATASETS[name](None, test_envs, hparams or {}, trial_seed)]

    for (x, y), (same_x, same_y), (other_x, _) in zip(load(1), load(1, (2,), {"batch_size": 3}), load(2), strict=True):
        assert np.array_equal(x, same_x)
        assert np.array_equal(y, same_y)
        assert not np.array_equal(x, other_x)


def test_array_environment_requires_one_label_per_image():
    with pytest.raises(ValueError, match=r"expected images .* and labels \[n\], got"):
        ArrayEnvironment(np.zeros((3, 1, 8, 8)), np.zeros(2))
