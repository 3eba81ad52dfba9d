"""The answers of replayed sweeps, how they change, and their summary."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.random import RandomState

from domainbed.model_selection import RUN_COLUMNS, best_hparams, training_domain
from domainbed.pruning import PruneOptions
from domainbed.replay.fidelity import compare, count_computing, find_answers
from domainbed.replay.policies import all_policies, keep_trials, prune, score_records
from domainbed.replay.replays import CHANGED, cheapest_faithful, replay, summarize
from domainbed.replay.table import conclude
from tests.conftest import make_record, read_sweep, write_sweep

ENVIRONMENTS = {"ColoredDigits": ["+90%", "+80%", "-90%"]}


def test_curves_give_the_cells_of_the_tables(tmp_path: Path):
    rng = RandomState(0)
    records = [
        make_record("ColoredDigits", algorithm, (env,), trial, draw, step, *map(tuple, rng.randint(0, 9, (2, 3)) / 8))
        for algorithm in ("ERM", "Fishr")
        for env, trial, draw, step in itertools.product(range(3), range(2), range(3), (0, 100, 200))
    ]
    frame, problems = read_sweep(write_sweep(tmp_path, records))
    assert problems == []
    curves = score_records(frame)
    assert len(curves) == len(records)
    best = best_hparams(training_domain(frame))
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
    assert (change.missing, change.untested) == (0, 0)
    assert (change.updates, change.evaluations, change.cost) == (0.5, 1, 0.75)
    assert compare(better, equal, *cost)[4:8] == (1, 0, 0, 0)
    assert compare(equal, better, *cost)[4:8] == (0, 1, 0, 0)
    assert compare(better, better, *cost)[:8] == (0,) * 8
    assert count_computing(toy(0)) == (36 * 10, 72)
    single = find_answers(keep_trials(toy(0.1), RandomState(0), 1), ENVIRONMENTS, "A")
    assert single.differences.empty
    assert compare(better, single, *cost)[4:8] == (1, 0, 0, 1)
    assert compare(single, better, *cost)[4:8] == (0, 0, 0, 0), "nothing was compared"


def test_missing_cells_are_counted_and_omitted():
    """Neither the cells nor the pairs of algorithms that a replay lacks count as changes."""
    curves = pd.concat([toy(0.1), toy(0.0)[lambda f: f["algorithm"] == "B"].assign(algorithm="C")], ignore_index=True)
    complete = find_answers(curves, ENVIRONMENTS, "A")
    without_cell = curves[(curves["algorithm"] != "B") | (curves["test_env"] != 1)]
    change = compare(complete, find_answers(without_cell, ENVIRONMENTS, "A"), (100, 10), (50, 10), 10.0)
    assert (change.cell, change.max_cell, change.missing, change.swapped, change.untested) == (0, 0, 1, 0, 1)
    only_a = find_answers(curves[curves["algorithm"] == "A"], ENVIRONMENTS, "A")
    change = compare(complete, only_a, (100, 10), (50, 10), 10.0)
    assert (change.missing, np.isnan(change.swapped)) == (6, True)


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
    assert summary.loc["1 of 3 trials", "untested"] == 1
    faithful = cheapest_faithful(summarize(replays))
    assert summary.loc[faithful, "cost"] == summary.loc[summary[CHANGED] == 0, "cost"].min()


def test_policies_are_not_ranked_without_significant_differences():
    """A single trial changes nothing then, because it leaves nothing to compare."""
    curves = toy(0.0)
    differences = find_answers(curves, ENVIRONMENTS, "A").differences
    summary = summarize(replay(curves, all_policies(curves), ENVIRONMENTS, "A", 5, 1.0))
    assert summary.set_index("policy").loc["1 of 3 trials", [CHANGED, "untested"]].tolist() == [0, 1]
    assert cheapest_faithful(summary) != "1 of 3 trials"
    assert conclude(summary, differences, "A") == [
        "Significant differences from A in the complete sweep: 0 of 1; conclusions cannot rank the policies."
    ]
    summary = pd.DataFrame(
        {"policy": ["a", "b", "c"], "cost": [0.1, 0.2, 0.3], CHANGED: [0, 0, 1], "untested": [1, 0, 0]}
    )
    assert conclude(summary, pd.Series([1, 0]), "A") == [
        "Significant differences from A in the complete sweep: 1 of 2.",
        "Not considered, because they leave differences untested: a.",
        "b is the cheapest policy that never changed which differences from A are significant.",
    ]
    assert conclude(summary.drop(1), pd.Series([1]), "A")[-1].startswith("Every other policy at times changed")
    assert conclude(summary[2:], pd.Series([1, -1]), "A") == [
        "Significant differences from A in the complete sweep: 2 of 2.",
        "Every policy at times changed which differences from A are significant.",
    ]


def test_records_without_a_test_accuracy_are_compared_but_not_selected(tmp_path: Path):
    """With `--eval selection`, costs and pruned runs are those of a complete evaluation, and so are the answers."""
    rng = RandomState(0)
    records = [
        make_record("ColoredDigits", name, (env,), trial, draw, step, *map(tuple, rng.randint(0, 9, (2, 3)) / 8))
        for name, env, trial, draw, step in itertools.product(
            ("ERM", "Fishr"), range(3), range(2), range(4), range(0, 500, 100)
        )
    ]
    complete = score_records(read_sweep(write_sweep(tmp_path / "all", records))[0])
    best: dict[str, float] = {}
    n_omitted = 0
    for record in records:
        [env] = record["args"]["test_envs"]
        accuracy = sum(record[f"env{i}_out_acc"] for i in range(3) if i != env)
        run = str(record["args"])
        record["args"]["eval"] = "selection"
        if accuracy <= best.get(run, -1.0) and record["step"] < 400:
            del record[f"env{env}_in_acc"], record[f"env{env}_out_acc"]
            n_omitted += 1
        best[run] = max(accuracy, best.get(run, -1.0))
    curves = score_records(read_sweep(write_sweep(tmp_path / "selection", records))[0])
    assert curves["test_acc"].isna().sum() == n_omitted > 0
    pd.testing.assert_frame_equal(curves.drop(columns="test_acc"), complete.drop(columns="test_acc"))
    assert count_computing(curves) == count_computing(complete)
    for rule in ("median", "asha"):
        kept = [prune(frame, RandomState(0), PruneOptions(rule)) for frame in (curves, complete)]
        assert kept[0].index.equals(kept[1].index)
        answers = [find_answers(frame, ENVIRONMENTS, "ERM") for frame in kept]
        for of_selection, of_all in zip(*answers, strict=True):
            pd.testing.assert_series_equal(of_selection, of_all)
