"""The command: its files, the runs that it skips, and its errors."""

import itertools
import json
from pathlib import Path

import pytest
from numpy.random import RandomState

from domainbed.replay import fidelity
from tests.conftest import make_record, write_sweep


def make_records(
    *algorithms: str, envs: int = 3, trials: int = 2, draws: int = 2, dataset: str = "ColoredDigits"
) -> list[dict]:
    """Return two random records of each run."""
    rng = RandomState(0)
    return [
        make_record(dataset, name, (env,), trial, draw, step, *map(tuple, rng.rand(2, envs)))
        for name, env, trial, draw, step in itertools.product(
            algorithms, range(envs), range(trials), range(draws), (0, 100)
        )
    ]


def test_command_writes_all_formats_and_rejects_a_missing_baseline(tmp_path: Path, run_command):
    sweep, output = write_sweep(tmp_path / "sweep", make_records("ERM", "Fishr")), tmp_path / "output"
    finished = run_command("replay", "--input_dir", sweep, "--resamples", 2, "--output_dir", output)
    assert finished.returncode == 0, finished.stderr
    assert "warning" not in finished.stderr
    assert "24 finished runs, 2,424 updates and 48 evaluations" in finished.stdout
    assert {path.name for path in output.iterdir()} == {f"replay.{e}" for e in ("txt", "csv", "json", "png", "pdf")}
    assert (output / "replay.txt").read_text() == finished.stdout
    content = json.loads((output / "replay.json").read_text())
    assert (content["differences"], content["significant_differences"]) == (1, 0)
    assert [row["missing"] for row in content["policies"]] == [0] * len(content["policies"])
    assert finished.stdout.splitlines()[-1].startswith(
        "Significant differences from ERM in the complete sweep: 0 of 1;"
    )
    rejected = run_command("replay", "--input_dir", sweep, "--baseline", "IRM")
    assert (rejected.returncode, rejected.stderr.count("\n")) == (2, 1)
    assert "--baseline IRM: this sweep has no such runs; did you mean ERM?" in rejected.stderr
    rejected = run_command("replay", "--input_dir", sweep, "--algorithms", "Fishr")
    assert (rejected.returncode, rejected.stderr.count("\n")) == (2, 1)
    assert "--baseline ERM: not among --algorithms; add it there" in rejected.stderr


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


def test_output_folder_is_checked_first(tmp_path: Path, run_command, monkeypatch: pytest.MonkeyPatch):
    sweep, output = write_sweep(tmp_path / "sweep", make_records("ERM", "Fishr")), tmp_path / "file"
    output.write_text("")
    monkeypatch.setattr(fidelity, "find_answers", lambda *args: pytest.fail("replayed"))
    rejected = run_command("replay", "--input_dir", sweep, "--output_dir", output)
    assert (rejected.returncode, rejected.stdout) == (2, "")
    assert f"--output_dir {output}: File exists" in rejected.stderr


def as_swad(record: dict) -> dict:
    return {
        **record,
        "args": {**record["args"], "averaging": "swad", "hparams_seed": record["args"]["hparams_seed"] + 9},
    }


def test_skipped_runs_are_counted(tmp_path: Path, run_command):
    """Pruned and unfinished runs, ensembles, and runs with SWAD or with several test environments."""
    sweep = write_sweep(tmp_path, make_records("ERM", "Fishr"))
    expected = run_command("replay", "--input_dir", sweep, "--resamples", 2)
    assert expected.returncode == 0, expected.stderr
    write_sweep(tmp_path, [as_swad(record) for record in make_records("ERM", trials=1)])
    for number, record in enumerate(make_records("ERM", draws=1)[1::2]):
        record["args"] |= {"ensemble": "DiWA-uniform", "hparams_seed": 50 + number}
        write_sweep(tmp_path, [record])
    write_sweep(tmp_path, [make_record("ColoredDigits", "Fishr", (0, 1))])
    write_sweep(tmp_path, [make_record("ColoredDigits", "Fishr", hparams_seed=7)], done=False)
    printed = run_command("replay", "--input_dir", sweep, "--resamples", 2)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == expected.stdout
    assert [line for line in printed.stderr.splitlines() if "skipping" in line] == [
        "warning: skipping 1 unfinished run (only finished runs are replayed)",
        "warning: skipping 6 ensembles (only trained runs are replayed)",
        "warning: skipping 6 runs with SWAD (only the last record counts)",
        "warning: skipping 1 run with several test environments (selection requires a single one)",
    ]
    for name in ("ERM+SWAD", "ERM+DiWA-uniform"):
        rejected = run_command("replay", "--input_dir", sweep, "--algorithms", "Fishr", name, "--baseline", name)
        assert rejected.returncode == 2
        assert f"--baseline {name}: none of its runs can be replayed; choose from Fishr" in rejected.stderr


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([as_swad(record) for record in make_records("ERM")], "only 12 runs with SWAD (only the last record counts)"),
        (make_records("ERM", envs=1, dataset="Mine"), "only 4 runs on a single environment (none is left to train on)"),
        ([make_record("ColoredDigits", "ERM", (0, 1))], "only 1 run with several test environments"),
    ],
)
def test_reasons_why_nothing_can_be_replayed(tmp_path: Path, run_command, records: list[dict], reason: str):
    rejected = run_command("replay", "--input_dir", write_sweep(tmp_path, records))
    assert rejected.returncode == 2
    assert f"has no runs to replay: {reason}" in rejected.stderr


def test_fewer_evaluations_are_omitted_with_a_note(tmp_path: Path, run_command):
    records = make_records("ERM", "Fishr")
    for record in records:
        record["args"]["eval"] = "selection"
    del records[-2]["env2_in_acc"]
    printed = run_command("replay", "--input_dir", write_sweep(tmp_path, records), "--resamples", 2)
    assert printed.returncode == 0, printed.stderr
    assert "24 finished runs, 2,424 updates and 48 evaluations" in printed.stdout
    assert "of 2 evaluations" not in printed.stdout
    assert "Fewer evaluations are not replayed: some records lack the test accuracy" in printed.stdout
