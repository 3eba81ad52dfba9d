import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import RandomState

from domainbed.errors import UsageError
from domainbed.loading.splits import choose_groups, split_environment
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


GROUPS = st.lists(st.integers(0, 12), min_size=10, max_size=120).filter(lambda groups: len(set(groups)) > 3)


@given(
    groups=GROUPS,
    as_text=st.booleans(),
    env=st.integers(0, 3),
    trial=st.integers(0, 5),
    holdout=st.floats(0.1, 0.6),
    uda=st.sampled_from([0.0, 0.3]),
)
def test_no_group_is_on_both_sides(groups: list[int], as_text: bool, env: int, trial: int, holdout: float, uda: float):
    values = np.array([f"patient {g}" for g in groups], dtype=object) if as_text else np.array(groups)
    try:
        split = split_environment(len(groups), env, trial, holdout, uda, values)
    except UsageError as error:  # one group holds nearly all that is not held out
        if not uda or "belong to the same group" not in str(error):
            raise
        return
    parts = [split.in_, split.out, split.uda]
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    sides = [set(values[part]) for part in parts]
    assert sum(map(len, sides)) == len(set(groups))
    assert len(split.in_)
    assert len(split.out)
    again = split_environment(len(groups), env, trial, holdout, uda, values)
    assert all(np.array_equal(getattr(split, name), getattr(again, name)) for name in ("in_", "out", "uda"))


@given(n=st.integers(10, 200), env=st.integers(0, 3), trial=st.integers(0, 5), uda=st.sampled_from([0.0, 0.5]))
def test_groups_of_one_image_are_split_like_images(n: int, env: int, trial: int, uda: float):
    plain = split_environment(n, env, trial, 0.2, uda)
    grouped = split_environment(n, env, trial, 0.2, uda, np.arange(n)[::-1] * 7)
    assert all(np.array_equal(getattr(plain, name), getattr(grouped, name)) for name in ("in_", "out", "uda"))


@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=30), data=st.data())
def test_chosen_groups_have_about_as_many_images_as_requested(sizes: list[int], data: st.DataObject):
    n = data.draw(st.integers(1, sum(sizes) - 1))
    is_chosen = choose_groups(sizes, n)
    total = sum(size for size, chosen in zip(sizes, is_chosen, strict=True) if chosen)
    assert 0 < total < sum(sizes)
    # A group that was passed over does not improve the result, unless it is the last one.
    rejected = [size for size, chosen in zip(sizes, is_chosen, strict=True) if not chosen]
    if is_chosen.sum() > 1 and len(rejected) > 1:
        assert all(abs(total + size - n) >= abs(total - n) for size in rejected)
    assert abs(total - n) <= max(sizes)


def test_environment_of_one_group_is_an_error():
    with pytest.raises(UsageError, match=r"environment 3 cannot be split by groups: all of its 20 images .* group, A"):
        split_environment(20, 3, 0, 0.2, groups=np.array(["A"] * 20, dtype=object))
    with pytest.raises(UsageError, match="environment 3 is too small to split"):
        split_environment(4, 3, 0, 0.2, groups=np.arange(4))


def test_large_groups_are_passed_over():
    assert choose_groups([80, 10, 10, 10], 20).tolist() == [False, True, True, False]
    assert choose_groups([50, 40, 40], 20).tolist() == [False, True, False]
