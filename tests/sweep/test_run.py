"""One job, trained in this process: however it ends, nothing is raised, and the folder tells."""

import os
from pathlib import Path

import pytest

from domainbed.engine.lock import locked
from domainbed.sweep.failures import blocked_reason, note_outcome
from domainbed.sweep.run import End, Outcome, run_job
from domainbed.sweep.status import JobState, status_of
from tests.sweep.helpers import make_job, records, steps_recorded


def run(job, should_stop=lambda: False) -> Outcome:
    told = []
    outcome = run_job(job, told.append, should_stop)
    assert told == sorted(set(told))
    return outcome


def test_done(tmp_path: Path):
    job = make_job(tmp_path)
    assert run(job) == Outcome(End.DONE)
    assert {path.name for path in job.folder.iterdir()} == {"done", "log.txt", "model.pkl", "results.jsonl"}
    assert run(job) == Outcome(End.TAKEN), "it is finished"
    assert {path.name for path in job.folder.iterdir()} == {"done", "log.txt", "model.pkl", "results.jsonl"}


def test_taken(tmp_path: Path):
    job = make_job(tmp_path)
    job.folder.mkdir()
    with locked(job.folder):
        assert run(job) == Outcome(End.TAKEN)
        assert {path.name for path in job.folder.iterdir()} == {"lock"}


def test_stopped_as_asked_and_gone_on_with(tmp_path: Path):
    job = make_job(tmp_path, steps=10)
    answers = iter([False] * 5 + [True] * 100)
    assert run(job, lambda: next(answers)).end == End.STOPPED
    assert status_of(job).state == JobState.INCOMPLETE
    assert run(job, lambda: True).end == End.STOPPED
    assert run(job) == Outcome(End.DONE)
    assert steps_recorded(job) == list(range(10))
    other = make_job(tmp_path / "other", steps=10)
    run(other)
    assert records(job) == records(other)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "RuntimeError: out of ideas at 0"),
        ("usage", "not like this"),
        ("nan", "at step 0 loss is nan; the job ends"),
    ],
)
def test_failed(tmp_path: Path, how: str, reason: str):
    job = make_job(tmp_path, how)
    for times in (1, 2, 3):
        outcome = run(job)
        assert outcome.end == End.FAILED
        assert outcome.reason.startswith(reason)
        status = status_of(job)
        assert status.state == JobState.FAILED
        assert (status.failure.reason, status.failure.times) == (outcome.reason, times)
        assert not (job.folder / "lock").exists()
    assert blocked_reason(job) == "", "one job, however often, is no kind"


def test_held_back(tmp_path: Path):
    for seed in range(3):
        note_outcome(make_job(tmp_path, seed=seed), "why")
    job = make_job(tmp_path, seed=3)
    assert run(job) == Outcome(End.HELD_BACK, "why")
    assert not job.folder.exists()


def test_many_ends_leave_no_descriptor_open(tmp_path: Path):
    if not Path("/proc").is_dir():
        pytest.skip("looks for open files in /proc, which only Linux has")
    jobs = [make_job(tmp_path, how, seed=seed) for seed, how in enumerate(("raise", "well", "usage", "nan", "well"))]
    run(make_job(tmp_path, seed=9))
    (tmp_path / make_job(tmp_path, seed=10).folder.name).write_text("in the way")
    before = len(os.listdir("/proc/self/fd"))
    for job in [*jobs, make_job(tmp_path, seed=10)]:
        run(job)
    assert len(os.listdir("/proc/self/fd")) == before
