import json
import os
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.records import append_record, is_done, load_records, mark_done, read_job
from tests.conftest import make_record, write_sweep


def test_written_and_read_again(tmp_path: Path):
    records = [make_record(step=s) for s in (0, 100)]
    for record in records:
        append_record(tmp_path, record)
    assert read_job(tmp_path) == (records, [])
    assert not is_done(tmp_path)
    mark_done(tmp_path)
    assert is_done(tmp_path)
    assert (tmp_path / "done").read_text() == "done"


def test_a_torn_line_is_told_and_left_out(tmp_path: Path):
    write_sweep(tmp_path, [make_record(step=s) for s in (0, 100)])
    (results,) = tmp_path.glob("*/results.jsonl")
    whole = results.read_text()
    for cut in (1, 5, len(whole) // 4):
        results.write_text(whole[:-cut] if cut > 1 else whole + "\x00\xff")
        frame, problems = load_records(str(tmp_path))
        assert frame["step"].tolist() == ([0, 100] if cut == 1 else [0])
        assert problems == [f"{results}:{3 if cut == 1 else 2}: not a whole record; left out"]


def test_of_a_step_recorded_twice_the_later_counts(tmp_path: Path):
    """A job that was requeued without its records being cut off (DomainBed's collector counts both)."""
    write_sweep(tmp_path, [make_record(step=0), make_record(step=0, in_acc=(0.9, 0.9, 0.9))])
    frame, problems = load_records(str(tmp_path))
    assert frame["env0_in_acc"].tolist() == [0.9]
    assert len(problems) == 1
    assert "1 steps recorded more than once" in problems[0]


def test_of_a_run_in_two_folders_the_last_written_counts(tmp_path: Path):
    write_sweep(tmp_path, [make_record(in_acc=(0.1, 0.1, 0.1)), make_record(hparams_seed=1)])
    (first,) = tmp_path.glob("*-0-0-0")
    second = tmp_path / "another"
    second.mkdir()
    (second / "results.jsonl").write_text(json.dumps(make_record(in_acc=(0.2, 0.2, 0.2))) + "\n")
    os.utime(first / "results.jsonl", (1, 1))
    frame, problems = load_records(str(tmp_path))
    assert sorted(frame["env0_in_acc"]) == [0.2, 0.5]
    assert len(problems) == 1
    assert problems[0].startswith(f"{first.name}: the same run (dataset ColoredDigits, algorithm ERM")
    os.utime(second / "results.jsonl", (0, 0))
    assert sorted(load_records(str(tmp_path))[0]["env0_in_acc"]) == [0.1, 0.5]


def test_foreign_things_in_the_folder_are_left_alone(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name, text in [("list", "[1, 2]\n"), ("other", '{"step": 3, "x": 1}\n'), ("nothing", "")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text(text)
    frame, problems = load_records(str(tmp_path))
    assert len(frame) == 1
    assert len(problems) == 2
    assert "list/results.jsonl:1: not a whole record" in problems[0]
    assert "other/results.jsonl: step 3 is no record of ours" in problems[1]


def test_no_folder_and_no_records(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere' is not a folder"):
        load_records(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="holds no records"):
        load_records(str(tmp_path))
