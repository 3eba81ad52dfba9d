"""Measures of runs that are made up: images in common, ensembles over trials, and means over trials."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from domainbed.analysis import metrics
from domainbed.analysis.ensembles import measure_ensemble
from domainbed.analysis.measures import CALIBRATION_METRICS, find_extremes, measure_agreement, measure_run
from domainbed.analysis.runs import Outputs, Run, find_common
from domainbed.analysis.tables import AVERAGE, images_table, summarize

CLASSES = ("dog", "cat", "cow")


def make_outputs(rng: RandomState, index: np.ndarray, name: str = "", labels: np.ndarray | None = None) -> Outputs:
    logits = rng.randn(len(index), len(CLASSES)).astype(np.float16)
    images = np.array([f"{name}{i}.png" for i in index])
    known = np.arange(1000) % len(CLASSES) if labels is None else labels
    return Outputs(logits, logits.argmax(1), known[index], index, images)


def make_run(algorithm: str, env: int, trial: int, rng: RandomState, name: str = "") -> Run:
    unseen = make_outputs(rng, np.arange(30), name)
    in_split = np.sort(RandomState(trial).permutation(30)[:24])
    return Run(
        *("Made", algorithm, env, trial, 0, f"env{env}", CLASSES),
        test=unseen.take(in_split),
        unseen=unseen,
        validation=make_outputs(rng, np.arange(40)),
    )


def test_ensembles_over_trials_use_all_images_in_common():
    rng = RandomState(0)
    runs = [make_run("ERM", 0, trial, rng) for trial in range(3)]
    row = measure_ensemble(runs, "trials")
    assert (row["n_members"], row["n_images"]) == (3, 30)
    mean = np.mean([metrics.probabilities(run.unseen.log_probabilities) for run in runs], axis=0)
    assert row["accuracy"] == np.mean(mean.argmax(1) == runs[0].unseen.labels)
    assert row["member_accuracy"] == pytest.approx(np.mean([run.unseen.is_correct.mean() for run in runs]))
    assert measure_ensemble(runs[:1], "trials") is None
    # Images of the same number that differ between trials, by name or by label, are never combined.
    assert measure_ensemble([runs[0], make_run("ERM", 0, 1, rng, name="other")], "trials") is None
    labels = np.zeros(1000, int)
    assert find_common([runs[0].unseen, make_outputs(rng, np.arange(30), labels=labels)]) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(2, 6))
def test_ensembles_equal_the_mean_of_all_members(seed: int, n: int):
    """Members may lack images, also ones that earlier members have."""
    rng = RandomState(seed)
    numbers = [np.sort(rng.permutation(30)[: rng.randint(25, 31)]) for _ in range(n)]
    runs = [replace(make_run("ERM", 0, 0, rng), test=make_outputs(rng, of_run)) for of_run in numbers]
    row = measure_ensemble(iter(runs), "draws")
    common = sorted(set.intersection(*(set(of_run.tolist()) for of_run in numbers)))
    members = [run.test.take(np.searchsorted(run.test.index, common)) for run in runs]
    mean = np.mean([metrics.probabilities(member.log_probabilities) for member in members], axis=0)
    labels, predicted = members[0].labels, mean.argmax(1)
    assert (row["n_members"], row["n_images"], row["trial_seed"]) == (n, len(common), 0)
    single = [
        (
            member.is_correct.mean(),
            metrics.negative_log_likelihood(member.log_probabilities, labels),
            metrics.calibration_error(metrics.probabilities(member.log_probabilities).max(1), member.is_correct),
        )
        for member in members
    ]
    is_correct = predicted == labels
    nll = -np.log(mean[np.arange(len(labels)), labels]).mean()
    expected = [is_correct.mean(), nll, metrics.calibration_error(mean.max(1), is_correct)]
    names = ("accuracy", "nll", "ece")
    np.testing.assert_allclose([row[name] for name in names], expected, rtol=0, atol=1e-12)
    found = [row[f"member_{name}"] for name in names]
    np.testing.assert_allclose(found, np.mean(single, axis=0), rtol=0, atol=1e-12)


def test_ensembles_do_not_keep_their_members():
    rng = RandomState(0)
    references: list[weakref.ref] = []

    def load() -> Iterator[Run]:
        for trial in range(6):
            run = make_run("ERM", 0, trial, rng)
            references.append(weakref.ref(run.unseen.log_probabilities))
            yield run
            del run
            gc.collect()
            assert sum(reference() is not None for reference in references) <= 1

    assert measure_ensemble(load(), "trials")["n_members"] == 6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.integers(0, 20), min_size=1), min_size=1, max_size=4))
def test_common_images(sets: list[set[int]]):
    rng = RandomState(0)
    members = [make_outputs(rng, np.array(sorted(numbers))) for numbers in sets]
    rows = find_common(members)
    expected = sorted(set.intersection(*sets))
    for member, positions in zip(members, rows, strict=True):
        assert member.index[positions].tolist() == expected


def test_runs_on_other_versions_of_the_data_are_not_compared():
    rng = RandomState(0)
    runs = [make_run("ERM", 0, 0, rng), make_run("CORAL", 0, 0, rng), make_run("IRM", 0, 0, rng, name="other")]
    pairs = measure_agreement([measure_run(run) for run in runs])
    assert pairs[["algorithm", "other"]].to_numpy().tolist() == [["ERM", "CORAL"]]


def test_agreement_is_that_on_common_images():
    """Splits of the same size may have different images."""
    rng = RandomState(0)
    first, second = make_run("ERM", 0, 0, rng), make_run("CORAL", 0, 0, rng)
    second = replace(second, test=second.unseen.take(np.arange(24)))
    common = np.intersect1d(first.test.index, np.arange(24))
    assert len(first.test.index) == 24 > len(common)
    [row] = measure_agreement([measure_run(first), measure_run(second)]).to_dict("records")
    a, b = first.unseen.predicted[common], second.unseen.predicted[common]
    assert row["agreement"] == np.mean(a == b)
    assert row["error_consistency"] == metrics.error_consistency(a, b, first.unseen.labels[common])
    apart = [replace(run, test=run.unseen.take(rows)) for run, rows in ((first, [0, 1]), (second, [2, 3]))]
    assert measure_agreement([measure_run(run) for run in apart]).empty


def test_measures_without_calibration_are_those_with_it():
    run = make_run("ERM", 0, 0, RandomState(0))
    complete, reduced = measure_run(run), measure_run(run, with_calibration=False)
    names = {"temperature", *CALIBRATION_METRICS, *(f"{name}_scaled" for name in CALIBRATION_METRICS)}
    for row, other in zip(complete.rows, reduced.rows, strict=True):
        assert {name: value for name, value in row.items() if name not in names} == other
        assert row.keys() - other.keys() == names
    assert (complete.confidence[False] == reduced.confidence[False]).all()
    assert reduced.confidence.keys() == {False}


def test_extremes_require_runs_of_all_algorithms():
    rng = RandomState(0)
    runs = [measure_run(make_run(*key, rng)) for key in itertools.product(("ERM", "CORAL"), range(2), range(2))]
    complete = find_extremes(runs, ["ERM", "CORAL"])
    assert set(complete["outcome"]) == {"all fail", "only ERM", "only CORAL"}
    assert (complete["n_runs"] >= 2).all()
    table = images_table(complete, runs, ["env0", "env1"])
    assert sum(int(row[2].split()[0]) for row in table.rows) == len(complete)
    only_env1 = find_extremes(
        [run for run in runs if run.run["test_env"] or run.run["algorithm"] == "ERM"], ["ERM", "CORAL"]
    )
    assert set(only_env1["environment"]) == {"env1"}
    assert find_extremes(runs[:1], ["ERM", "CORAL"]).empty
    alone = find_extremes(runs[:2], ["ERM"])
    assert set(alone["outcome"]) == {"all fail"}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_means_over_trials_equal_reference(seed: int):
    rng = RandomState(seed)
    environments = ["a", "b", "c"][: rng.randint(1, 4)]
    keys = [key for key in itertools.product(["X", "Y"], environments, range(3)) if rng.rand() < 0.8]
    frame = pd.DataFrame(keys, columns=["algorithm", "environment", "trial_seed"]).assign(value=rng.rand(len(keys)))
    frame = frame.sample(frac=1, random_state=rng)
    if frame.empty:
        return
    frame.iloc[0, 3] = [np.nan, 0.5][rng.randint(2)]
    values = {tuple(row[:3]): row[3] for row in frame.to_numpy().tolist()}
    expected = {}
    for algorithm in ("X", "Y"):
        for environment in [*environments, *[AVERAGE] * (len(environments) > 1)]:
            names = environments if environment == AVERAGE else [environment]
            trials = [[values.get((algorithm, name, trial)) for name in names] for trial in range(3)]
            means = [float(np.mean(trial)) for trial in trials if None not in trial]
            if means:
                expected[algorithm, environment] = (len(means), np.mean(means), np.std(means) / np.sqrt(len(means)))
    found = summarize(frame, ["algorithm"], ["value"], environments)
    names = ["trials", "value", "value_error"]
    result = {(row["algorithm"], row["environment"]): [row[name] for name in names] for row in found.to_dict("records")}
    assert result.keys() == expected.keys()
    for key, numbers in expected.items():
        np.testing.assert_allclose(result[key], numbers, atol=1e-12)
