"""Statistics compared with all resamples, SciPy, simulated trials, and values computed by hand."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.reporting.statistics import (
    bootstrap_interval,
    paired_difference,
    probability_of_improvement,
    standard_error,
)

# With 10,000 resamples, the probability of a larger deviation from the exact distribution anywhere is 1 in 30 million
# (Dvoretzky-Kiefer-Wolfowitz inequality: 2 exp(-2 n x²)).
MONTE_CARLO = 0.03


def random_scores(seed: int, trials: int, tasks: int, levels: int = 10**6) -> np.ndarray:
    return np.random.RandomState(seed).randint(levels, size=(trials, tasks)) / levels


def every_resample(scores: np.ndarray) -> Iterator[np.ndarray]:
    """Yield all resamples of a stratified bootstrap; they are equally likely."""
    trials, tasks = scores.shape
    rows = list(itertools.product(range(trials), repeat=trials))
    for rows_by_task in itertools.product(rows, repeat=tasks):
        yield np.stack([scores[list(rows_by_task[j]), j] for j in range(tasks)], axis=1)


def weighted(values: list[float], weights: np.ndarray) -> float:
    return sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)


def mean(scores: np.ndarray, weights: np.ndarray) -> float:
    return weighted([sum(column) / len(column) for column in scores.T], weights)


def improvement(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Return the probability of improvement by its definition, pair by pair."""
    values = []
    for x, y in zip(a.T, b.T, strict=True):
        pairs = list(itertools.product(x, y))
        values.append(sum(1.0 if i > j else 0.5 if i == j else 0.0 for i, j in pairs) / len(pairs))
    return weighted(values, weights)


def is_quantile(value: float, share: float, exact: list[float]) -> bool:
    """Return whether `value` is a quantile of the `exact` distribution, up to Monte Carlo error."""
    low, high = np.quantile(exact, np.clip([share - MONTE_CARLO, share + MONTE_CARLO], 0, 1), method="inverted_cdf")
    return low - 1e-9 <= value <= high + 1e-9


small = {
    "seed": st.integers(0, 2**31 - 1),
    "trials": st.integers(2, 3),
    "tasks": st.integers(1, 2),
    "level": st.sampled_from([0.5, 0.8, 0.95]),
    "levels": st.sampled_from([2, 4, 10**6]),  # with many ties, and with none
}


@settings(max_examples=40, deadline=None)
@given(**small)
def test_intervals_are_quantiles_of_all_resamples(seed: int, trials: int, tasks: int, level: float, levels: int):
    a, b = random_scores(seed, trials, tasks, levels), random_scores(seed ^ 1, trials, tasks, levels)
    weights = np.random.RandomState(seed).randint(1, 5, tasks).astype(float)
    shares = ((1 - level) / 2, (1 + level) / 2)
    exact = [mean(drawn, weights) for drawn in every_resample(a)]
    for value, share in zip(bootstrap_interval(a, weights, level, seed=seed), shares, strict=True):
        assert is_quantile(value, share, exact)
    exact = [mean(drawn, weights) for drawn in every_resample(a - b)]
    difference, *interval = paired_difference(a, b, weights, level, seed=seed)
    assert difference == pytest.approx(mean(a, weights) - mean(b, weights))
    for value, share in zip(interval, shares, strict=True):
        assert is_quantile(value, share, exact)


@settings(max_examples=15, deadline=None)
@given(trials_of_b=st.integers(1, 2), **small)
def test_improvement_equals_all_pairs_and_all_resamples(
    seed: int, trials: int, trials_of_b: int, tasks: int, level: float, levels: int
):
    trials = min(trials, 4 - tasks)  # 11,664 resamples would be too slow here
    a, b = random_scores(seed, trials, tasks, levels), random_scores(seed ^ 1, trials_of_b, tasks, levels)
    weights = np.random.RandomState(seed).randint(1, 5, tasks).astype(float)
    exact = [improvement(x, y, weights) for x in every_resample(a) for y in every_resample(b)]
    probability, *interval = probability_of_improvement(a, b, weights, level, seed=seed)
    assert probability == pytest.approx(improvement(a, b, weights))
    for value, share in zip(interval, ((1 - level) / 2, (1 + level) / 2), strict=True):
        assert is_quantile(value, share, exact)


def test_values_computed_by_hand():
    # 27 resamples of (0, 3, 9): three zeros have probability 1/27 > 2.5%; two zeros and a three bring it to 4/27.
    scores = np.array([[0.0], [3.0], [9.0]])
    assert bootstrap_interval(scores) == (0, 9)
    assert bootstrap_interval(scores, level=0.85) == pytest.approx((1, 7))
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1 / np.sqrt(2))  # not 1, as with n - 1
    assert standard_error(np.array([60.0, 61.0, 62.0])) == pytest.approx(np.sqrt(2) / 3)
    won, lost, tied = [3.0, 2.0], [1.0, 0.0], [2.0, 2.0]
    assert probability_of_improvement(np.transpose([won]), np.transpose([lost])) == (1, 1, 1)
    assert probability_of_improvement(np.transpose([tied]), np.transpose([tied])) == (0.5, 0.5, 0.5)
    # pairs of (3, 2) with (2, 2): two wins, two ties
    assert probability_of_improvement(np.transpose([won]), np.transpose([tied])).probability == 0.75
    a, b = np.transpose([won, lost]), np.transpose([tied, tied])
    assert probability_of_improvement(a, b, weights=np.array([3, 1])).probability == pytest.approx(3 / 4 * 0.75)


def test_weights_give_mean_of_dataset_means():
    """Two datasets, with one and with three environments."""
    a, b = random_scores(0, 3, 4), random_scores(1, 3, 4)
    weights = np.array([1, 1 / 3, 1 / 3, 1 / 3])
    difference = a - b
    expected = (difference[:, 0].mean() + difference[:, 1:].mean()) / 2
    assert paired_difference(a, b, weights).difference == pytest.approx(expected)
    assert paired_difference(a, b, 7 * weights) == pytest.approx(paired_difference(a, b, weights))
    only_first = np.array([1.0, 0, 0, 0])
    assert paired_difference(a, b, only_first).difference == pytest.approx(difference[:, 0].mean())
    assert bootstrap_interval(a, only_first, level=0.8) == pytest.approx(bootstrap_interval(a[:, :1], level=0.8))


@pytest.mark.parametrize("tasks", [1, 3])
def test_agrees_with_scipy(tasks: int):
    """SciPy also resamples each sample independently; with `paired`, it resamples pairs."""
    a, b = random_scores(0, 25, tasks), random_scores(1, 25, tasks)
    options = {"method": "percentile", "n_resamples": 20_000, "confidence_level": 0.9, "rng": 0, "batch": 2000}

    def mean_of_means(*columns: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([c.mean(axis=axis) for c in columns], axis=0)

    expected = scipy.stats.bootstrap(tuple(a.T), mean_of_means, **options).confidence_interval
    assert bootstrap_interval(a, level=0.9, resamples=20_000) == pytest.approx(tuple(expected), abs=0.004)

    def mean_difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) - y.mean(axis=axis)

    def share_of_wins(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return (x[..., :, None] > y[..., None, :]).mean(axis=(-1, -2))

    first_task = a[:, :1], b[:, :1]
    columns = (a[:, 0], b[:, 0])
    expected = scipy.stats.bootstrap(columns, mean_difference, paired=True, **options).confidence_interval
    assert paired_difference(*first_task, level=0.9)[1:] == pytest.approx(tuple(expected), abs=0.008)
    expected = scipy.stats.bootstrap(columns, share_of_wins, **options).confidence_interval
    assert probability_of_improvement(*first_task, level=0.9)[1:] == pytest.approx(tuple(expected), abs=0.008)


def test_probability_equals_mann_whitney_u():
    a, b = random_scores(0, 6, 1, levels=5), random_scores(1, 4, 1, levels=5)
    u = scipy.stats.mannwhitneyu(a[:, 0], b[:, 0]).statistic
    assert probability_of_improvement(a, b).probability == pytest.approx(u / 24)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    trials=st.integers(2, 5),
    tasks=st.integers(1, 4),
    shift=st.floats(-100, 100),
    scale=st.floats(0.01, 100),
)
def test_shift_scale_and_swap(seed: int, trials: int, tasks: int, shift: float, scale: float):
    a, b = random_scores(seed, trials, tasks, 7), random_scores(seed ^ 1, trials, tasks, 7)
    few = {"resamples": 500, "seed": seed}
    low, high = bootstrap_interval(a, **few)
    assert low <= high
    moved = bootstrap_interval(scale * a + shift, **few)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-9)
    difference, low, high = paired_difference(a, b, **few)
    assert paired_difference(scale * a + shift, scale * b + shift, **few) == pytest.approx(
        (scale * difference, scale * low, scale * high), abs=1e-9
    )
    assert paired_difference(b, a, **few) == pytest.approx((-difference, -high, -low), abs=1e-12)
    assert paired_difference(a, a, **few) == (0, 0, 0)
    probability, low, high = probability_of_improvement(a, b, **few)
    assert 0 <= low <= high <= 1 + 1e-12
    assert probability_of_improvement(b, a, **few).probability == pytest.approx(1 - probability)
    # swapping a and b also swaps the order of resampling: the interval is mirrored only up to Monte Carlo error
    _, low, high = probability_of_improvement(a, b, seed=seed)
    _, swapped_low, swapped_high = probability_of_improvement(b, a, seed=seed)
    assert (1 - swapped_high, 1 - swapped_low) == pytest.approx((low, high), abs=0.13)
    # depends only on ranks
    assert probability_of_improvement(np.exp(scale * a), np.exp(scale * b), **few).probability == probability


def test_single_trial_has_no_interval():
    a, b = random_scores(0, 1, 31), random_scores(1, 1, 31)
    assert np.isnan(bootstrap_interval(a)).all()
    difference, *interval = paired_difference(a, b)
    assert difference == pytest.approx((a - b).mean())
    assert np.isnan(interval).all()
    probability, *interval = probability_of_improvement(a, b)
    assert probability == pytest.approx(improvement(a, b, np.ones(31)))
    assert np.isnan(interval).all()
    assert np.isfinite(probability_of_improvement(a, random_scores(1, 2, 31))).all()
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        bootstrap_interval(a, level=1)
    assert standard_error(a[:, 0]) == 0


def test_coverage():
    """95% intervals cover the truth as often as the module's docstring says; the tolerance is 3.5 sigma."""

    def coverage(interval: Callable[[np.random.RandomState, int], tuple], truth: float, repeats: int = 1000) -> float:
        rng = np.random.RandomState(0)
        intervals = [interval(rng, seed)[-2:] for seed in range(repeats)]
        return float(np.mean([low <= truth <= high for low, high in intervals]))

    few = {"resamples": 600}
    assert coverage(lambda rng, s: bootstrap_interval(rng.randn(40, 4), seed=s, **few), 0) == pytest.approx(
        0.945, abs=0.025
    )
    assert coverage(lambda rng, s: bootstrap_interval(rng.randn(30, 1), seed=s, **few), 0) == pytest.approx(
        0.935, abs=0.025
    )
    assert coverage(lambda rng, s: bootstrap_interval(rng.randn(3, 1), seed=s, **few), 0) == pytest.approx(
        0.77, abs=0.045
    )
    assert coverage(lambda rng, s: bootstrap_interval(rng.randn(3, 31), seed=s, **few), 0) == pytest.approx(
        0.885, abs=0.035
    )

    def paired(rng: np.random.RandomState, seed: int) -> tuple:
        trial = 10 * rng.randn(40, 2)  # common to both; without pairing, it would hide the difference
        return paired_difference(trial + rng.randn(40, 2) + 0.3, trial + rng.randn(40, 2), seed=seed, **few)

    assert coverage(paired, 0.3) == pytest.approx(0.945, abs=0.025)
    # P(A > B) of normals whose means are 1 apart
    truth = float(scipy.stats.norm.cdf(1 / np.sqrt(2)))
    assert coverage(
        lambda rng, s: probability_of_improvement(rng.randn(40, 1) + 1, rng.randn(30, 1), seed=s, resamples=300),
        truth,
        repeats=300,
    ) == pytest.approx(0.94, abs=0.05)


def test_results_depend_only_on_seed():
    a, b = random_scores(0, 3, 31), random_scores(1, 3, 31)
    for statistic in (
        lambda seed: bootstrap_interval(a, seed=seed),
        lambda seed: paired_difference(a, b, seed=seed),
        lambda seed: probability_of_improvement(a, b, seed=seed),
    ):
        assert statistic(5) == statistic(5)
        assert statistic(5)[-1] != statistic(6)[-1]
    state = np.random.get_state()[1].tolist()
    bootstrap_interval(a)
    assert np.random.get_state()[1].tolist() == state


def test_results_do_not_depend_on_chunk_size(monkeypatch: pytest.MonkeyPatch):
    a, b = random_scores(0, 3, 2), random_scores(1, 3, 2)
    expected = [*bootstrap_interval(a), *paired_difference(a, b)]
    for chunk in (1, 100, 10**9):
        monkeypatch.setattr("domainbed.reporting.statistics.CHUNK", chunk)
        assert [*bootstrap_interval(a), *paired_difference(a, b)] == pytest.approx(expected, abs=1e-12)
        assert is_quantile(probability_of_improvement(a, b, level=0.5).low, 0.25, all_improvements(a, b))


def all_improvements(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Return the exact bootstrap distribution of two tasks, which are independent."""
    distributions = [
        [improvement(x, y, np.ones(1)) for x in every_resample(a[:, [j]]) for y in every_resample(b[:, [j]])]
        for j in range(a.shape[1])
    ]
    return np.add.outer(*distributions).ravel() / 2


@pytest.mark.parametrize("trials", [3, 100])
def test_memory_is_bounded(trials: int):
    """All resamples at once would take 7 MiB of indices for 3 trials, and 240 MiB for 100 trials (pairs: 24 GiB)."""
    a, b = random_scores(0, trials, 31), random_scores(1, trials, 31)
    for statistic, resamples in (
        (lambda n: bootstrap_interval(a, resamples=n), 10_000),
        (lambda n: paired_difference(a, b, resamples=n), 10_000),
        (lambda n: probability_of_improvement(a, b, resamples=n), 10_000 if trials == 3 else 100),
    ):
        tracemalloc.start()
        statistic(resamples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * 2**20


GOOD = random_scores(0, 3, 2)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.full((3, 2), np.nan), "must be finite"),
        (np.array([[1.0, np.inf], [1, 1]]), "must be finite"),
        (np.empty((0, 2)), "must not be empty"),
        (np.empty((3, 0)), "must not be empty"),
        (np.ones(3), r"must be \[trials, tasks\], not of shape \(3,\)"),
        (np.ones((3, 2, 1)), r"must be \[trials, tasks\]"),
    ],
)
def test_invalid_scores(scores: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(scores)
    for statistic in (paired_difference, probability_of_improvement):
        with pytest.raises(ValueError, match=message):
            statistic(scores, GOOD)
        with pytest.raises(ValueError, match=message):
            statistic(GOOD, scores)


def test_invalid_shapes_and_settings():
    with pytest.raises(ValueError, match=r"the same shape, not \(3, 2\) and \(2, 2\)"):
        paired_difference(GOOD, GOOD[:2])
    with pytest.raises(ValueError, match="must have the same tasks, not 2 and 1 of them"):
        probability_of_improvement(GOOD, GOOD[:, :1])
    with pytest.raises(ValueError, match=r"weights must have shape \(2,\)"):
        bootstrap_interval(GOOD, weights=np.ones(3))
    for weights in ([0, 0], [1, -0.5], [1, np.nan], [1, np.inf]):
        with pytest.raises(ValueError, match="weights must be finite"):
            bootstrap_interval(GOOD, weights=np.array(weights, dtype=float))
    for level in (0, 1, 95, np.nan):
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            bootstrap_interval(GOOD, level=level)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        bootstrap_interval(GOOD, resamples=0)
    for scores in (np.empty(0), np.array([1, np.nan]), GOOD):
        with pytest.raises(ValueError, match="scores"):
            standard_error(scores)
