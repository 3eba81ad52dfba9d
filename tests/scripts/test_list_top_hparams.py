"""Ranked runs of a cell: every ranking and every cell equals the slow reference, and the output."""

import csv
import io
import itertools
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from domainbed.errors import UsageError
from domainbed.model_selection import SELECTION_METHODS, best_hparams
from domainbed.reporting.load import load_sweep
from domainbed.reporting.top_hparams import format_json
from domainbed.scripts.cell import find_cell
from domainbed.scripts.list_top_hparams import main
from tests.conftest import make_record, write_sweep
from tests.reference import METHODS, cell, runs_of
from tests.test_model_selection import N_ENVIRONMENTS, sweeps

CELL = ["--dataset", "ColoredDigits", "--algorithm", "ERM", "--test_env", "0"]


def run_list(capsys: pytest.CaptureFixture, folder: Path, *args: str) -> str:
    main(["--input_dir", str(folder), *(args or CELL)])
    return capsys.readouterr().out


@settings(max_examples=10, deadline=None)
@given(records=sweeps())
def test_rankings_and_cells_equal_reference(records: list[dict]):
    if not records:
        return
    with tempfile.TemporaryDirectory() as folder:
        sweep = load_sweep(str(write_sweep(Path(folder), records)))
    best_runs = {method: best_hparams(SELECTION_METHODS[method](sweep.records)) for method in METHODS}
    for dataset, algorithm in {(r["args"]["dataset"], r["args"]["algorithm"]) for r in records}:
        n = N_ENVIRONMENTS[dataset]
        # Without a launch log, the records imply which runs were requested.
        dataset_args = [r["args"] for r in records if r["args"]["dataset"] == dataset]
        trials, seeds = {a["trial_seed"] for a in dataset_args}, {a["hparams_seed"] for a in dataset_args}
        for method, env in itertools.product(METHODS, range(n)):
            if not runs_of(records, dataset=dataset, algorithm=algorithm, test_envs=[env]):
                continue
            found_cell = find_cell(sweep, dataset, algorithm, str(env), method)
            found = json.loads(format_json(found_cell, 100))
            expected: dict[int, list] = {}
            unranked = []
            for trial, seed in itertools.product(trials, seeds):
                run = {"dataset": dataset, "algorithm": algorithm, "trial_seed": trial, "hparams_seed": seed}
                selected = METHODS[method](records, env, n, **run)
                if selected is None:
                    unranked.append((trial, seed))
                else:
                    val_acc, test_acc, step = selected
                    expected.setdefault(trial, []).append((val_acc, seed, test_acc, step))
            by_trial = {t: sorted(runs, reverse=True) for t, runs in sorted(expected.items())}
            rows = [
                (trial, rank, seed, step, 100 * val_acc, 100 * test_acc)
                for trial, runs in by_trial.items()
                for rank, (val_acc, seed, test_acc, step) in enumerate(runs, start=1)
            ]
            assert [list(run.values())[:6] for run in found["runs"]] == [pytest.approx(row) for row in rows]
            assert {(r["trial_seed"], r["hparams_seed"]) for r in found["not_ranked"]} == set(unranked)
            assert len(found["not_ranked"]) == len(unranked)
            expected_cell = cell([runs[0][2] for runs in by_trial.values()])
            if expected_cell is None:
                assert (found["mean"], found["error"], found["trials"]) == (None, None, 0)
            else:
                assert (found["mean"], found["error"]) == pytest.approx(expected_cell, abs=1e-9)
                assert found["trials"] == len(by_trial)
            best = best_runs[method]
            expected_best = best[
                (best["dataset"] == dataset) & (best["algorithm"] == algorithm) & (best["test_env"] == env)
            ]
            assert found_cell.best["folder"].tolist() == expected_best["folder"].tolist()


GOLDEN = """\
ERM on ColoredDigits, test environment +90% (number 0), model selection: training-domain

Trial 0: 2 runs, ranked by val_acc
  rank    hparams_seed    step    val_acc    test_acc    done        lr             folder
------  --------------  ------  ---------  ----------  ------  --------  -----------------
  -> 1               1     100      70.00       40.00     yes  0.000123  {dataset}-ERM-0-0-1
     2               0       0      65.00       30.00     yes     0.001  {dataset}-ERM-0-0-0

Trial 1: 2 runs, ranked by val_acc
  rank    hparams_seed    step    val_acc    test_acc    done      lr             folder
------  --------------  ------  ---------  ----------  ------  ------  -----------------
  -> 1               1       0      90.00       20.00      no  0.0005  {dataset}-ERM-0-1-1
     2               0       0      90.00       90.00     yes   0.001  {dataset}-ERM-0-1-0

Identical in all 4 runs: batch_size 64

The cell is 30.0 +/- 7.1: mean and standard error of test_acc over 2 trials, for the runs marked ->. \
1 of these runs is not finished.
"""


def small_sweep(folder: Path) -> Path:
    """Two trials with two draws each; in the second trial they tie, and the best run is not done."""
    records = [
        make_record(hparams_seed=0, in_acc=(0.3, 0, 0), out_acc=(1, 0.6, 0.7)),
        make_record(hparams_seed=1, in_acc=(0.8, 0, 0), out_acc=(1, 0.5, 0.7)),
        make_record(hparams_seed=1, step=100, in_acc=(0.4, 0, 0), out_acc=(0, 0.7, 0.7)),
        make_record(trial_seed=1, hparams_seed=0, in_acc=(0.9, 0, 0), out_acc=(1, 0.9, 0.9)),
        make_record(trial_seed=1, hparams_seed=1, in_acc=(0.2, 0, 0), out_acc=(0, 0.9, 0.9)),
    ]
    for record, lr in zip(records, (0.001, 0.000123, 0.000123, 0.001, 0.0005), strict=True):
        record["hparams"]["lr"] = lr
    write_sweep(folder, records)
    (folder / "ColoredDigits-ERM-0-1-1" / "done").unlink()
    return folder


def test_text(tmp_path: Path, capsys):
    text = run_list(capsys, small_sweep(tmp_path)).replace("ColoredDigits-", "{dataset}-")
    assert split_lines(text) == split_lines(GOLDEN)


def split_lines(text: str) -> list[list[str]]:
    """Return the words of each line, without the rules of tables."""
    return [line.split() for line in text.splitlines() if not line.startswith("---")]


def test_csv_has_all_hparams_and_full_precision(tmp_path: Path, capsys):
    rows = list(csv.DictReader(io.StringIO(run_list(capsys, small_sweep(tmp_path), *CELL, "--format", "csv"))))
    assert list(rows[0]) == [
        *["trial_seed", "rank", "hparams_seed", "step", "val_acc", "test_acc", "done", "folder"],
        *["batch_size", "lr"],
    ]
    assert [(r["trial_seed"], r["rank"], r["hparams_seed"]) for r in rows] == [
        *[("0", "1", "1"), ("0", "2", "0")],
        *[("1", "1", "1"), ("1", "2", "0")],
    ]
    assert [r["lr"] for r in rows] == ["0.000123", "0.001", "0.0005", "0.001"]
    assert {r["batch_size"] for r in rows} == {"64"}
    assert [r["done"] for r in rows] == ["True", "True", "False", "True"]
    assert float(rows[1]["val_acc"]) == pytest.approx(65)


def test_n_applies_to_each_trial(tmp_path: Path, capsys):
    small_sweep(tmp_path)
    full = json.loads(run_list(capsys, tmp_path, *CELL, "--format", "json", "--n", "0"))
    first = json.loads(run_list(capsys, tmp_path, *CELL, "--format", "json", "--n", "1"))
    assert [len(full["runs"]), len(first["runs"])] == [4, 2]
    assert first == full | {"runs": [run for run in full["runs"] if run["rank"] == 1]}
    assert first["runs"][0]["hparams"] == {"batch_size": 64, "lr": 0.000123}
    text = run_list(capsys, tmp_path, *CELL, "--n", "1")
    assert text.count("2 runs, ranked by val_acc; showing 1\n") == 2
    # A hyperparameter that is identical only in the listed runs still has a column, and the cell is unchanged.
    assert split_lines(text)[-1] == split_lines(GOLDEN)[-1]
    assert "lr" in split_lines(text)[3]


def test_environment_by_number_or_name(tmp_path: Path, capsys):
    records = [make_record(test_envs=(e,), in_acc=(0.1, 0.2, 0.3)) for e in range(3)]
    records += [make_record("RotatedMNIST", test_envs=(e,), in_acc=(0.5,) * 6, out_acc=(0.5,) * 6) for e in range(6)]
    write_sweep(tmp_path, records)

    def environment(dataset: str, *words: str) -> str:
        line = run_list(capsys, tmp_path, "--dataset", dataset, "--algorithm", "ERM", *words).splitlines()[0]
        return line[line.index("environment ") + 12 : line.index(",", line.index("environment"))]

    for words in (["--test_env", "2"], ["--test_env", "-90%"], ["--test_env=-90%"]):
        assert environment("ColoredDigits", *words) == "-90% (number 2)"
    assert environment("ColoredDigits", "--test_env", "+80%") == "+80% (number 1)"
    # RotatedMNIST's environments are called 0, 15, 30, 45, 60, 75: a number comes before a name.
    assert environment("RotatedMNIST", "--test_env", "5") == "75 (number 5)"
    assert environment("RotatedMNIST", "--test_env", "15") == "15 (number 1)"
    user_records = [make_record("Mine", test_envs=(e,)) | {"environments": ["2", "1", "name"]} for e in range(3)]
    write_sweep(tmp_path, user_records)
    assert environment("Mine", "--test_env", "2") == "name (number 2)"
    assert environment("Mine", "--test_env", "name") == "name (number 2)"


def test_domainbeds_method_names(tmp_path: Path, capsys):
    write_sweep(tmp_path, [make_record(test_envs=e, in_acc=(0.4, 0.5, 0.6)) for e in ((0,), (0, 1), (0, 2))])
    for name, class_name in (
        ("training-domain", "IIDAccuracySelectionMethod"),
        ("leave-one-domain-out", "LeaveOneOutSelectionMethod"),
        ("test-domain", "OracleSelectionMethod"),
    ):
        text = run_list(capsys, tmp_path, *CELL, "--selection", class_name)
        assert text == run_list(capsys, tmp_path, *CELL, "--selection", name)
        assert f"model selection: {name}\n" in text
        assert "The cell is 40.0 (n = 1): test_acc of the run marked ->, in 1 trial." in text


def test_unranked_runs_are_reported(tmp_path: Path, capsys):
    """Trial 0 has draws 0 (fine), 1 (no accuracy on a training environment) and 2; trial 1 only draw 1."""
    no_accuracy = make_record(hparams_seed=1)
    del no_accuracy["env1_out_acc"]
    no_accuracy_either = make_record(trial_seed=1, hparams_seed=1)
    del no_accuracy_either["env2_out_acc"]
    write_sweep(tmp_path, [make_record(), no_accuracy, make_record(hparams_seed=2), no_accuracy_either])
    text = run_list(capsys, tmp_path)
    notes = [
        "Not ranked: 2 runs (trial 1: hparams_seed 0, 2) without records",
        "Not ranked: 2 runs (trial 0: hparams_seed 1; trial 1: hparams_seed 1) from which training-domain "
        "selects no record: every record lacks an accuracy that the method requires",
    ]
    assert text.split("\n\n")[-3:-1] == notes
    assert "Trial 0: 2 runs, ranked by val_acc\n" in text
    assert "Trial 1: no run to select\n" in text
    assert "test_acc of the run marked ->, in 1 of 2 trials." in text
    main(["--input_dir", str(tmp_path), *CELL, "--format", "csv"])
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"warning: {line}" for line in notes]
    assert len(out.splitlines()) == 1 + 2

    text = run_list(capsys, tmp_path, *CELL, "--selection", "leave-one-domain-out")
    assert "from which leave-one-domain-out selects no record: it requires runs with each pair of test" in text
    assert text.endswith("The cell is X: no run to select.\n")
    main(["--input_dir", str(tmp_path), *CELL, "--selection", "leave-one-domain-out", "--format", "csv"])
    assert len(capsys.readouterr().out.splitlines()) == 1


FOREIGN = [
    {"lr": 0.1, "rank": 4, "step": 7, "folder": "x", "": 1},
    {"lr": 0.1, "betas": [0.9, 0.99], "nested": {"a": [1]}, "backbone": None},
    {"lr": "0.1", "betas": [0.9, 0.999], "flag": True, "deep": float("nan")},
    {},
    None,
    ["lr", 0.1],
    "lr",
    "missing",
]


@pytest.mark.parametrize("format", ["text", "csv", "json"])
def test_foreign_hyperparameters(tmp_path: Path, capsys, format: str):
    """Hyperparameters with unusual names and types, or none at all, are printed unchanged."""
    records = []
    for seed, hparams in enumerate(FOREIGN):
        record = make_record(hparams_seed=seed, out_acc=(0, seed / 16, seed / 16))
        record["hparams"] = hparams
        if hparams == "missing":
            del record["hparams"]
        records.append(record)
    out = run_list(capsys, write_sweep(tmp_path, records), *CELL, "--format", format)
    if format == "text":
        rows = [line.split() for line in out.splitlines() if "ColoredDigits-ERM" in line]
        assert len(rows) == len(FOREIGN)
        assert {"hparams.rank", "hparams.step", "hparams.folder", "betas", "backbone"} <= set(out.split())
        assert "Identical in all 8 runs: deep -\n" in out  # NaN counts as missing
    elif format == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [r["rank"] for r in rows] == [str(i + 1) for i in range(8)]
        assert [r["lr"] for r in rows] == [*[""] * 5, "0.1", "0.1", "0.1"]
        assert (rows[-1]["hparams.rank"], rows[-1]["hparams.step"], rows[-1]["step"]) == ("4", "7", "0")
    else:
        hparams = [run["hparams"] for run in json.loads(out)["runs"]]
        assert hparams[:5] == [{}] * 5
        assert hparams[5] == {"lr": "0.1", "betas": [0.9, 0.999], "flag": True}
        assert hparams[6] == FOREIGN[1]
        assert hparams[7] == {"lr": 0.1, "hparams.rank": 4, "hparams.step": 7, "hparams.folder": "x", "": 1}


def test_similar_values_differ(tmp_path: Path, capsys):
    """Values that differ only in type, or in digits that are not shown."""
    records = [make_record(hparams_seed=h) for h in range(2)]
    records[0]["hparams"] |= {"layers": 1, "lr": 0.001}
    records[1]["hparams"] |= {"layers": True, "lr": 0.0010000001}
    lines = run_list(capsys, write_sweep(tmp_path, records)).splitlines()
    assert lines[3].split()[-3:] == ["layers", "lr", "folder"]
    assert [line.split()[-3:-1] for line in lines if "ColoredDigits-ERM" in line] == [["true", "0.001"], ["1", "0.001"]]


def test_problems_are_printed_to_stderr(tmp_path: Path, capsys):
    write_sweep(tmp_path, [make_record()])
    damaged = next(tmp_path.glob("*/results.jsonl"))
    with open(damaged, "a") as file:
        file.write('{"step": 100, "env0_in')
    main(["--input_dir", str(tmp_path), *CELL, "--format", "json"])
    out, err = capsys.readouterr()
    assert err.startswith(f"warning: {damaged}")
    assert "not a complete record; skipped" in err
    assert len(json.loads(out)["runs"]) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--dataset", "ColoredDigit"], "--dataset ColoredDigit: .* has no such runs; did you mean ColoredDigits?"),
        (["--dataset", "PACS"], "--dataset PACS: .* has no such runs; choose from ColoredDigits, Elsewhere$"),
        (["--algorithm", "EMR"], "has no such runs on ColoredDigits; did you mean ERM?"),
        (["--algorithm", "Fishr"], "--algorithm Fishr: .* has no such runs on ColoredDigits; choose from ERM, Mixup$"),
        (["--test_env", "3"], r"--test_env 3: ERM has no runs on ColoredDigits .*; choose from \+90%, \+80%, -90%$"),
        (["--test_env", "90%"], r"--test_env 90%: .*; did you mean .*90%"),
        (["--test_env", "-1"], "--test_env -1: ERM has no runs"),
        (["--algorithm", "Mixup", "--test_env", "2"], r"--test_env 2: Mixup has no runs .*; choose from \+90%$"),
        (["--selection", "oracle"], "unknown selection method 'oracle'; choose from training-domain, leave-one-dom"),
        (["--n", "-1"], "--n must be at least 0, not -1"),
        (["--n", "few"], "argument --n: invalid int value: 'few'"),
        (["--format", "tsv"], "argument --format: invalid choice: 'tsv'"),
        (["--input_dir", "no/such"], "--input_dir 'no/such' is not a folder"),
        (["--test_envs", "0"], "unknown argument --test_envs; did you mean --test_env"),
        (["--test_env"], "argument --test_env: expected one argument"),
    ],
)
def test_usage_errors(tmp_path: Path, changed: list[str], message: str):
    records = [make_record(test_envs=(e,)) for e in range(3)]
    records += [make_record(algorithm="Mixup", test_envs=e) for e in ((0,), (1, 2))]
    write_sweep(tmp_path, [*records, make_record("Elsewhere", "Fishr")])
    with pytest.raises(UsageError, match=message):
        main(["--input_dir", str(tmp_path), *CELL, *changed])


def test_as_a_process(run_module, tmp_path: Path):
    small_sweep(tmp_path / "sweep")
    args = ["--input_dir", tmp_path / "sweep", "--dataset", "ColoredDigits", "--algorithm", "ERM"]
    finished = run_module("list_top_hparams", *args, "--test_env", "+90%")
    assert finished.returncode == 0, finished.stderr
    assert split_lines(finished.stdout)[-1] == split_lines(GOLDEN)[-1]
    finished = run_module("list_top_hparams", *args, "--test_env", "-80%")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: --test_env -80%: ERM has no runs on ColoredDigits")
    assert finished.stderr.count("\n") == 1
