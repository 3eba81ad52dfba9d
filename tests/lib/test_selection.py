"""`Q`, and DomainBed's selection classes on lists of records, compared with the functions that the tables use."""

import itertools
import math
import random
from pathlib import Path

import pytest

from domainbed import model_selection
from domainbed.lib.query import Q
from domainbed.lib.reporting import get_grouped_records, load_records
from domainbed.model_selection import SelectionMethod, best_hparams, select_records
from domainbed.reporting.load import load_sweep
from tests.conftest import make_record, write_sweep

METHODS = {
    "IIDAccuracySelectionMethod": "training-domain",
    "LeaveOneOutSelectionMethod": "leave-one-domain-out",
    "OracleSelectionMethod": "test-domain",
}


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep with all single environments and pairs; accuracies are often tied."""
    r = random.Random(0)
    records = [
        make_record("ColoredDigits", "ERM", test_envs, trial, hparams_seed, step, *accs)
        for trial, hparams_seed, step in itertools.product(range(2), range(4), (0, 100, 200))
        for test_envs in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
        for accs in [[tuple(r.choice((0.25, 0.5, 0.75)) for _ in range(3)) for _ in ("in", "out")]]
    ]
    return write_sweep(tmp_path_factory.mktemp("sweep"), records)


@pytest.mark.parametrize("class_name", METHODS)
@pytest.mark.parametrize("kind", [Q, list])
def test_classes_equal_the_functions(class_name: str, kind: type, sweep_dir: Path):
    best = best_hparams(select_records(METHODS[class_name], load_sweep(str(sweep_dir)).records))
    expected = {(row.trial_seed, row.test_env): row.test_acc for row in best.itertuples()}
    method = getattr(model_selection, class_name)
    found = {}
    for group in get_grouped_records(load_records(sweep_dir)):
        records = kind(group["records"])
        found[group["trial_seed"], group["test_env"]] = method.sweep_acc(records)
        accs = method.hparams_accs(records)
        assert [acc["val_acc"] for acc, _ in accs] == sorted((acc["val_acc"] for acc, _ in accs), reverse=True)
        assert all(type(run) is kind and len({r["args"]["hparams_seed"] for r in run}) == 1 for _, run in accs)
    assert found == expected
    assert len(found) == 6


def test_averaged_runs_are_a_group_of_their_own(tmp_path: Path):
    """Of a run with SWAD, whose algorithm is ERM as well, only the last record counts."""
    records = [make_record("ColoredDigits", "ERM", (0,), step=s, out_acc=(a, a, a)) for s, a in ((0, 0.6), (9, 0.5))]
    for record in make_record("ColoredDigits", "ERM", (0,), step=0, out_acc=(0.9,) * 3), make_record(step=9):
        records.append({**record, "args": {**record["args"], "averaging": "swad"}})
    groups = {group["algorithm"]: group["records"] for group in get_grouped_records(Q(records))}
    assert {name: len(group) for name, group in groups.items()} == {"ERM": 2, "ERM+SWAD": 2}
    method = model_selection.IIDAccuracySelectionMethod
    assert [method.run_acc(groups[name])["val_acc"] for name in ("ERM", "ERM+SWAD")] == [0.6, 0.5]


def test_own_class_of_a_method():
    class Last(SelectionMethod):
        name = "last step"

        @classmethod
        def run_acc(cls, run_records):
            record = run_records.sorted(lambda r: r["step"])[-1]
            return {"val_acc": record["env1_out_acc"], "test_acc": record["env0_in_acc"]}

    records = [make_record(hparams_seed=s, step=10 * s, in_acc=(s / 10,) * 3) for s in range(3)]
    assert Last.sweep_acc(Q(records)) == 0.2  # of tied draws, the last
    assert Last.sweep_acc(Q([])) is None


def test_runs_without_usable_records_have_no_accuracy():
    pair = [make_record(test_envs=(0, 1))]
    assert model_selection.OracleSelectionMethod.run_acc(pair) is None
    assert model_selection.LeaveOneOutSelectionMethod.run_acc([make_record()]) is None
    assert model_selection.IIDAccuracySelectionMethod.run_acc([]) is None


def test_query():
    q = Q([{"a": {"b": 2}, "c": [1]}, {"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [3]}])
    assert q.select("a.b") == [2, 1, 2]
    assert q.select("a.b,c") == [(2, [1]), (1, [1]), (2, [3])]
    assert q.group("a.b").map(lambda key, items: (key, len(items))) == [(1, 1), (2, 2)]
    assert q.group_map("c", lambda key, items: (key, items.select("a.b").mean())) == [([1], 1.5), ([3], 2.0)]
    assert q.filter_equals("a.b,c", (2, [3])) == [q[2]]
    assert q.filter_equals("c", (1,)).len() == 2
    assert q.argmax("a.b") is q[0]
    assert q.select("a.b").unique() == [2, 1]
    assert Q([1, 2, 3]).mean_std() == (2.0, pytest.approx((2 / 3) ** 0.5))
    assert (Q([1, 2]).min(), Q([1, 2]).max(), Q([1, 2]).sum()) == (1, 2, 3)
    assert Q([3.0, math.nan, 1.0]).sorted()[1:] == [1.0, 3.0]
    assert Q([3, 1, 2]).sorted(lambda x: -x) == [3, 2, 1]
    assert Q([1, None, 2]).filter_not_none() == [1, 2]
    assert Q([1.0, math.nan]).filter_not_nan() == [1.0]
    assert Q([[1], [2, 3]]).flatten() == [1, 2, 3]
    assert math.isnan(Q([]).mean())
