"""Tests of the 8x8 digits. test_mnist.py tests the shared code on 70,000 images."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from domainbed.datasets import DATASETS, num_environments
from domainbed.datasets.base import ArrayEnvironment
from domainbed.datasets.digits import ColoredDigits, RotatedDigits


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
