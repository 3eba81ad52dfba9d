"""Replayed policies compared with slow references written from their definitions, on random curves."""

import itertools
import math
from statistics import median

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from domainbed.model_selection import RUN_COLUMNS, TRIAL_COLUMNS
from domainbed.pruning import PruneOptions
from domainbed.replay.policies import all_policies, keep_draws, keep_evaluations, keep_trials, prune


@st.composite
def curves(draw) -> pd.DataFrame:
    """Draw curves of two algorithms in few levels, some of which end early, with shuffled rows."""
    rng = RandomState(draw(st.integers(0, 2**31 - 1)))
    levels = draw(st.sampled_from([2, 6, 1000]))
    draws = draw(st.integers(1, 9))
    rows = []
    for run in itertools.product(["ColoredDigits"], ["ERM", "Mine"], range(2), range(2), range(draws)):
        for step in (0, 50, 100, 150, 200)[: 5 if rng.rand() < 0.8 else rng.randint(1, 6)]:
            val_acc, test_acc = rng.randint(levels, size=2) / levels
            rows.append((*run, step, val_acc, test_acc))
    frame = pd.DataFrame(rows, columns=[*RUN_COLUMNS, "step", "val_acc", "test_acc"])
    return frame.sample(frac=1, random_state=rng).reset_index(drop=True)


def pruned(frame: pd.DataFrame, rng: RandomState, rule: str, factor: int = 0) -> pd.DataFrame:
    """Return what the definition of a pruning policy keeps, one run and one record at a time."""
    kept = []
    for _, trial in frame.groupby(TRIAL_COLUMNS):
        last = trial["step"].max()
        if rule == "median":
            rungs = set(trial["step"])
        else:
            resources = [last / factor**k for k in range(1, 10)]
            rungs = {min(s for s in trial["step"] if s >= r) for r in resources if r >= 0.1 * last and r > 0}
        rungs = {s for s in rungs if 0.1 * last <= s < last}
        seen: dict[int, list[float]] = {}
        draws = sorted(trial["hparams_seed"].unique())
        for i in rng.permutation(len(draws)):
            best = -math.inf
            for record in trial[trial["hparams_seed"] == draws[i]].sort_values("step").itertuples():
                kept.append(record.Index)
                best = max(best, record.val_acc)
                if record.step in rungs:
                    others = seen.setdefault(record.step, [])
                    ranking = sorted([*others, best], reverse=True)
                    if rule == "median":
                        stops = len(others) >= 4 and best < median(others)
                    else:
                        stops = len(ranking) >= factor and best < ranking[len(ranking) // factor - 1]
                    others.append(best)
                    if stops:
                        break
    return frame.loc[sorted(kept)]


@settings(max_examples=12, deadline=None)
@given(curves(), st.integers(0, 99))
def test_pruning_equals_the_reference(frame: pd.DataFrame, seed: int):
    kept = prune(frame, RandomState(seed), PruneOptions("median")).sort_index()
    pd.testing.assert_frame_equal(kept, pruned(frame, RandomState(seed), "median"))
    for factor in (2, 3, 4):
        kept = prune(frame, RandomState(seed), PruneOptions("asha", factor)).sort_index()
        pd.testing.assert_frame_equal(kept, pruned(frame, RandomState(seed), "asha", factor))


def test_rungs_are_those_of_the_compared_runs():
    """Runs of 300 steps are compared before step 300, although another algorithm has 5,000 steps."""
    rows = [
        ("ColoredDigits", name, 0, 0, draw, step, draw / 10, 0.5)
        for name, steps in (("ERM", (0, 150, 299)), ("Mine", (0, 2500, 4999)))
        for draw, step in itertools.product(range(4), steps)
    ]
    frame = pd.DataFrame(rows, columns=[*RUN_COLUMNS, "step", "val_acc", "test_acc"])
    kept = prune(frame, RandomState(0), PruneOptions("asha")).sort_index()
    pd.testing.assert_frame_equal(kept, pruned(frame, RandomState(0), "asha", 2))
    assert (kept.groupby("algorithm").size() < 12).all()


@settings(max_examples=15, deadline=None)
@given(curves(), st.integers(0, 99), st.randoms())
def test_pruning_ignores_test_accuracies_and_the_order_of_rows(frame: pd.DataFrame, seed: int, shuffle):
    other = frame.assign(test_acc=[shuffle.random() for _ in frame.index]).sample(frac=1, random_state=seed)
    for name, policy in all_policies(frame).items():
        kept = policy(frame, RandomState(seed)), policy(other, RandomState(seed))
        assert set(kept[0].index) == set(kept[1].index), name


@settings(max_examples=15, deadline=None)
@given(curves(), st.integers(0, 99))
def test_fewer_draws_trials_and_evaluations(frame: pd.DataFrame, seed: int):
    n_draws = frame["hparams_seed"].nunique()
    for n in range(1, n_draws + 1):
        kept = keep_draws(frame, RandomState(seed), n)
        for trial, own in kept.groupby("trial_seed"):
            draws = set(own["hparams_seed"])
            assert len(draws) == n
            assert 0 in draws
            expected = frame[(frame["trial_seed"] == trial) & frame["hparams_seed"].isin(draws)]
            pd.testing.assert_frame_equal(own, expected)
    trials = keep_trials(frame, RandomState(seed), 1)["trial_seed"].unique()
    assert len(trials) == 1
    pd.testing.assert_frame_equal(keep_trials(frame, RandomState(seed), 1), frame[frame["trial_seed"].isin(trials)])
    for every in (2, 4):
        kept = keep_evaluations(frame, RandomState(seed), every)
        for run, own in frame.groupby(RUN_COLUMNS):
            steps = sorted(own["step"])
            expected_steps = sorted({*steps[::every], steps[-1]})
            assert sorted(kept[(kept[RUN_COLUMNS] == list(run)).all(axis=1)]["step"]) == expected_steps


def test_fewer_evaluations_require_all_test_accuracies():
    """The record with the best accuracy of those that remain need not be one that `--eval selection` evaluated."""
    rows = [("ColoredDigits", "ERM", 0, 0, 0, step, 0.5, 0.5) for step in (0, 100, 200)]
    frame = pd.DataFrame(rows, columns=[*RUN_COLUMNS, "step", "val_acc", "test_acc"])
    assert {"1 of 2 evaluations", "1 of 4 evaluations"} <= all_policies(frame).keys()
    frame.loc[1, "test_acc"] = None
    assert not any("evaluations" in name for name in all_policies(frame))
