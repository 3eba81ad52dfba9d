import json
import os
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.records import append_record, cut_records, is_done, load_records, mark_done, read_job, records_length
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


def test_of_a_run_in_two_folders_the_finished_then_the_last_written_counts(tmp_path: Path):
    write_sweep(tmp_path, [make_record(in_acc=(0.1, 0.1, 0.1)), make_record(hparams_seed=1)])
    (first,) = tmp_path.glob("*-0-0-0")
    second = tmp_path / "another"
    second.mkdir()
    (second / "results.jsonl").write_text(json.dumps(make_record(in_acc=(0.2, 0.2, 0.2))) + "\n")

    def counts() -> float:
        frame, problems = load_records(str(tmp_path))
        assert len(problems) == 1
        assert problems[0].startswith("1 folders hold a run that another folder holds too (")
        return frame.loc[frame["hparams_seed"] == 0, "env0_in_acc"].item()

    os.utime(first / "results.jsonl", (1, 1))
    assert counts() == 0.1, "the later one is not done"
    (second / "done").write_text("done")
    assert counts() == 0.2
    os.utime(second / "results.jsonl", (0, 0))
    assert counts() == 0.1


def test_runs_that_do_not_compare_are_told(tmp_path: Path):
    records = [make_record(), make_record(hparams_seed=1), make_record("PACS", hparams_seed=1)]
    records[1]["args"]["steps"] = 7
    _, problems = load_records(str(write_sweep(tmp_path, records)))
    expected = "ColoredDigits: its runs were made with different arguments (steps 7, hparams None,"
    assert len(problems) == 2
    assert problems[0].endswith("the job is done, but its last record is missing")
    assert problems[1].startswith(expected)


def test_a_done_job_without_its_last_record_is_told(tmp_path: Path):
    records = [make_record(step=s) for s in (0, 5)]
    for record in records:
        record["args"]["steps"] = 11
    write_sweep(tmp_path, records, done=False)
    assert load_records(str(tmp_path))[1] == []
    write_sweep(tmp_path, [], done=True)
    next(tmp_path.iterdir()).joinpath("done").write_text("done")
    (problem,) = load_records(str(tmp_path))[1]
    assert problem.endswith("results.jsonl: the job is done, but its last record is missing")


def test_foreign_things_in_the_folder_are_left_alone(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "results.jsonl").write_text("")
    (tmp_path / "folder" / "results.jsonl").mkdir(parents=True)
    frame, problems = load_records(str(tmp_path))
    assert len(frame) == 1
    assert problems == [f"{tmp_path}/folder/results.jsonl: Is a directory; left out"]


BROKEN = {
    "a list": [1, 2],
    "no step": {"x": 1},
    "no args": {"step": 3},
    "an infinite step": {"step": float("inf")},
    "another form": {"step": 3, "args": [1]},
    "an environment that is not there": make_record() | {"args": make_record(test_envs=(7,))["args"]},
    "an environment without its out split": {k: v for k, v in make_record().items() if k != "env0_out_acc"},
    "no environment": make_record() | {"args": make_record(test_envs=())["args"]},
    "an accuracy that is a word": make_record() | {"env1_out_acc": "abc"},
    "an accuracy that is null": make_record() | {"env1_out_acc": None},
    "a dataset that is null": make_record(dataset=None),
    "a dataset that is a list": make_record(dataset=["PACS"]),
    "a trial that is a word": make_record(trial_seed="first"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_record_is_told_and_harms_no_other(tmp_path: Path, what: str):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "broken").mkdir()
    results = tmp_path / "broken" / "results.jsonl"
    results.write_text(json.dumps(BROKEN[what]) + "\n")
    frame, problems = load_records(str(tmp_path))
    assert frame["folder"].unique().tolist() == ["ColoredDigits-ERM-0-0-0"]
    assert len(problems) == 1
    assert problems[0].startswith(str(results))
    assert "left out" in problems[0]
    (tmp_path / "ColoredDigits-ERM-0-0-0" / "results.jsonl").unlink()
    with pytest.raises(UsageError, match=r"holds no records in folder/results\.jsonl; .*left out"):
        load_records(str(tmp_path))


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sweep(tmp_path, [make_record(), make_record(hparams_seed=1)])
    read_text = Path.read_text

    def refuse(path: Path, *args, **kwargs) -> str:
        if "0-0-1" in str(path):
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    frame, problems = load_records(str(tmp_path))
    assert len(frame) == 1
    assert len(problems) == 1
    assert problems[0].endswith("results.jsonl: Permission denied; left out")


def test_no_folder_and_no_records(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere' is not a folder"):
        load_records(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"holds no records in folder/results\.jsonl$"):
        load_records(str(tmp_path))


def test_clean_and_published_evaluation_are_not_mixed_silently(tmp_path: Path):
    """Nor do replaced images go untold; records from before there was either count as published."""
    records = [make_record(hparams_seed=seed) for seed in range(3)]
    records[1]["args"]["clean_evaluation"] = False
    records[1] |= {"bad_images": 0, "environments": ["+90%", "+80%", "-90%"]}
    assert load_records(str(write_sweep(tmp_path / "fine", records)))[1] == []
    records[2]["args"]["clean_evaluation"] = True
    records[2]["bad_images"] = 400
    problems = load_records(str(write_sweep(tmp_path / "mixed", records)))[1]
    assert len(problems) == 2
    assert "different arguments" in problems[0]
    assert "clean_evaluation" in problems[0]
    assert "1 jobs met broken images" in problems[1]


def test_trees_of_ones_own_are_not_mixed_silently(tmp_path: Path):
    records = [make_record(dataset="Folder", hparams_seed=seed) | {"environments": [seed, "b", "c"]} for seed in (0, 1)]
    (problem,) = load_records(str(write_sweep(tmp_path, records)))[1]
    assert problem == "Folder: its runs had different environments (0 b c; 1 b c)"


def test_records_are_cut_to_a_length(tmp_path: Path):
    lengths = [0]
    for step in (0, 5, 10):
        append_record(tmp_path, make_record(step=step))
        lengths.append(records_length(tmp_path))
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write("torn")
    for n in (3, 3, 2, 1):
        cut_records(tmp_path, lengths[n])
        assert records_length(tmp_path) == lengths[n]
        assert [r["step"] for r in read_job(tmp_path)[0]] == [0, 5, 10][:n]
    cut_records(tmp_path, 10**6)  # what is not there does not come by cutting
    assert records_length(tmp_path) == lengths[1]
    for _ in range(2):
        cut_records(tmp_path, 0)
        assert list(tmp_path.iterdir()) == []
        assert records_length(tmp_path) == 0


def test_a_record_and_the_end_are_on_disk_before_more_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    append_record(tmp_path, {"step": 0})
    append_record(tmp_path, {"step": 5})
    cut_records(tmp_path, 12)
    mark_done(tmp_path)
    assert synced == [12, 24, 12, 4]
