"""What a sweep was asked for, and how far that is."""

import json
import os
from pathlib import Path

import pytest

from domainbed.engine.lock import locked
from domainbed.records import append_record, mark_done
from domainbed.reporting.formats.text import text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from domainbed.scripts import sweep
from domainbed.sweep.job import Job
from domainbed.sweep.log import log_launch
from domainbed.sweep.status import JobState
from tests.conftest import make_record

WORDS = ["launch", "--datasets", "ColoredDigits", "--algorithms", "ERM", "Fishr", "--n_hparams", "2", "--n_trials", "2"]


def launched(folder: Path, *more: str) -> list[Job]:
    """The jobs of a launch into a folder that remembers it, none of them begun."""
    args = sweep.parser().parse_args([*WORDS, "--steps", "1", *more, "--output_dir", str(folder)])
    folder.mkdir(exist_ok=True)
    log_launch(folder, sweep.grid_of(args))
    return sweep.jobs_of(args)


def record(job: Job) -> None:
    """Let a job have a record."""
    c = job.config
    job.folder.mkdir(exist_ok=True)
    made = make_record(c.dataset, c.algorithm, c.test_envs, c.trial_seed, c.hparams_seed)
    append_record(job.folder, made | {"args": c.args()})


def finish(job: Job) -> None:
    record(job)
    mark_done(job.folder)


def test_each_state_is_counted_in_its_cell(tmp_path: Path):
    """ERM's runs on +90%: one done, one failed with a record, one under way, one not launched; all others are done."""
    jobs = launched(tmp_path / "sweep")
    of_cell = [job for job in jobs if job.config.algorithm == "ERM" and job.config.test_envs == (0,)]
    for job in jobs:
        if job not in of_cell:
            finish(job)
    done, failed, running, not_launched = of_cell
    finish(done)
    record(failed)
    (failed.folder / "failed.json").write_text(json.dumps({"reason": "the loss is not a number", "times": 1}))
    record(running)
    with locked(running.folder):
        read = load_sweep(str(tmp_path / "sweep"))
        report = make_report(read, ReportOptions(["training-domain"]))
    assert read.is_remembered
    states = dict(zip(read.runs["folder"], read.runs["state"], strict=True))
    assert states[failed.folder.name] == JobState.FAILED
    assert report.progress == "24 runs asked for: 21 done, 1 failed, 1 running, 1 not launched"
    digits, averages = report.sections[0].tables
    cell, average = digits.rows["ERM"][0], digits.rows["ERM"][-1]
    assert (cell.asked, cell.done, cell.trials, cell.of_trials) == (4, 1, 2, 2)
    assert cell.counts == "2 of 2 trials, 1 of 4 runs done (1 not launched, 1 running, 1 failed)"
    assert (average.asked, average.done) == (12, 9)
    assert cell.mark == "*~"
    assert digits.rows["ERM"][1].mark == digits.rows["Fishr"][0].mark == ""
    assert averages.rows["ERM"][0].mark == "*~"
    told = text(report)
    assert f"(ERM +90%: {cell.counts})" in told
    assert not_launched.folder.name not in told


def test_an_algorithm_without_any_record_has_its_row(tmp_path: Path):
    for job in launched(tmp_path / "sweep"):
        if job.config.algorithm == "Fishr":
            finish(job)
    report = make_report(load_sweep(str(tmp_path / "sweep")), ReportOptions(["training-domain"]))
    erm = report.sections[0].tables[0].rows["ERM"]
    assert [cell.is_missing for cell in erm] == [True] * 4
    assert erm[0].counts == "0 of 2 trials, 0 of 4 runs done (4 not launched)"
    assert report.sections[0].tables[-1].rows["Fishr"][-1].mean == 1.0, "the one that is there is the first"


def test_several_launches_are_asked_for_together(tmp_path: Path):
    jobs = launched(tmp_path / "sweep") + launched(tmp_path / "sweep", "--n_trials", "3")
    for job in jobs:
        if not job.folder.exists():
            finish(job)
    read = load_sweep(str(tmp_path / "sweep"))
    assert len(read.runs) == 2 * 3 * 2 * 3
    assert set(read.runs["state"]) == {JobState.DONE}
    assert read.problems == []


def test_a_run_that_nobody_asked_for_counts_too(tmp_path: Path):
    for job in launched(tmp_path / "sweep"):
        finish(job)
    foreign = tmp_path / "sweep" / "by hand"
    foreign.mkdir()
    (foreign / "results.jsonl").write_text(json.dumps(make_record(algorithm="IRM")) + "\n")
    runs = load_sweep(str(tmp_path / "sweep")).runs
    (state,) = runs.loc[runs["algorithm"] == "IRM", "state"]
    assert state == JobState.INCOMPLETE


def test_a_launch_that_can_not_be_read_any_more(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Its runs are then taken to be those that there are."""
    for job in launched(tmp_path / "sweep"):
        finish(job)
    (launch,) = (tmp_path / "sweep" / ".sweep" / "launches").iterdir()
    launch.write_text(launch.read_text().replace("ColoredDigits", "Gone"))
    read = load_sweep(str(tmp_path / "sweep"))
    assert capsys.readouterr().err == ""
    assert [problem for problem in read.problems if "is left out: unknown dataset 'Gone'" in problem]
    assert not read.is_remembered
    assert len(read.runs) == 24


def test_another_launch_with_other_arguments_is_not_done(tmp_path: Path):
    """What is done of the first says nothing of the second, whose jobs are others."""
    for job in launched(tmp_path / "sweep"):
        finish(job)
    launched(tmp_path / "sweep", "--hparams", '{"batch_size": 4}')
    read = load_sweep(str(tmp_path / "sweep"))
    assert set(read.runs["state"]) == {JobState.NOT_LAUNCHED}
    report = make_report(read, ReportOptions(["training-domain"]))
    assert {cell.mark for cell in report.sections[0].tables[0].cells} == {"*~"}


def test_a_job_folder_that_may_not_be_read_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, *others = launched(tmp_path / "sweep")
    for job in others:
        finish(job)
    first.folder.mkdir()
    listdir = os.listdir

    def refuse(path="."):
        if str(path) == str(first.folder):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    read = load_sweep(str(tmp_path / "sweep"))
    assert read.problems == [f"{first.folder}: Permission denied; left out"]
    assert list(read.runs["state"]).count(JobState.INCOMPLETE) == 1
