"""Pruning rules compared with their definitions, and what they guarantee in any order of events."""

import itertools
import math
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.engine.config import JobConfig
from domainbed.errors import UsageError
from domainbed.pruning import PruneOptions

RULES = [PruneOptions("median"), *(PruneOptions("asha", factor) for factor in (2, 3, 4))]
levels = st.integers(0, 6).map(lambda n: n / 6)


@given(levels, st.lists(levels, max_size=24), st.integers(2, 6))
def test_asha_keeps_the_best_fraction(accuracy: float, peers: list[float], factor: int):
    ranking = sorted([accuracy, *peers], reverse=True)
    n_kept = len(ranking) // factor
    expected = n_kept > 0 and accuracy < ranking[n_kept - 1]  # ties with the last one kept are kept
    assert PruneOptions("asha", factor).should_stop(accuracy, peers) == expected


@given(levels, st.lists(levels, max_size=24))
def test_median_compares_with_the_median_of_enough_peers(accuracy: float, peers: list[float]):
    assert PruneOptions("median").should_stop(accuracy, peers) == (len(peers) >= 4 and accuracy < median(peers))


@given(st.integers(1, 6000), st.integers(1, 1000), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.25, 0.9]))
def test_rungs_are_the_first_evaluations_of_each_fraction(steps: int, every: int, factor: int, grace: float):
    config = JobConfig("ColoredDigits", "ERM", (0,), steps=steps, checkpoint_freq=every)
    evaluated = config.evaluation_steps()
    assert evaluated == [step for step in range(steps) if step % every == 0 or step == steps - 1]
    last = evaluated[-1]
    expected = set()
    for k in range(1, 30):
        resource = last / factor**k
        if resource >= max(grace * last, 1):
            expected.add(min(step for step in evaluated if step >= resource))
    rungs = PruneOptions("asha", factor, grace).rungs(evaluated)
    assert rungs == {step for step in expected if grace * last <= step < last}
    late = {step for step in evaluated if grace * last <= step < last}
    assert PruneOptions("median", prune_grace=grace).rungs(evaluated) == late


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(RULES), st.integers(1, 9))
def test_a_better_run_always_finishes(data: st.DataObject, options: PruneOptions, n_runs: int):
    """Runs are evaluated in any order. A pruned run is behind one that finishes, which selection prefers."""
    steps = list(range(0, 700, 100))
    curves = [data.draw(st.lists(levels, min_size=len(steps), max_size=len(steps))) for _ in range(n_runs)]
    best = [list(itertools.accumulate(curve, max)) for curve in curves]
    rungs = options.rungs(steps)
    position = [0] * n_runs
    pruned: dict[int, float] = {}
    while active := [i for i in range(n_runs) if i not in pruned and position[i] < len(steps)]:
        i = data.draw(st.sampled_from(active))
        now = position[i]
        position[i] += 1
        peers = [best[j][now] for j in range(n_runs) if j != i and position[j] > now]
        if steps[now] in rungs and options.should_stop(best[i][now], peers):
            pruned[i] = best[i][now]
    finished = [best[i][-1] for i in range(n_runs) if i not in pruned]
    assert finished
    assert all(accuracy < max(finished) for accuracy in pruned.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("hyperband",), "invalid --prune 'hyperband'; choose from none, asha, median"),
        (("asha", 1), "--prune_factor must be at least 2, not 1"),
        (("asha", 2, 1.0), "--prune_grace must be at least 0 and below 1, not 1.0"),
        (("asha", 2, math.nan), "--prune_grace must be at least 0 and below 1, not nan"),
    ],
)
def test_invalid_options(values: tuple, message: str):
    with pytest.raises(UsageError) as error:
        PruneOptions(*values)
    assert str(error.value) == message
