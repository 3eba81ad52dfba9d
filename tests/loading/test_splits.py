import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import RandomState

from domainbed.errors import UsageError
from domainbed.loading.splits import split_environment
from domainbed.seeding import seed_hash


@given(n=st.integers(5, 500), env=st.integers(0, 5), trial_seed=st.integers(0, 20), holdout=st.floats(0.2, 0.8))
def test_out_split_is_the_head_of_the_shuffled_indices(n: int, env: int, trial_seed: int, holdout: float):
    keys = list(range(n))
    RandomState(seed_hash(trial_seed, env)).shuffle(keys)
    n_out = int(n * holdout)
    split = split_environment(n, env, trial_seed, holdout)
    assert split.out.tolist() == keys[:n_out]
    assert split.in_.tolist() == keys[n_out:]
    assert not len(split.uda)
    assert list(split.parts()) == ["in", "out"]


def test_uda_split_is_taken_from_the_in_split():
    without_uda = split_environment(100, 1, 0, 0.2)
    split = split_environment(100, 1, 0, 0.2, uda_fraction=0.5)
    assert split.out.tolist() == without_uda.out.tolist()
    assert len(split.uda) == 40
    assert sorted([*split.uda, *split.in_]) == sorted(without_uda.in_)
    order = list(range(80))
    RandomState(seed_hash(0, 1)).shuffle(order)
    assert split.uda.tolist() == without_uda.in_[order[:40]].tolist()
    assert list(split.parts()) == ["in", "out", "uda"]


@pytest.mark.parametrize(("n", "holdout", "left"), [(3, 0.2, 3), (0, 0.2, 0), (1, 0.999, 1), (9, 0.1, 9)])
def test_too_small_environment_is_an_error(n: int, holdout: float, left: int):
    with pytest.raises(
        UsageError, match=rf"environment 2 is too small to split: .* of its {n} images and leave {left}"
    ):
        split_environment(n, 2, 0, holdout)


def test_splits_differ_between_environments_and_trials():
    firsts = {tuple(split_environment(100, env, trial, 0.2).out) for env in range(4) for trial in range(4)}
    assert len(firsts) == 16
    assert all(np.unique(out).size == 20 for out in firsts)
