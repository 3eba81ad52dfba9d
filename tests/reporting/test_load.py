"""Loading of a sweep's folder, including damaged and foreign contents."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest

from domainbed.errors import UsageError
from domainbed.files import open_regular
from domainbed.model_selection import SELECTION_METHODS, select_records
from domainbed.reporting import reading
from domainbed.reporting.formats.text import as_text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from tests.conftest import make_record, read_sweep, write_sweep


def test_incomplete_line_is_reported_and_skipped(tmp_path: Path):
    write_sweep(tmp_path, [make_record(step=s) for s in (0, 100)])
    (results,) = tmp_path.glob("*/results.jsonl")
    content = results.read_text()
    for cut in (1, 5, len(content) // 4):
        results.write_text(content[:-cut] if cut > 1 else content + "\x00\xff")
        frame, problems = read_sweep(tmp_path)
        assert frame["step"].tolist() == ([0, 100] if cut == 1 else [0])
        assert problems == [f"{results}: line {3 if cut == 1 else 2} is not a complete record; skipped"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0], [0], [10]),
        ([0, 100, 200], [0, 100], [10, 110]),  # stopped early the second time
        ([0, 100], [0, 100, 200], [10, 110, 210]),
        ([0, 100, 200], [100, 200], [0, 110, 210]),  # resumed from a checkpoint
        ([0, 100, 200], [150], [0, 100, 160]),
    ],
)
def test_last_run_counts_if_job_ran_twice(tmp_path: Path, first, second, expected):
    """A job that was started over without truncating its records (DomainBed's collector counts both runs)."""
    records = [
        make_record(step=s, in_acc=((s + shift) / 1000,) * 3)
        for steps, shift in ((first, 0), (second, 10))
        for s in steps
    ]
    frame, problems = read_sweep(write_sweep(tmp_path, records))
    assert (1000 * frame["env0_in_acc"]).round().tolist() == expected
    (problem,) = problems
    replaced = len(first) + len(second) - len(expected)
    assert problem.endswith(f"the job was run more than once in its folder; skipped {replaced} records of earlier runs")


def test_finished_then_last_written_folder_counts_if_run_has_two(tmp_path: Path):
    write_sweep(tmp_path, [make_record(in_acc=(0.1, 0.1, 0.1)), make_record(hparams_seed=1)])
    (first,) = tmp_path.glob("*-0-0-0")
    second = tmp_path / "another"
    second.mkdir()
    (second / "results.jsonl").write_text(json.dumps(make_record(in_acc=(0.2, 0.2, 0.2))) + "\n")

    def accuracy() -> float:
        frame, problems = read_sweep(tmp_path)
        assert len(problems) == 1
        assert problems[0].startswith("skipping 1 folder with a run that another folder also contains (")
        return frame.loc[frame["hparams_seed"] == 0, "env0_in_acc"].item()

    os.utime(first / "results.jsonl", (1, 1))
    assert accuracy() == 0.1, "the later one is not done"
    (second / "done").write_text("done")
    assert accuracy() == 0.2
    os.utime(second / "results.jsonl", (0, 0))
    assert accuracy() == 0.1


def test_different_arguments_are_reported(tmp_path: Path):
    records = [make_record(), make_record(hparams_seed=1), make_record("Elsewhere", hparams_seed=1)]
    records[1]["args"]["steps"] = 7
    _, problems = read_sweep(write_sweep(tmp_path, records))
    expected = "ColoredDigits: its runs used different arguments (steps 7, hparams None,"
    assert len(problems) == 2
    assert problems[0].endswith("0-0-1/results.jsonl: the job is done, but its last record is missing")
    assert problems[1].startswith(expected)


def test_different_intervals_of_evaluations_are_reported(tmp_path: Path):
    """Selection from more records is another selection. Algorithms may have intervals of their own (SWAD)."""
    records = [make_record(hparams_seed=i) for i in range(3)]
    records.append(make_record(algorithm="CORAL"))
    for record, frequency in zip(records, (100, 20, None, 20), strict=True):
        record["args"]["checkpoint_freq"] = frequency
    _, problems = read_sweep(write_sweep(tmp_path, records))
    assert problems == ["ColoredDigits: runs of ERM were evaluated every 20 or 100 steps"]


def test_missing_last_record_of_done_job_is_reported(tmp_path: Path):
    records = [make_record(step=s) for s in (0, 5)]
    for record in records:
        record["args"]["steps"] = 11
    write_sweep(tmp_path, records, done=False)
    assert read_sweep(tmp_path)[1] == []
    write_sweep(tmp_path, [], done=True)
    next(tmp_path.iterdir()).joinpath("done").write_text("done")
    (problem,) = read_sweep(tmp_path)[1]
    assert problem.endswith("results.jsonl: the job is done, but its last record is missing")


def test_foreign_files_and_folders_are_ignored(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("unrelated")
    (tmp_path / "plots").mkdir()  # written by domainbed.scripts.plot
    (tmp_path / "plots" / "curves.png").write_bytes(b"")
    (tmp_path / "landscape").mkdir()  # written by domainbed.scripts.landscape
    (tmp_path / "landscape" / "planes.png").write_bytes(b"")
    (tmp_path / "without records").mkdir()
    (tmp_path / "without records" / "results.jsonl").write_text("")
    (tmp_path / "folder" / "results.jsonl").mkdir(parents=True)
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert problems == [
        f"{tmp_path}/mine: not a job folder; skipped",
        f"{tmp_path}/folder/results.jsonl: Is a directory; skipped",
        f"{tmp_path}/without records/results.jsonl: empty file",
    ]


BROKEN = {
    "a list": [1, 2],
    "no step": {"x": 1},
    "no args": {"step": 3},
    "an infinite step": {"step": float("inf")},
    "args as a list": {"step": 3, "args": [1]},
    "a nonexistent test environment": make_record() | {"args": make_record(test_envs=(7,))["args"]},
    "no accuracy on an out split": {k: v for k, v in make_record().items() if k != "env0_out_acc"},
    "no test environment": make_record() | {"args": make_record(test_envs=())["args"]},
    "an accuracy that is text": make_record() | {"env1_out_acc": "abc"},
    "an accuracy that is NaN": make_record() | {"env1_out_acc": float("nan")},
    "an infinite accuracy": make_record() | {"env1_out_acc": float("inf")},
    "an accuracy that is null": make_record() | {"env1_out_acc": None},
    "a dataset that is null": make_record(dataset=None),
    "a dataset that is a list": make_record(dataset=["PACS"]),
    "a trial that is text": make_record(trial_seed="first"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_record_is_reported_and_affects_no_other_job(tmp_path: Path, kind: str):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "broken").mkdir()
    results = tmp_path / "broken" / "results.jsonl"
    results.write_text(json.dumps(BROKEN[kind]) + "\n")
    frame, problems = read_sweep(tmp_path)
    assert frame["folder"].unique().tolist() == ["ColoredDigits-ERM-0-0-0"]
    assert len(problems) == 1
    assert problems[0].startswith(str(results))
    assert "skipped" in problems[0]
    shutil.rmtree(tmp_path / "ColoredDigits-ERM-0-0-0")
    with pytest.raises(UsageError, match=r"has no job folders with usable records \(results\.jsonl\); .*skipped"):
        read_sweep(tmp_path)


def test_unreadable_results_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_sweep(tmp_path, [make_record(), make_record(hparams_seed=1)])

    def refuse(path: Path):
        if "0-0-1" in str(path):
            raise PermissionError(13, "Permission denied")
        return open_regular(path)

    monkeypatch.setattr(reading, "open_regular", refuse)
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert len(problems) == 1
    assert problems[0].endswith("results.jsonl: Permission denied; skipped")


def test_missing_folder_and_folder_without_records(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere' is not a folder"):
        read_sweep(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no job folders with usable records \(results\.jsonl\)$"):
        read_sweep(tmp_path)


def test_clean_and_published_evaluation_are_not_mixed_silently(tmp_path: Path):
    """Replaced images are reported, too. Older records, which lack both entries, count as published evaluation."""
    records = [make_record(hparams_seed=seed) for seed in range(3)]
    records[1]["args"]["clean_evaluation"] = False
    records[1] |= {"bad_images": 0, "environments": ["+90%", "+80%", "-90%"]}
    assert read_sweep(write_sweep(tmp_path / "consistent", records))[1] == []
    records[2]["args"]["clean_evaluation"] = True
    records[2]["bad_images"] = 400
    problems = read_sweep(write_sweep(tmp_path / "mixed", records))[1]
    assert len(problems) == 2
    assert "different arguments" in problems[0]
    assert "clean_evaluation" in problems[0]
    assert problems[1] == "1 job replaced broken images with others (--on_bad_image skip)"


def test_precisions_are_not_mixed_silently(tmp_path: Path):
    """Older records, which lack the precision, have the default."""
    records = [make_record(hparams_seed=seed) for seed in range(3)]
    records[1]["args"]["precision"] = "tf32"
    assert read_sweep(write_sweep(tmp_path / "consistent", records))[1] == []
    records[2]["args"]["precision"] = "bf16"
    (problem,) = read_sweep(write_sweep(tmp_path / "mixed", records))[1]
    assert "different arguments" in problem
    assert "precision bf16" in problem


def test_environments_of_user_folders_are_not_mixed_silently(tmp_path: Path):
    records = [make_record(dataset="Folder", hparams_seed=seed) | {"environments": [seed, "b", "c"]} for seed in (0, 1)]
    (problem,) = read_sweep(write_sweep(tmp_path, records))[1]
    assert problem == "Folder: its runs used different environments (0 b c; 1 b c)"


def record_of_four_environments(**others) -> dict:
    return make_record("Elsewhere", in_acc=(0.5,) * 4, out_acc=(0.5,) * 4, **others)


@pytest.mark.parametrize(
    ("incompatible", "reason"),
    [
        (record_of_four_environments(hparams_seed=9), "the records have 4 environments, but Elsewhere has 3"),
        (
            make_record("Elsewhere", hparams_seed=9) | {"environments": ["a", "b"]},
            "the records name 2 environments, but have 3",
        ),
        (make_record("PACS", hparams_seed=9), "the records have 3 environments, but PACS has 4"),
        (make_record("Avg", hparams_seed=9), "the dataset name 'Avg' is reserved by the tables"),
    ],
)
def test_incompatible_job_affects_no_other(tmp_path: Path, incompatible: dict, reason: str):
    records = [make_record("Elsewhere", test_envs=(e,), in_acc=(e / 10,) * 3) for e in range(3)]
    alone = load_sweep(str(write_sweep(tmp_path / "alone", records)))
    both = load_sweep(str(write_sweep(tmp_path / "both", [*records, incompatible])))
    (problem,) = both.problems
    assert problem.endswith(f"results.jsonl: {reason}; skipped")
    for selection in SELECTION_METHODS:
        selected_alone, selected_both = (select_records(selection, sweep.records) for sweep in (alone, both))
        assert selected_both[["test_env", "test_acc"]].equals(selected_alone[["test_env", "test_acc"]])
    assert as_text(make_report(both, ReportOptions())).startswith(
        as_text(make_report(alone, ReportOptions())).rstrip("\n")
    )


def test_only_accuracies_of_environments_are_read(tmp_path: Path):
    record = make_record() | {"envX_out_acc": 0.5, "env_acc": 1.0, "environment_acc": 0.1}
    frame, problems = read_sweep(write_sweep(tmp_path, [record]))
    assert problems == []
    assert [c for c in frame if c.endswith("_acc")] == [
        f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")
    ]


def test_broken_links_and_invalid_names_are_reported(tmp_path: Path):
    write_sweep(tmp_path, [make_record()])
    os.symlink(tmp_path / "gone", tmp_path / "link")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    (tmp_path / "two\nlines").mkdir()
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert [problem.rpartition("/")[2] for problem in problems] == [
        "'\\udcff\\udcfe': not a valid name of a job folder; skipped",
        "'two\\nlines': not a valid name of a job folder; skipped",
        "link: broken symbolic link; skipped",
        "loop: broken symbolic link; skipped",
    ]


def test_seeds_stay_integers_next_to_broken_job(tmp_path: Path):
    """A missing seed would make pandas convert the column to floats."""
    write_sweep(tmp_path, [make_record(trial_seed=2**60 + 1)])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.jsonl").write_text("[" * 200_000)
    sweep = load_sweep(str(tmp_path))
    assert sweep.jobs["trial_seed"].tolist() == [2**60 + 1]
    assert sweep.records["trial_seed"].dtype == "int64"
    assert len(sweep.problems) == 1


@pytest.mark.parametrize("entry", [{"trial_seed": 10**30}, {"algorithm": "x\ud800"}, {"step": 2**40}])
def test_out_of_range_values_are_skipped(tmp_path: Path, entry: dict):
    write_sweep(tmp_path, [make_record()])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "results.jsonl").write_text(json.dumps(make_record(**entry)))
    frame, problems = read_sweep(tmp_path)
    assert len(frame) == 1
    assert problems
    assert all("odd/results.jsonl" in problem and "skipped" in problem for problem in problems)


def test_done_runs_without_usable_records_are_marked_and_counted(tmp_path: Path):
    records = [make_record(test_envs=(e,), hparams_seed=h) for e in range(3) for h in range(2)]
    del records[1]["env2_out_acc"]  # test environment 0, draw 1
    report = make_report(load_sweep(str(write_sweep(tmp_path, records))), ReportOptions(["training-domain"]))
    first, second, *_ = report.sections[0].tables[0].rows["ERM"]
    assert first.mark == "*"
    assert first.counts == "1 of 1 trials, 2 of 2 runs done, 1 not usable by this method"
    assert second.mark == ""
    assert "or not usable (ERM on +90%: 1 of 1 trials, 2 of 2 runs done, 1 not usable by this method)" in as_text(
        report
    )


def test_environments_with_equal_names_are_numbered(tmp_path: Path):
    record = make_record("Folder", test_envs=(1,)) | {"environments": ["b", "b", "Avg"]}
    report = make_report(load_sweep(str(write_sweep(tmp_path, [record]))), ReportOptions(["training-domain"]))
    assert report.sections[0].tables[0].columns == ["b (0)", "b (1)", "Avg (2)", "Avg"]


def test_single_environment_has_only_oracle_selection(tmp_path: Path):
    record = make_record("One", in_acc=(0.5,), out_acc=(0.5,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = make_report(load_sweep(str(write_sweep(tmp_path, [record]))), ReportOptions())
    assert [bool(section.tables) for section in report.sections] == [False, False, True]


def test_failing_user_method_is_reported_on_one_line(tmp_path: Path):
    records = load_sweep(str(write_sweep(tmp_path, [make_record()]))).records
    for method in (lambda records: None, lambda records: pd.DataFrame(), lambda records: 1 / 0):
        failure = pytest.raises(UsageError, match="selection method 'mine' failed")
        with SELECTION_METHODS.temporarily("mine", method), failure:
            select_records("mine", records)
    with SELECTION_METHODS.temporarily("mine", SELECTION_METHODS["test-domain"]):
        assert len(select_records("mine", records)) == 1


def test_features_of_different_weights_are_not_mixed_silently(tmp_path: Path):
    """Records of earlier versions, and those of fine-tuned networks, do not name any weights."""
    records = [make_record(hparams_seed=seed) for seed in range(3)]
    for record in records[:2]:
        record["backbone_weights"] = "a"
    assert read_sweep(write_sweep(tmp_path / "consistent", records))[1] == []
    records[1]["backbone_weights"] = "b"
    assert read_sweep(write_sweep(tmp_path / "mixed", records))[1] == [
        "ColoredDigits: the features of its runs come from frozen backbones with 2 different weights"
    ]
