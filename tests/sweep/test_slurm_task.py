"""What a SLURM task does, as far as it needs no cluster to show it."""

import os
from pathlib import Path

import pytest

from domainbed.sweep.launchers.slurm_task import Task
from domainbed.sweep.status import JobState
from tests.sweep.helpers import make_job, states


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The fresh starts of the process, which goes on as it is."""
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: called.append(words))
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "1")
    return called


def test_behind_a_failed_job_a_fresh_process_goes_on(tmp_path: Path, execs: list[list[str]]):
    jobs = [make_job(tmp_path, "raise"), make_job(tmp_path), make_job(tmp_path, "usage")]
    Task(60)(jobs)
    assert states(jobs) == [JobState.FAILED, JobState.DONE, JobState.FAILED]
    assert len(execs) == 1, "behind the last there is nothing to do"


def test_a_failure_that_can_not_be_kept_is_not_met_again_and_again(
    tmp_path: Path, execs: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    """A fresh process would not know of it, and begin with the same job."""
    monkeypatch.setattr("domainbed.sweep.run.note_failure", lambda folder, reason: None)
    jobs = [make_job(tmp_path, "raise"), make_job(tmp_path)]
    assert Task(60)(jobs) == {jobs[0].folder.name: "failed", jobs[1].folder.name: "done"}
    assert execs == []


@pytest.mark.parametrize(("cores", "before", "threads"), [("8", "2", "8"), (None, "2", "2"), (None, None, "1")])
def test_a_task_has_as_many_threads_as_cores(
    monkeypatch: pytest.MonkeyPatch, cores: str | None, before: str | None, threads: str
):
    for name, value in (("SLURM_CPUS_PER_TASK", cores), ("OMP_NUM_THREADS", before)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    Task(60)([])
    assert os.environ["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(("minutes", "seconds", "is_requeued"), [(60, 600, True), (60, 1900, False), (4, 1, False)])
def test_a_task_that_gets_nothing_done_is_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int, seconds: float, is_requeued: bool
):
    task = Task(minutes)
    task._current, task._began, task._progressed = make_job(tmp_path), 0.0, False
    task._current.folder.mkdir(parents=True)
    monkeypatch.setattr("time.monotonic", lambda: seconds)
    again = task.checkpoint([task._current])
    assert (again is not None) == is_requeued
    assert states([task._current]) == [JobState.INCOMPLETE if is_requeued else JobState.FAILED] or is_requeued
    task._progressed = True
    assert task.checkpoint([task._current]) is not None
