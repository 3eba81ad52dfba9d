"""One job, run in this process: exceptions are not raised, but recorded in its folder."""

import os
from pathlib import Path

import pytest

from domainbed.engine.lock import locked
from domainbed.sweep.job import Job
from domainbed.sweep.run import TAKEN, JobEvent, run_job
from domainbed.sweep.status import JobState, read_status
from tests.sweep.helpers import make_job, never, records, steps_recorded


def run(job: Job, should_stop=never) -> JobEvent:
    """Run a job, check its progress events, and return how it ended."""
    progress: list[JobEvent] = []
    event = run_job(job, progress.append, should_stop)
    assert all(e.is_progress and e.job == job for e in progress)
    assert [e.steps for e in progress] == sorted({e.steps for e in progress})
    assert not event.is_progress
    return event


def test_done(tmp_path: Path):
    job = make_job(tmp_path)
    assert run(job) == JobEvent(job, JobState.DONE, steps=3)
    files = {"done", "log.txt", "model.pkl", "results.jsonl"}
    assert {path.name for path in job.folder.iterdir()} == files
    assert run(job) == JobEvent(job, JobState.DONE, steps=3), "it was done before"
    assert {path.name for path in job.folder.iterdir()} == files
    assert steps_recorded(job) == [0, 1, 2]


def test_taken(tmp_path: Path):
    job = make_job(tmp_path)
    job.folder.mkdir()
    with locked(job.folder):
        assert run(job) == JobEvent(job, JobState.RUNNING, reason=TAKEN)
        assert {path.name for path in job.folder.iterdir()} == {"lock"}


def test_stopped_and_resumed(tmp_path: Path):
    job = make_job(tmp_path, steps=10)
    answers = iter([False] * 5 + [True] * 100)
    event = run(job, lambda: next(answers))
    assert event.state == read_status(job.folder).state == JobState.INCOMPLETE
    assert event.steps > 0
    assert run(job, lambda: True).state == JobState.INCOMPLETE
    assert run(job).state == JobState.DONE
    assert steps_recorded(job) == list(range(10))
    other = make_job(tmp_path / "other", steps=10)
    run(other)
    assert records(job) == records(other)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "step 0: RuntimeError: out of ideas at 0, in misbehaving.py line 48"),
        ("usage", "not like this"),
        ("nan", "training diverged at step 0: loss is nan; records of earlier steps are kept"),
    ],
)
def test_failed(tmp_path: Path, how: str, reason: str):
    job = make_job(tmp_path, how)
    for times in (1, 2, 3):
        event = run(job)
        assert event.state == JobState.FAILED
        assert event.reason.startswith(reason)
        status = read_status(job.folder)
        assert status.state == JobState.FAILED
        assert (status.failure.reason, status.failure.times) == (event.reason, times)
        assert not (job.folder / "lock").exists()


def test_jobs_leave_no_file_open(tmp_path: Path):
    if not Path("/proc").is_dir():
        pytest.skip("requires /proc, which only Linux has")
    jobs = [make_job(tmp_path, how, seed=seed) for seed, how in enumerate(("raise", "well", "usage", "nan", "well"))]
    run(make_job(tmp_path, seed=9))
    (tmp_path / make_job(tmp_path, seed=10).folder.name).write_text("not a folder")
    before = len(os.listdir("/proc/self/fd"))
    for job in [*jobs, make_job(tmp_path, seed=10)]:
        run(job)
    assert len(os.listdir("/proc/self/fd")) == before


def test_log_that_is_a_link_is_not_written(tmp_path: Path):
    """A job's output contains texts from its folder; in a shell's startup file, they would be run."""
    job = make_job(tmp_path / "sweep")
    job.folder.mkdir(parents=True)
    (tmp_path / "target").write_text("precious")
    (job.folder / "log.txt").symlink_to(tmp_path / "target")
    event = run(job)
    assert (event.state, event.reason) == (JobState.FAILED, f"{job.folder}/log.txt: Too many levels of symbolic links")
    assert (tmp_path / "target").read_text() == "precious"
