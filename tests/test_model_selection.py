"""Selection methods and table cells compared with a slow reference, on random sweeps with ties and missing runs."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.model_selection import SELECTION_METHODS, TRIAL_COLUMNS, best_hparams, select_records
from domainbed.reporting.cells import AVERAGE, algorithms_of, average_cells, datasets_of, environment_names, make_cells
from domainbed.reporting.load import load_sweep
from tests.conftest import make_record, read_sweep, write_sweep
from tests.reference import METHODS, dataset_table, trial_accuracy

N_ENVIRONMENTS = {"ColoredDigits": 3, "Elsewhere": 4}


@st.composite
def sweeps(draw) -> list[dict]:
    """Draw the records of a sweep with missing runs and steps, and accuracies in sixteenths, to get many ties."""
    rng = np.random.RandomState(draw(st.integers(0, 2**31 - 1)))
    keep_run, keep_step = draw(st.sampled_from([0.3, 0.7, 1.0])), draw(st.sampled_from([0.6, 1.0]))
    levels = draw(st.sampled_from([2, 17]))
    records = []
    for dataset in draw(st.lists(st.sampled_from(list(N_ENVIRONMENTS)), min_size=1, max_size=2, unique=True)):
        n = N_ENVIRONMENTS[dataset]
        single = [(i,) for i in range(n)]
        pairs = list(itertools.combinations(range(n), 2)) if draw(st.booleans()) else []
        for algorithm, trial, hparams_seed, test_envs in itertools.product(
            ["ERM", "Mine"], range(2), range(3), single + pairs
        ):
            if rng.rand() > keep_run:
                continue
            for step in (0, 100, 200):
                if rng.rand() <= keep_step:
                    accs = rng.randint(0, levels, (2, n)) / 16
                    run = make_record(dataset, algorithm, test_envs, trial, hparams_seed, step, *map(tuple, accs))
                    records.append(run)
    return records


@settings(max_examples=40, deadline=None)
@given(records=sweeps(), shuffle=st.randoms())
def test_selections_and_cells_equal_the_reference(records: list[dict], shuffle):
    if not records:
        return
    with tempfile.TemporaryDirectory() as folder:
        written = list(records)
        shuffle.shuffle(written)  # the order of jobs must not matter
        written.sort(key=lambda record: record["step"])
        sweep = load_sweep(str(write_sweep(Path(folder), written)))
    frame = sweep.records
    assert sweep.problems == []
    datasets = {r["args"]["dataset"] for r in records}
    for method in METHODS:
        selected = SELECTION_METHODS[method](frame)
        best = best_hparams(selected)
        named = {dataset: environment_names(sweep.jobs, dataset) for dataset in datasets_of(sweep.runs)}
        cells = make_cells(sweep.runs, selected, method, named, algorithms_of(sweep.runs), dict.fromkeys(named, ""))
        by_name = {(cell.table, cell.algorithm, cell.column): cell for cell in cells}
        means: dict[str, list] = {}
        for dataset, algorithm in itertools.product(datasets, sorted({r["args"]["algorithm"] for r in records})):
            n = N_ENVIRONMENTS[dataset]
            row = dataset_table(method, records, dataset, algorithm, n)
            names = ["+90%", "+80%", "-90%"] if dataset == "ColoredDigits" else [f"env{i}" for i in range(n)]
            for column, expected in row.items():
                name = AVERAGE if column == "Avg" else names[column]
                cell = by_name[dataset, algorithm, name]
                if expected is None:
                    assert np.isnan(cell.mean)
                    assert np.isnan(cell.standard_error)
                    assert cell.trials == 0
                else:
                    assert (cell.mean, cell.standard_error) == pytest.approx(expected, abs=1e-9)
            means.setdefault(algorithm, []).append(row["Avg"])
            for env, trial in itertools.product(range(n), range(2)):
                expected_run = trial_accuracy(method, records, dataset, algorithm, env, n, trial)
                rows = best[(best[TRIAL_COLUMNS] == [dataset, algorithm, env, trial]).all(axis=1)]
                found = [(row.test_acc, row.hparams_seed) for row in rows.itertuples()]
                assert found == ([] if expected_run is None else [expected_run])
        overall = {
            cell.algorithm: cell.mean
            for cell in average_cells(cells, dict.fromkeys(named, ""))
            if cell.column == AVERAGE
        }
        for algorithm, averages in means.items():
            if None in averages:
                assert np.isnan(overall[algorithm])
            else:
                assert overall[algorithm] == pytest.approx(np.mean([m for m, _ in averages]), abs=1e-9)


def frame_of(*records: dict) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        return read_sweep(write_sweep(Path(folder), list(records)))[0]


def test_training_domain():
    records = [
        # the accuracies on the test environment (0.9) must not influence the selection
        make_record(step=0, in_acc=(0.1, 0, 0), out_acc=(0.9, 0.5, 0.7)),
        make_record(step=100, in_acc=(0.2, 0, 0), out_acc=(0.0, 0.8, 0.5)),
        make_record(step=200, in_acc=(0.3, 0, 0), out_acc=(0.0, 0.5, 0.8)),  # tied, but later
    ]
    (selected,) = SELECTION_METHODS["training-domain"](frame_of(*records)).to_dict("records")
    assert (selected["step"], selected["test_acc"], selected["val_acc"]) == (100, 0.2, 0.65)


def test_tie_selects_the_highest_hparams_seed():
    records = [make_record(hparams_seed=h, in_acc=(h / 10, 0, 0)) for h in (2, 0, 1)]
    (best,) = best_hparams(SELECTION_METHODS["training-domain"](frame_of(*records))).to_dict("records")
    assert (best["hparams_seed"], best["test_acc"]) == (2, 0.2)


def test_test_domain_selects_the_last_record():
    records = [
        make_record(step=0, in_acc=(0.9, 0, 0), out_acc=(0.9, 0, 0)),
        make_record(step=100, in_acc=(0.2, 0, 0), out_acc=(0.3, 0, 0)),
    ]
    (selected,) = SELECTION_METHODS["test-domain"](frame_of(*records)).to_dict("records")
    assert (selected["step"], selected["val_acc"], selected["test_acc"]) == (100, 0.3, 0.2)


def test_leave_one_domain_out_requires_every_pair():
    single = make_record(test_envs=(1,), in_acc=(0, 0.6, 0))
    pair_01 = make_record(test_envs=(0, 1), in_acc=(0.3, 0.9, 0.9))
    pair_12 = make_record(test_envs=(1, 2), in_acc=(0.9, 0.9, 0.5))
    select = SELECTION_METHODS["leave-one-domain-out"]
    assert select(frame_of(single)).empty
    assert select(frame_of(single, pair_01)).empty
    assert select(frame_of(pair_12, pair_01)).empty
    (selected,) = select(frame_of(single, pair_01, pair_12)).to_dict("records")
    assert (selected["test_env"], selected["val_acc"], selected["test_acc"]) == (1, 0.4, 0.6)


def averaged(averaging: str, *args) -> dict:
    record = make_record("ColoredDigits", "ERM", *args)
    record["args"]["averaging"] = averaging
    return record


@pytest.mark.parametrize("method", ["training-domain", "test-domain", "leave-one-domain-out"])
def test_only_the_last_average_of_swad_counts(method: str):
    """Runs may end at different steps; those of SMA and ERM are selected as usual."""
    records = []
    for test_envs, steps in {(0,): (0, 2, 4), (0, 1): (0, 2), (0, 2): (0, 2, 4, 6)}.items():
        accs = [(0.9 - 0.1 * i,) * 3 for i in range(len(steps))]
        records += [averaged("swad", test_envs, 0, 0, step, acc, acc) for step, acc in zip(steps, accs, strict=True)]
    (selected,) = select_records(method, frame_of(*records)).to_dict("records")
    assert (selected["algorithm"], selected["step"]) == ("ERM+SWAD", 4)
    assert selected["test_acc"] == pytest.approx(0.7)
    val_acc = {"leave-one-domain-out": (0.8 + 0.6) / 2}.get(method, 0.7)
    assert selected["val_acc"] == pytest.approx(val_acc)
    if method == "training-domain":
        for record in records:
            record["args"]["averaging"] = "sma"
        (selected,) = select_records(method, frame_of(*records)).to_dict("records")
        assert (selected["algorithm"], selected["step"]) == ("ERM+SMA", 0)


def test_averaged_runs_have_a_row_after_their_algorithm():
    with tempfile.TemporaryDirectory() as folder:
        for name in ("none", "swad"):
            for algorithm in ("CORAL", "ERM", "Mine"):
                record = averaged(name, (0,))
                record["args"]["algorithm"] = algorithm
                write_sweep(Path(folder) / name, [record])
        for path in list(Path(folder).glob("*/*")):
            path.rename(Path(folder) / f"{path.parent.name}-{path.name}")
        for name in ("none", "swad"):
            (Path(folder) / name).rmdir()
        sweep = load_sweep(folder)
    assert sweep.problems == []
    rows = algorithms_of(sweep.runs)
    assert rows == ["ERM", "ERM+SWAD", "CORAL", "CORAL+SWAD", "Mine", "Mine+SWAD"]
