"""The runs that a sweep requested, and their states."""

import json
import os
from pathlib import Path

import pytest

from domainbed.engine.lock import locked
from domainbed.records import append_record, mark_done
from domainbed.reporting.formats.text import as_text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from domainbed.scripts import sweep_parser
from domainbed.sweep.job import Job
from domainbed.sweep.log import log_launch
from domainbed.sweep.status import JobState
from tests.conftest import make_record

LAUNCH_ARGS = [
    "launch",
    "--datasets",
    "ColoredDigits",
    "--algorithms",
    "ERM",
    "Fishr",
    "--n_hparams",
    "2",
    "--n_trials",
    "2",
]


def make_launch(folder: Path, *more: str) -> list[Job]:
    """Log a launch into a folder and return its jobs, none of them started."""
    args = sweep_parser.parser().parse_args([*LAUNCH_ARGS, "--steps", "1", *more, "--output_dir", str(folder)])
    folder.mkdir(exist_ok=True)
    log_launch(folder, sweep_parser.grid_of(args))
    return sweep_parser.grid_of(args).jobs(folder)


def write_record(job: Job) -> None:
    """Write a record of a job."""
    c = job.config
    job.folder.mkdir(exist_ok=True)
    entries = make_record(c.dataset, c.algorithm, c.test_envs, c.trial_seed, c.hparams_seed)
    append_record(job.folder, entries | {"args": c.args()})


def finish(job: Job) -> None:
    write_record(job)
    mark_done(job.folder)


def test_states_are_counted_per_cell(tmp_path: Path):
    """ERM's runs on +90%: one done, one failed with a record, one running, one not launched. All others are done."""
    jobs = make_launch(tmp_path / "sweep")
    cell_jobs = [job for job in jobs if job.config.algorithm == "ERM" and job.config.test_envs == (0,)]
    for job in jobs:
        if job not in cell_jobs:
            finish(job)
    done, failed, running, not_launched = cell_jobs
    finish(done)
    write_record(failed)
    (failed.folder / "failed.json").write_text(json.dumps({"reason": "the loss is not a number", "times": 1}))
    write_record(running)
    with locked(running.folder):
        loaded = load_sweep(str(tmp_path / "sweep"))
        report = make_report(loaded, ReportOptions(["training-domain"]))
    assert loaded.has_launch_log
    states = dict(zip(loaded.runs["folder"], loaded.runs["state"], strict=True))
    assert states[failed.folder.name] == JobState.FAILED
    assert report.progress == "24 runs requested: 21 done, 1 failed, 1 running, 1 not launched"
    digits, averages = report.sections[0].tables
    cell, average = digits.rows["ERM"][0], digits.rows["ERM"][-1]
    assert (cell.runs_requested, cell.runs_done, cell.trials, cell.trials_requested) == (4, 1, 2, 2)
    assert cell.counts == "2 of 2 trials, 1 of 4 runs done (1 not launched, 1 running, 1 failed)"
    assert (average.runs_requested, average.runs_done) == (12, 9)
    assert cell.mark == "*~"
    assert digits.rows["ERM"][1].mark == digits.rows["Fishr"][0].mark == ""
    assert averages.rows["ERM"][0].mark == "*~"
    text = as_text(report)
    assert f"(ERM on +90%: {cell.counts})" in text
    assert not_launched.folder.name not in text


def test_algorithm_without_records_has_a_row(tmp_path: Path):
    for job in make_launch(tmp_path / "sweep"):
        if job.config.algorithm == "Fishr":
            finish(job)
    report = make_report(load_sweep(str(tmp_path / "sweep")), ReportOptions(["training-domain"]))
    erm = report.sections[0].tables[0].rows["ERM"]
    assert [cell.is_missing for cell in erm] == [True] * 4
    assert erm[0].counts == "0 of 2 trials, 0 of 4 runs done (4 not launched)"
    assert report.sections[0].tables[-1].rows["Fishr"][-1].mean == 1.0, "the only ranked algorithm is first"


def test_launches_are_merged(tmp_path: Path):
    jobs = make_launch(tmp_path / "sweep") + make_launch(tmp_path / "sweep", "--n_trials", "3")
    for job in jobs:
        if not job.folder.exists():
            finish(job)
    loaded = load_sweep(str(tmp_path / "sweep"))
    assert len(loaded.runs) == 2 * 3 * 2 * 3
    assert set(loaded.runs["state"]) == {JobState.DONE}
    assert loaded.problems == []


def test_unrequested_run_counts(tmp_path: Path):
    for job in make_launch(tmp_path / "sweep"):
        finish(job)
    foreign = tmp_path / "sweep" / "copied"
    foreign.mkdir()
    (foreign / "results.jsonl").write_text(json.dumps(make_record(algorithm="IRM")) + "\n")
    runs = load_sweep(str(tmp_path / "sweep")).runs
    (state,) = runs.loc[runs["algorithm"] == "IRM", "state"]
    assert state == JobState.INCOMPLETE


def test_unreadable_launch_log_implies_runs_from_records(tmp_path: Path, capsys: pytest.CaptureFixture):
    for job in make_launch(tmp_path / "sweep"):
        finish(job)
    (launch,) = (tmp_path / "sweep" / ".sweep" / "launches").iterdir()
    launch.write_text(json.dumps(json.loads(launch.read_text()) | {"datasets": ["Gone"]}))
    loaded = load_sweep(str(tmp_path / "sweep"))
    assert capsys.readouterr().err == ""
    (problem,) = loaded.problems
    assert problem.startswith("skipping the launch recorded in")
    assert "unknown dataset 'Gone'" in problem
    assert not loaded.has_launch_log
    assert len(loaded.runs) == 24


@pytest.mark.parametrize("argument", [("--hparams", '{"batch_size": 4}'), ("--seed", "1")])
def test_jobs_with_other_arguments_are_not_done(argument: tuple[str, str], tmp_path: Path):
    """The second launch requests the same runs with other arguments, which makes them other jobs."""
    for job in make_launch(tmp_path / "sweep"):
        finish(job)
    make_launch(tmp_path / "sweep", *argument)
    loaded = load_sweep(str(tmp_path / "sweep"))
    assert set(loaded.runs["state"]) == {JobState.NOT_LAUNCHED}
    report = make_report(loaded, ReportOptions(["training-domain"]))
    assert {cell.mark for cell in report.sections[0].tables[0].cells} == {"*~"}


def test_unreadable_job_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, *others = make_launch(tmp_path / "sweep")
    for job in others:
        finish(job)
    first.folder.mkdir()
    listdir = os.listdir

    def refuse(path="."):
        if str(path) == str(first.folder):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    loaded = load_sweep(str(tmp_path / "sweep"))
    assert loaded.problems == [f"{first.folder}: Permission denied; skipped"]
    assert list(loaded.runs["state"]).count(JobState.INCOMPLETE) == 1
