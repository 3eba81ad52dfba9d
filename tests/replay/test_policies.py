"""Replayed policies compared with slow references written from their definitions, on random curves."""

import itertools
import math
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from domainbed.model_selection import RUN_COLUMNS, TRIAL_COLUMNS, best_hparams, training_domain
from domainbed.pruning import PruneOptions
from domainbed.replay.fidelity import compare, count_computing, find_answers
from domainbed.replay.policies import all_policies, keep_draws, keep_evaluations, keep_trials, prune, score_records
from domainbed.replay.replays import CHANGED, cheapest_faithful, replay, summarize
from tests.conftest import make_record, read_sweep, write_sweep

ENVIRONMENTS = {"ColoredDigits": ["+90%", "+80%", "-90%"]}


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
    last = frame["step"].max()
    if rule == "median":
        rungs = set(frame["step"])
    else:
        resources = [last / factor**k for k in range(1, 10)]
        rungs = {min(s for s in frame["step"] if s >= r) for r in resources if r >= 0.1 * last and r > 0}
    rungs = {s for s in rungs if 0.1 * last <= s < last}
    kept = []
    for _, trial in frame.groupby(TRIAL_COLUMNS):
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


def test_curves_give_the_cells_of_the_tables(tmp_path: Path):
    rng = RandomState(0)
    records = [
        make_record("ColoredDigits", algorithm, (env,), trial, draw, step, *map(tuple, rng.randint(0, 9, (2, 3)) / 8))
        for algorithm in ("ERM", "Fishr", "ERM+SWAD")
        for env, trial, draw, step in itertools.product(range(3), range(2), range(3), (0, 100, 200))
    ]
    for record in records:
        if record["args"]["algorithm"] == "ERM+SWAD":
            record["args"] |= {"algorithm": "ERM", "averaging": "swad"}
            record["args"]["hparams_seed"] += 10
    frame, problems = read_sweep(write_sweep(tmp_path, records))
    assert problems == []
    curves = score_records(frame)
    assert set(curves["algorithm"]) == {"ERM", "Fishr"}
    best = best_hparams(training_domain(frame[frame["algorithm"] != "ERM+SWAD"]))
    expected = 100 * best.groupby(["dataset", "algorithm", "test_env"])["test_acc"].mean()
    answers = find_answers(curves, ENVIRONMENTS, "ERM")
    pd.testing.assert_series_equal(answers.cells, expected)
    means = best.groupby(["dataset", "algorithm"])["test_acc"].mean()
    np.testing.assert_allclose(answers.averages, 100 * means)


def toy(lead: float) -> pd.DataFrame:
    """Return curves in which algorithm B leads A by about `lead` in every cell."""
    rows = [
        ("ColoredDigits", name, env, trial, draw, step, 0.5 + draw / 10, 0.5 + lead * (name == "B") + trial / 1000)
        for name, env, trial, draw, step in itertools.product("AB", range(3), range(3), range(2), (0, 9))
    ]
    return pd.DataFrame(rows, columns=[*RUN_COLUMNS, "step", "val_acc", "test_acc"])


def test_changes_of_answers():
    better, worse, equal = (find_answers(toy(lead), ENVIRONMENTS, "A") for lead in (0.1, -0.1, 0.0))
    assert better.differences.to_dict() == {("ColoredDigits", "B"): 1}
    assert set(equal.differences) == {0}
    cost = (100, 10), (50, 10), 10.0
    change = compare(better, worse, *cost)
    assert (change.lost, change.gained, change.reversed, change.swapped) == (0, 0, 1, 1)
    assert change.cell == pytest.approx(10)  # that of half of the cells is 20
    assert change.max_cell == pytest.approx(20)
    assert (change.updates, change.evaluations, change.cost) == (0.5, 1, 0.75)
    assert compare(better, equal, *cost)[3:6] == (1, 0, 0)
    assert compare(equal, better, *cost)[3:6] == (0, 1, 0)
    assert compare(better, better, *cost)[:6] == (0,) * 6
    assert count_computing(toy(0)) == (36 * 10, 72)
    single = find_answers(keep_trials(toy(0.1), RandomState(0), 1), ENVIRONMENTS, "A")
    assert single.differences.empty
    assert compare(better, single, *cost)[3:6] == (1, 0, 0)
    assert compare(single, better, *cost)[3:6] == (0, 0, 0), "nothing was compared"


def test_policy_may_keep_no_run_of_the_baseline():
    curves = toy(0.1)
    unfinished = curves[(curves["algorithm"] == "B") | (curves["trial_seed"] < 2)]
    replays = replay(unfinished, all_policies(unfinished), ENVIRONMENTS, "A", 20, 1.0)
    assert np.isfinite(replays["cost"]).all()


def test_summary_of_replays():
    curves = toy(0.1)
    replays = replay(curves, all_policies(curves), ENVIRONMENTS, "A", 5, 1.0)
    pd.testing.assert_frame_equal(replays, replay(curves, all_policies(curves), ENVIRONMENTS, "A", 5, 1.0))
    assert (replays.groupby("policy").size() == 5).all()
    summary = summarize(replays).set_index("policy")
    assert (summary["cell_low"] <= summary["cell"] + 1e-9).all()
    assert summary.loc["1 of 2 draws", ["updates", CHANGED]].tolist() == [0.5, 0]
    assert summary.loc["1 of 3 trials", "lost"] == 1
    faithful = cheapest_faithful(summarize(replays))
    assert summary.loc[faithful, "cost"] == summary.loc[summary[CHANGED] == 0, "cost"].min()


def test_command_writes_all_formats_and_rejects_a_missing_baseline(tmp_path: Path, run_command):
    rng = RandomState(0)
    records = [
        make_record("ColoredDigits", name, (env,), trial, draw, step, *map(tuple, rng.rand(2, 3)))
        for name, env, trial, draw, step in itertools.product(("ERM", "Fishr"), range(3), range(2), range(2), (0, 100))
    ]
    sweep, output = write_sweep(tmp_path / "sweep", records), tmp_path / "output"
    finished = run_command("replay", "--input_dir", sweep, "--resamples", 2, "--output_dir", output)
    assert finished.returncode == 0, finished.stderr
    assert "24 finished runs, 2,424 updates and 48 evaluations" in finished.stdout
    assert {path.name for path in output.iterdir()} == {f"replay.{e}" for e in ("txt", "csv", "json", "png", "pdf")}
    assert (output / "replay.txt").read_text() == finished.stdout
    rejected = run_command("replay", "--input_dir", sweep, "--baseline", "IRM")
    assert (rejected.returncode, rejected.stderr.count("\n")) == (2, 1)
    assert "--baseline IRM: no finished runs" in rejected.stderr


def test_nothing_is_concluded_from_incomplete_trials(tmp_path: Path, run_command):
    """Without runs of one test environment, no trial has an average."""
    records = [
        make_record("ColoredDigits", name, (env,), trial)
        for name in ("ERM", "Fishr")
        for env, trial in ((0, 0), (1, 1))
    ]
    finished = run_command("replay", "--input_dir", write_sweep(tmp_path, records), "--resamples", 2)
    assert finished.returncode == 0, finished.stderr
    assert "of 0 (each dataset and the average)" in finished.stdout
    assert finished.stdout.splitlines()[-1].startswith("Cannot compare with ERM: this requires two trials")
