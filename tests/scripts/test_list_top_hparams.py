"""Why a cell is what it is: every ranking and every cell against the slow reference, and what is printed."""

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
from domainbed.reporting.top_hparams import as_json
from domainbed.scripts.cell import cell_of
from domainbed.scripts.list_top_hparams import main
from tests.conftest import make_record, write_sweep
from tests.reference import METHODS, cell, runs_of
from tests.test_model_selection import N_ENVIRONMENTS, sweeps

CELL = ["--dataset", "ColoredDigits", "--algorithm", "ERM", "--test_env", "0"]


def listed(capsys: pytest.CaptureFixture, folder: Path, *args: str) -> str:
    main(["--input_dir", str(folder), *(args or CELL)])
    return capsys.readouterr().out


@settings(max_examples=10, deadline=None)
@given(records=sweeps())
def test_every_ranking_and_every_cell(records: list[dict]):
    if not records:
        return
    with tempfile.TemporaryDirectory() as folder:
        sweep = load_sweep(str(write_sweep(Path(folder), records)))
    best_of = {method: best_hparams(SELECTION_METHODS[method](sweep.records)) for method in METHODS}
    for dataset, algorithm in {(r["args"]["dataset"], r["args"]["algorithm"]) for r in records}:
        n = N_ENVIRONMENTS[dataset]
        # Which runs there should be is told by those that there are.
        of_dataset = [r["args"] for r in records if r["args"]["dataset"] == dataset]
        trials, seeds = {a["trial_seed"] for a in of_dataset}, {a["hparams_seed"] for a in of_dataset}
        for method, env in itertools.product(METHODS, range(n)):
            if not runs_of(records, dataset=dataset, algorithm=algorithm, test_envs=[env]):
                continue
            found_cell = cell_of(sweep, dataset, algorithm, str(env), method)
            found = json.loads(as_json(found_cell, 100))
            expected: dict[int, list] = {}
            unranked = []
            for trial, seed in itertools.product(trials, seeds):
                run = {"dataset": dataset, "algorithm": algorithm, "trial_seed": trial, "hparams_seed": seed}
                chosen = METHODS[method](records, env, n, **run)
                if chosen is None:
                    unranked.append((trial, seed))
                else:
                    val_acc, test_acc, step = chosen
                    expected.setdefault(trial, []).append((val_acc, seed, test_acc, step))
            of_trials = {t: sorted(runs, reverse=True) for t, runs in sorted(expected.items())}
            rows = [
                (trial, rank, seed, step, 100 * val_acc, 100 * test_acc)
                for trial, runs in of_trials.items()
                for rank, (val_acc, seed, test_acc, step) in enumerate(runs, start=1)
            ]
            assert [list(run.values())[:6] for run in found["runs"]] == [pytest.approx(row) for row in rows]
            assert {(r["trial_seed"], r["hparams_seed"]) for r in found["not_ranked"]} == set(unranked)
            assert len(found["not_ranked"]) == len(unranked)
            expected_cell = cell([runs[0][2] for runs in of_trials.values()])
            if expected_cell is None:
                assert (found["mean"], found["error"], found["trials"]) == (None, None, 0)
            else:
                assert (found["mean"], found["error"]) == pytest.approx(expected_cell, abs=1e-9)
                assert found["trials"] == len(of_trials)
            best = best_of[method]
            of_cell = best[(best["dataset"] == dataset) & (best["algorithm"] == algorithm) & (best["test_env"] == env)]
            assert found_cell.best["folder"].tolist() == of_cell["folder"].tolist()


GOLDEN = """\
ERM on ColoredDigits, test environment +90% (number 0), model selection: training-domain

Trial 0: the table's cell takes the first of 2 runs
  rank    hparams_seed    step    val_acc    test_acc    done        lr             folder
------  --------------  ------  ---------  ----------  ------  --------  -----------------
  -> 1               1     100      70.00       40.00     yes  0.000123  {dataset}-ERM-0-0-1
     2               0       0      65.00       30.00     yes     0.001  {dataset}-ERM-0-0-0

Trial 1: the table's cell takes the first of 2 runs
  rank    hparams_seed    step    val_acc    test_acc    done      lr             folder
------  --------------  ------  ---------  ----------  ------  ------  -----------------
  -> 1               1       0      90.00       20.00      no  0.0005  {dataset}-ERM-0-1-1
     2               0       0      90.00       90.00     yes   0.001  {dataset}-ERM-0-1-0

The same in all 4 runs: batch_size 64

The table's cell is 30.0 +/- 7.1: mean and standard error, over 2 trials, of the test_acc of the runs marked ->. \
1 of them is not done; what is recorded so far counts.
"""


def small_sweep(folder: Path) -> Path:
    """Two trials of two draws; in the second trial they are equal, and the winner is not done."""
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
    text = listed(capsys, small_sweep(tmp_path)).replace("ColoredDigits-", "{dataset}-")
    assert squeezed(text) == squeezed(GOLDEN)


def squeezed(text: str) -> list[list[str]]:
    """The words of each line, without the rules of tables."""
    return [line.split() for line in text.splitlines() if not line.startswith("---")]


def test_csv_has_everything_unrounded(tmp_path: Path, capsys):
    rows = list(csv.DictReader(io.StringIO(listed(capsys, small_sweep(tmp_path), *CELL, "--format", "csv"))))
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


def test_n_is_of_each_trial(tmp_path: Path, capsys):
    small_sweep(tmp_path)
    whole = json.loads(listed(capsys, tmp_path, *CELL, "--format", "json", "--n", "0"))
    first = json.loads(listed(capsys, tmp_path, *CELL, "--format", "json", "--n", "1"))
    assert [len(whole["runs"]), len(first["runs"])] == [4, 2]
    assert first == whole | {"runs": [run for run in whole["runs"] if run["rank"] == 1]}
    assert first["runs"][0]["hparams"] == {"batch_size": 64, "lr": 0.000123}
    text = listed(capsys, tmp_path, *CELL, "--n", "1")
    assert text.count("the first of 2 runs, 1 of them not listed\n") == 2
    # What is the same in the listed runs alone is a column all the same, and the cell does not change.
    assert squeezed(text)[-1] == squeezed(GOLDEN)[-1]
    assert "lr" in squeezed(text)[3]


def test_an_environment_by_number_or_name(tmp_path: Path, capsys):
    records = [make_record(test_envs=(e,), in_acc=(0.1, 0.2, 0.3)) for e in range(3)]
    records += [make_record("RotatedMNIST", test_envs=(e,), in_acc=(0.5,) * 6, out_acc=(0.5,) * 6) for e in range(6)]
    write_sweep(tmp_path, records)

    def environment(dataset: str, *words: str) -> str:
        line = listed(capsys, tmp_path, "--dataset", dataset, "--algorithm", "ERM", *words).splitlines()[0]
        return line[line.index("environment ") + 12 : line.index(",", line.index("environment"))]

    for words in (["--test_env", "2"], ["--test_env", "-90%"], ["--test_env=-90%"]):
        assert environment("ColoredDigits", *words) == "-90% (number 2)"
    assert environment("ColoredDigits", "--test_env", "+80%") == "+80% (number 1)"
    # RotatedMNIST's environments are called 0, 15, 30, 45, 60, 75: a number comes before a name.
    assert environment("RotatedMNIST", "--test_env", "5") == "75 (number 5)"
    assert environment("RotatedMNIST", "--test_env", "15") == "15 (number 1)"
    of_mine = [make_record("Mine", test_envs=(e,)) | {"environments": ["2", "1", "name"]} for e in range(3)]
    write_sweep(tmp_path, of_mine)
    assert environment("Mine", "--test_env", "2") == "name (number 2)"
    assert environment("Mine", "--test_env", "name") == "name (number 2)"


def test_domainbeds_names_of_the_methods(tmp_path: Path, capsys):
    write_sweep(tmp_path, [make_record(test_envs=e, in_acc=(0.4, 0.5, 0.6)) for e in ((0,), (0, 1), (0, 2))])
    for ours, theirs in (
        ("training-domain", "IIDAccuracySelectionMethod"),
        ("leave-one-domain-out", "LeaveOneOutSelectionMethod"),
        ("test-domain", "OracleSelectionMethod"),
    ):
        text = listed(capsys, tmp_path, *CELL, "--selection", theirs)
        assert text == listed(capsys, tmp_path, *CELL, "--selection", ours)
        assert f"model selection: {ours}\n" in text
        assert "The table's cell is 40.0 +/- 0.0: mean and standard error, over 1 trial, of" in text


def test_runs_that_cannot_be_ranked_are_told(tmp_path: Path, capsys):
    """Trial 0 has draws 0 (fine), 1 (no accuracy on a training environment) and 2; trial 1 only draw 1."""
    no_accuracy = make_record(hparams_seed=1)
    del no_accuracy["env1_out_acc"]
    nor_here = make_record(trial_seed=1, hparams_seed=1)
    del nor_here["env2_out_acc"]
    write_sweep(tmp_path, [make_record(), no_accuracy, make_record(hparams_seed=2), nor_here])
    text = listed(capsys, tmp_path)
    told = [
        "Not ranked: 2 runs (trial 1: hparams_seed 0, 2) without records",
        "Not ranked: 2 runs (trial 0: hparams_seed 1; trial 1: hparams_seed 1) from which training-domain can't "
        "choose: every record of theirs lacks an accuracy that it needs",
    ]
    assert text.split("\n\n")[-3:-1] == told
    assert "Trial 0: the table's cell takes the first of 2 runs\n" in text
    assert "Trial 1: no run to choose from\n" in text
    assert "over 1 of 2 trials, of" in text
    main(["--input_dir", str(tmp_path), *CELL, "--format", "csv"])
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"warning: {line}" for line in told]
    assert len(out.splitlines()) == 1 + 2

    text = listed(capsys, tmp_path, *CELL, "--selection", "leave-one-domain-out")
    assert "from which leave-one-domain-out can't choose: it needs the runs with each pair of test" in text
    assert text.endswith("The table's cell is X: there is no run to choose from.\n")
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
    """Of other names and forms, or none at all: they are told as they are, and nothing is lost."""
    records = []
    for seed, hparams in enumerate(FOREIGN):
        record = make_record(hparams_seed=seed, out_acc=(0, seed / 16, seed / 16))
        record["hparams"] = hparams
        if hparams == "missing":
            del record["hparams"]
        records.append(record)
    out = listed(capsys, write_sweep(tmp_path, records), *CELL, "--format", format)
    if format == "text":
        rows = [line.split() for line in out.splitlines() if "ColoredDigits-ERM" in line]
        assert len(rows) == len(FOREIGN)
        assert {"hparams.rank", "hparams.step", "hparams.folder", "betas", "backbone"} <= set(out.split())
        assert "The same in all 8 runs: deep -\n" in out  # JSON has no NaN: it tells no more than nothing does
    elif format == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [r["rank"] for r in rows] == [str(i + 1) for i in range(8)]
        assert [r["lr"] for r in rows] == [*[""] * 5, "0.1", "0.1", "0.1"]
        assert (rows[-1]["hparams.rank"], rows[-1]["hparams.step"], rows[-1]["step"]) == ("4", "7", "0")
    else:
        told = [run["hparams"] for run in json.loads(out)["runs"]]
        assert told[:5] == [{}] * 5
        assert told[5] == {"lr": "0.1", "betas": [0.9, 0.999], "flag": True}
        assert told[6] == FOREIGN[1]
        assert told[7] == {"lr": 0.1, "hparams.rank": 4, "hparams.step": 7, "hparams.folder": "x", "": 1}


def test_values_that_differ_little_differ(tmp_path: Path, capsys):
    """In kind alone, or behind the digits that are shown."""
    records = [make_record(hparams_seed=h) for h in range(2)]
    records[0]["hparams"] |= {"layers": 1, "lr": 0.001}
    records[1]["hparams"] |= {"layers": True, "lr": 0.0010000001}
    lines = listed(capsys, write_sweep(tmp_path, records)).splitlines()
    assert lines[3].split()[-3:] == ["layers", "lr", "folder"]
    assert [line.split()[-3:-1] for line in lines if "ColoredDigits-ERM" in line] == [["true", "0.001"], ["1", "0.001"]]


def test_damage_is_told_on_stderr(tmp_path: Path, capsys):
    write_sweep(tmp_path, [make_record()])
    damaged = next(tmp_path.glob("*/results.jsonl"))
    with open(damaged, "a") as file:
        file.write('{"step": 100, "env0_in')
    main(["--input_dir", str(tmp_path), *CELL, "--format", "json"])
    out, err = capsys.readouterr()
    assert err.startswith(f"warning: {damaged}")
    assert "not a whole record; left out" in err
    assert len(json.loads(out)["runs"]) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--dataset", "ColoredDigit"], "--dataset ColoredDigit: .* has no such runs; did you mean ColoredDigits?"),
        (["--dataset", "PACS"], "--dataset PACS: .* has no such runs; choose from ColoredDigits, Elsewhere$"),
        (["--algorithm", "EMR"], "has no such runs on ColoredDigits; did you mean ERM?"),
        (["--algorithm", "Fishr"], "--algorithm Fishr: .* has no such runs on ColoredDigits; choose from ERM, Mixup$"),
        (["--test_env", "3"], r"--test_env 3: ERM has no records on ColoredDigits .*; choose from \+90%, \+80%, -90%$"),
        (["--test_env", "90%"], r"--test_env 90%: .*; did you mean .*90%"),
        (["--test_env", "-1"], "--test_env -1: ERM has no records"),
        (["--algorithm", "Mixup", "--test_env", "2"], r"--test_env 2: Mixup has no records .*; choose from \+90%$"),
        (["--selection", "oracle"], "unknown selection method 'oracle'; choose from training-domain, leave-one-dom"),
        (["--n", "-1"], "--n must be at least 0, not -1"),
        (["--n", "few"], "argument --n: invalid int value: 'few'"),
        (["--format", "tsv"], "argument --format: invalid choice: 'tsv'"),
        (["--input_dir", "no/such"], "--input_dir 'no/such' is not a folder"),
        (["--test_envs", "0"], "unknown argument --test_envs; did you mean --test_env"),
        (["--test_env"], "argument --test_env: expected one argument"),
    ],
)
def test_mistake(tmp_path: Path, changed: list[str], message: str):
    records = [make_record(test_envs=(e,)) for e in range(3)]
    records += [make_record(algorithm="Mixup", test_envs=e) for e in ((0,), (1, 2))]
    write_sweep(tmp_path, [*records, make_record("Elsewhere", "Fishr")])
    with pytest.raises(UsageError, match=message):
        main(["--input_dir", str(tmp_path), *CELL, *changed])


def test_in_a_process_of_its_own(run_module, tmp_path: Path):
    small_sweep(tmp_path / "sweep")
    where = ["--input_dir", tmp_path / "sweep", "--dataset", "ColoredDigits", "--algorithm", "ERM"]
    finished = run_module("list_top_hparams", *where, "--test_env", "+90%")
    assert finished.returncode == 0, finished.stderr
    assert squeezed(finished.stdout)[-1] == squeezed(GOLDEN)[-1]
    finished = run_module("list_top_hparams", *where, "--test_env", "-80%")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: --test_env -80%: ERM has no records on ColoredDigits")
    assert finished.stderr.count("\n") == 1
