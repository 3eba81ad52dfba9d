"""A sweep's folder, whatever lies in it, as it is read."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest

from domainbed.errors import UsageError
from domainbed.model_selection import SELECTION_METHODS, choose
from domainbed.reporting import reading
from domainbed.reporting.formats.text import text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from tests.conftest import make_record, read_sweep, write_sweep


def test_a_torn_line_is_told_and_left_out(tmp_path: Path):
    write_sweep(tmp_path, [make_record(step=s) for s in (0, 100)])
    (results,) = tmp_path.glob("*/results.jsonl")
    whole = results.read_text()
    for cut in (1, 5, len(whole) // 4):
        results.write_text(whole[:-cut] if cut > 1 else whole + "\x00\xff")
        frame, problems = read_sweep(tmp_path)
        assert frame["step"].tolist() == ([0, 100] if cut == 1 else [0])
        assert problems == [f"{results}: line {3 if cut == 1 else 2} is not a whole record; left out"]


@pytest.mark.parametrize(
    ("first", "again", "counting"),
    [
        ([0], [0], [10]),
        ([0, 100, 200], [0, 100], [10, 110]),  # cut short the second time
        ([0, 100], [0, 100, 200], [10, 110, 210]),
        ([0, 100, 200], [100, 200], [0, 110, 210]),  # gone on from a checkpoint
        ([0, 100, 200], [150], [0, 100, 160]),
    ],
)
def test_of_a_job_run_twice_in_its_folder_the_last_run_counts(tmp_path: Path, first, again, counting):
    """A job that was begun anew without its records being cut off (DomainBed's collector counts both)."""
    records = [
        make_record(step=s, in_acc=((s + more) / 1000,) * 3) for steps, more in ((first, 0), (again, 10)) for s in steps
    ]
    frame, problems = read_sweep(write_sweep(tmp_path, records))
    assert (1000 * frame["env0_in_acc"]).round().tolist() == counting
    (problem,) = problems
    lost = len(first) + len(again) - len(counting)
    assert problem.endswith(f"the job was run again in its folder; of the earlier run, {lost} records don't count")


def test_of_a_run_in_two_folders_the_finished_then_the_last_written_counts(tmp_path: Path):
    write_sweep(tmp_path, [make_record(in_acc=(0.1, 0.1, 0.1)), make_record(hparams_seed=1)])
    (first,) = tmp_path.glob("*-0-0-0")
    second = tmp_path / "another"
    second.mkdir()
    (second / "results.jsonl").write_text(json.dumps(make_record(in_acc=(0.2, 0.2, 0.2))) + "\n")

    def counts() -> float:
        frame, problems = read_sweep(tmp_path)
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
    records = [make_record(), make_record(hparams_seed=1), make_record("Elsewhere", hparams_seed=1)]
    records[1]["args"]["steps"] = 7
    _, problems = read_sweep(write_sweep(tmp_path, records))
    expected = "ColoredDigits: its runs were made with different arguments (steps 7, hparams None,"
    assert len(problems) == 2
    assert problems[0].endswith("0-0-1/results.jsonl: the job is done, but its last record is missing")
    assert problems[1].startswith(expected)


def test_a_done_job_without_its_last_record_is_told(tmp_path: Path):
    records = [make_record(step=s) for s in (0, 5)]
    for record in records:
        record["args"]["steps"] = 11
    write_sweep(tmp_path, records, done=False)
    assert read_sweep(tmp_path)[1] == []
    write_sweep(tmp_path, [], done=True)
    next(tmp_path.iterdir()).joinpath("done").write_text("done")
    (problem,) = read_sweep(tmp_path)[1]
    assert problem.endswith("results.jsonl: the job is done, but its last record is missing")


def test_foreign_things_in_the_folder_are_left_alone(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("of the weekend")
    (tmp_path / "plots").mkdir()  # by domainbed.scripts.plot
    (tmp_path / "plots" / "curves.png").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "results.jsonl").write_text("")
    (tmp_path / "folder" / "results.jsonl").mkdir(parents=True)
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert problems == [
        f"{tmp_path}/mine: no job's folder; left out",
        f"{tmp_path}/folder/results.jsonl: Is a directory; left out",
        f"{tmp_path}/nothing/results.jsonl: empty",
    ]


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
    "an accuracy that is not a number": make_record() | {"env1_out_acc": float("nan")},
    "an infinite accuracy": make_record() | {"env1_out_acc": float("inf")},
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
    frame, problems = read_sweep(tmp_path)
    assert frame["folder"].unique().tolist() == ["ColoredDigits-ERM-0-0-0"]
    assert len(problems) == 1
    assert problems[0].startswith(str(results))
    assert "left out" in problems[0]
    shutil.rmtree(tmp_path / "ColoredDigits-ERM-0-0-0")
    with pytest.raises(UsageError, match=r"holds no records in folder/results\.jsonl; .*left out"):
        read_sweep(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sweep(tmp_path, [make_record(), make_record(hparams_seed=1)])

    def refuse(path: Path, *args, **kwargs):
        if "0-0-1" in str(path):
            raise PermissionError(13, "Permission denied")
        return open(path, *args, **kwargs)

    monkeypatch.setattr(reading, "open", refuse, raising=False)
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert len(problems) == 1
    assert problems[0].endswith("results.jsonl: Permission denied; left out")


def test_no_folder_and_no_records(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere' is not a folder"):
        read_sweep(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no records in folder/results\.jsonl$"):
        read_sweep(tmp_path)


def test_clean_and_published_evaluation_are_not_mixed_silently(tmp_path: Path):
    """Nor do replaced images go untold; records from before there was either count as published."""
    records = [make_record(hparams_seed=seed) for seed in range(3)]
    records[1]["args"]["clean_evaluation"] = False
    records[1] |= {"bad_images": 0, "environments": ["+90%", "+80%", "-90%"]}
    assert read_sweep(write_sweep(tmp_path / "fine", records))[1] == []
    records[2]["args"]["clean_evaluation"] = True
    records[2]["bad_images"] = 400
    problems = read_sweep(write_sweep(tmp_path / "mixed", records))[1]
    assert len(problems) == 2
    assert "different arguments" in problems[0]
    assert "clean_evaluation" in problems[0]
    assert "1 jobs met broken images" in problems[1]


def test_precisions_are_not_mixed_silently(tmp_path: Path):
    """Records from before there was a choice are in the default."""
    records = [make_record(hparams_seed=seed) for seed in range(3)]
    records[1]["args"]["precision"] = "tf32"
    assert read_sweep(write_sweep(tmp_path / "fine", records))[1] == []
    records[2]["args"]["precision"] = "bf16"
    (problem,) = read_sweep(write_sweep(tmp_path / "mixed", records))[1]
    assert "different arguments" in problem
    assert "precision bf16" in problem


def test_trees_of_ones_own_are_not_mixed_silently(tmp_path: Path):
    records = [make_record(dataset="Folder", hparams_seed=seed) | {"environments": [seed, "b", "c"]} for seed in (0, 1)]
    (problem,) = read_sweep(write_sweep(tmp_path, records))[1]
    assert problem == "Folder: its runs had different environments (0 b c; 1 b c)"


def four_environments(**others) -> dict:
    return make_record("Elsewhere", in_acc=(0.5,) * 4, out_acc=(0.5,) * 4, **others)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (four_environments(hparams_seed=9), "it has 4 environments, Elsewhere has 3"),
        (make_record("Elsewhere", hparams_seed=9) | {"environments": ["a", "b"]}, "it names 2 environments, and has 3"),
        (make_record("PACS", hparams_seed=9), "it has 3 environments, PACS has 4"),
        (make_record("Avg", hparams_seed=9), "a dataset can't be called Avg in the tables"),
    ],
)
def test_a_job_of_other_environments_harms_no_other(tmp_path: Path, odd: dict, why: str):
    records = [make_record("Elsewhere", test_envs=(e,), in_acc=(e / 10,) * 3) for e in range(3)]
    alone = load_sweep(str(write_sweep(tmp_path / "alone", records)))
    both = load_sweep(str(write_sweep(tmp_path / "both", [*records, odd])))
    (problem,) = both.problems
    assert problem.endswith(f"results.jsonl: {why}; left out")
    for selection in SELECTION_METHODS:
        left_alone, left_both = (choose(selection, sweep.records) for sweep in (alone, both))
        assert left_both[["test_env", "test_acc"]].equals(left_alone[["test_env", "test_acc"]])
    assert text(make_report(both, ReportOptions())).startswith(text(make_report(alone, ReportOptions())).rstrip("\n"))


def test_what_looks_like_an_accuracy_is_none(tmp_path: Path):
    record = make_record() | {"envX_out_acc": 0.5, "env_acc": 1.0, "environment_acc": 0.1}
    frame, problems = read_sweep(write_sweep(tmp_path, [record]))
    assert problems == []
    assert [c for c in frame if c.endswith("_acc")] == [
        f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")
    ]


def test_links_and_names_that_lead_nowhere(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    os.symlink(tmp_path / "gone", tmp_path / "link")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    (tmp_path / "two\nlines").mkdir()
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert [problem.rpartition("/")[2] for problem in problems] == [
        "'\\udcff\\udcfe': no name for a job's folder; left out",
        "'two\\nlines': no name for a job's folder; left out",
        "link: a link that leads nowhere; left out",
        "loop: a link that leads nowhere; left out",
    ]


def test_a_bad_job_leaves_the_others_numbers_whole(tmp_path: Path):
    """Its row has no seeds, of which pandas would make floats of all."""
    write_sweep(tmp_path, [make_record(trial_seed=2**60 + 1)])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.jsonl").write_text("[" * 200_000)
    sweep = load_sweep(str(tmp_path))
    assert sweep.jobs["trial_seed"].tolist() == [2**60 + 1]
    assert sweep.records["trial_seed"].dtype == "int64"
    assert len(sweep.problems) == 1


@pytest.mark.parametrize("odd", [{"trial_seed": 10**30}, {"algorithm": "x\ud800"}, {"step": 2**40}])
def test_what_no_column_holds_is_left_out(tmp_path: Path, odd: dict):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "results.jsonl").write_text(json.dumps(make_record(**odd)))
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert (
        [problem for problem in problems if "odd/results.jsonl" in problem and "left out" in problem] == problems != []
    )


def test_done_runs_that_are_of_no_use_are_marked_and_counted(tmp_path: Path):
    records = [make_record(test_envs=(e,), hparams_seed=h) for e in range(3) for h in range(2)]
    del records[1]["env2_out_acc"]  # of test environment 0, draw 1
    report = make_report(load_sweep(str(write_sweep(tmp_path, records))), ReportOptions(["training-domain"]))
    first, second, *_ = report.sections[0].tables[0].rows["ERM"]
    assert first.mark == "*"
    assert first.counts == "1 of 1 trials, 2 of 2 runs done, 1 of which the method can't choose from"
    assert second.mark == ""
    assert "or of use (ERM +90%: 1 of 1 trials, 2 of 2 runs done, 1 of which the method can't choose from)" in text(
        report
    )


def test_environments_of_the_same_name_are_told_apart(tmp_path: Path):
    record = make_record("Folder", test_envs=(1,)) | {"environments": ["b", "b", "Avg"]}
    report = make_report(load_sweep(str(write_sweep(tmp_path, [record]))), ReportOptions(["training-domain"]))
    assert report.sections[0].tables[0].columns == ["b (0)", "b (1)", "Avg (2)", "Avg"]


def test_a_single_environment_leaves_nothing_to_choose_by(tmp_path: Path):
    record = make_record("One", in_acc=(0.5,), out_acc=(0.5,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = make_report(load_sweep(str(write_sweep(tmp_path, [record]))), ReportOptions())
    assert [bool(section.tables) for section in report.sections] == [False, False, True]


def test_a_method_of_ones_own_that_fails_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records = load_sweep(str(write_sweep(tmp_path, [make_record()]))).records
    for method in (lambda records: None, lambda records: pd.DataFrame(), lambda records: 1 / 0):
        monkeypatch.setitem(SELECTION_METHODS._registered, "mine", method)
        with pytest.raises(UsageError, match="selection method 'mine' fails on these records"):
            choose("mine", records)
    monkeypatch.setitem(SELECTION_METHODS._registered, "mine", SELECTION_METHODS["test-domain"])
    assert len(choose("mine", records)) == 1
