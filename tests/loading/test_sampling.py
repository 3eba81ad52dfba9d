import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from domainbed.loading.sampling import BatchSampler


@given(
    n=st.integers(1, 50),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 2**31 - 1),
    env=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 30), max_size=5),
)
def test_batch_is_independent_of_earlier_batches(n, batch_size, seed, env, cuts):
    indices = np.arange(100, 100 + n)
    expected = BatchSampler(indices, batch_size, seed, env).batches(0, 30)
    assert expected.shape == (30, batch_size)
    assert np.isin(expected, indices).all()
    edges = sorted({0, 30, *cuts})
    for start, stop in itertools.pairwise(edges):
        assert (BatchSampler(indices, batch_size, seed, env).batches(start, stop) == expected[start:stop]).all()


def test_batches_differ_between_steps_environments_and_seeds():
    indices = np.arange(1000)
    rows = [
        tuple(row) for seed in (1, 2) for env in (0, 1) for row in BatchSampler(indices, 8, seed, env).batches(0, 50)
    ]
    assert len(set(rows)) == 200


def test_images_are_drawn_uniformly():
    drawn = BatchSampler(np.arange(40), 100, seed=3, env=0).batches(0, 400).ravel()
    assert chisquare(np.bincount(drawn, minlength=40)).pvalue > 1e-3
    # With replacement: a batch of 100 from 40 images has duplicates and almost never all images.
    assert all(len(set(batch)) < 40 for batch in drawn.reshape(400, 100)[:20])


def test_class_balanced_draws_classes_and_their_images_uniformly():
    labels = np.repeat([0, 1, 3], [5, 20, 75])
    rng = np.random.RandomState(0)
    indices = rng.permutation(1000)[:100]
    drawn = BatchSampler(indices, 100, seed=3, env=0, labels=labels).batches(0, 600).ravel()
    label_of = dict(zip(indices, labels, strict=True))
    counts = np.bincount([label_of[i] for i in drawn], minlength=4)
    assert counts[2] == 0
    assert chisquare(counts[[0, 1, 3]]).pvalue > 1e-3
    for label in (0, 1, 3):
        of_class = drawn[np.array([label_of[i] for i in drawn]) == label]
        assert chisquare(np.unique(of_class, return_counts=True)[1]).pvalue > 1e-3


def test_indices_cover_the_whole_range():
    for n in (1, 2, 3, 7):
        drawn = BatchSampler(np.arange(n), 512, seed=0, env=0).batches(0, 100)
        assert drawn.max() == n - 1
        assert drawn.min() == 0


@pytest.mark.parametrize("step", [0, 7, 4_999, 10**9])
def test_any_step_can_be_drawn_directly(step: int):
    assert BatchSampler(np.arange(9), 4, seed=0, env=0).batches(step, step + 1).shape == (1, 4)
