"""The behavior of a SLURM task that can be tested without a cluster."""

import os
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.records import mark_done
from domainbed.sweep.job import Job
from domainbed.sweep.launchers.slurm import SlurmLauncher, SlurmOptions
from domainbed.sweep.launchers.slurm_task import Task, prepared_size
from domainbed.sweep.queue import slurm_folder, write_tasks
from domainbed.sweep.status import JobState
from tests.sweep.helpers import fail, make_job, states


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The calls of os.execv, which returns instead of replacing the process."""
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: called.append(words))
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "1")
    return called


def run_task(jobs: list[Job]) -> dict[str, str]:
    """Run a task whose launch has no other jobs."""
    return Task(60)(jobs, {jobs[0].kind: [job.folder.name for job in jobs]})


def test_process_is_replaced_after_a_failed_job(tmp_path: Path, execs: list[list[str]]):
    jobs = [make_job(tmp_path, "raise"), make_job(tmp_path), make_job(tmp_path, "usage")]
    run_task(jobs)
    assert states(jobs) == [JobState.FAILED, JobState.DONE, JobState.FAILED]
    assert len(execs) == 1, "not after the last job"


def test_failure_that_cannot_be_recorded_does_not_restart_the_process_forever(
    tmp_path: Path, execs: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    """A new process would not know of it, and start with the same job again."""
    monkeypatch.setattr("domainbed.sweep.run.record_failure", lambda folder, reason: None)
    jobs = [make_job(tmp_path, "raise"), make_job(tmp_path)]
    assert run_task(jobs) == {jobs[0].folder.name: "failed", jobs[1].folder.name: "done"}
    assert execs == []


def test_jobs_of_a_blocked_kind_are_not_started(tmp_path: Path, execs: list[list[str]]):
    """Failures count wherever the jobs ran; a finished job unblocks the kind."""
    jobs = [make_job(tmp_path, seed=seed) for seed in range(5)]
    for job in jobs[:3]:
        fail(job, "why")
    assert run_task(jobs) == dict.fromkeys((job.folder.name for job in jobs[3:]), "incomplete")
    assert states(jobs) == [JobState.FAILED] * 3 + [JobState.NOT_LAUNCHED] * 2
    other = make_job(tmp_path, seed=5)
    other.folder.mkdir()
    mark_done(other.folder)
    run_task([*jobs, other])
    assert states(jobs) == [JobState.FAILED] * 3 + [JobState.DONE] * 2


def test_task_records_that_it_started(tmp_path: Path, execs: list[list[str]], monkeypatch: pytest.MonkeyPatch):
    job = make_job(tmp_path)
    run_task([job])
    assert not list(tmp_path.rglob("*.started")), "outside of SLURM"
    write_tasks(tmp_path, "12", {"12_3": [job]})
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    run_task([job])
    assert (slurm_folder(tmp_path) / "12" / "12_3.started").exists()


@pytest.mark.parametrize(("cores", "before", "threads"), [("8", "2", "8"), (None, "2", "2"), (None, None, "1")])
def test_task_has_as_many_threads_as_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: str | None, before: str | None, threads: str
):
    for name, value in (("SLURM_CPUS_PER_TASK", cores), ("OMP_NUM_THREADS", before)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    done = make_job(tmp_path)
    done.folder.mkdir()
    mark_done(done.folder)
    run_task([done])
    assert os.environ["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(("minutes", "seconds", "is_requeued"), [(60, 600, True), (60, 1900, False), (4, 1, False)])
def test_task_without_progress_is_not_requeued_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int, seconds: float, is_requeued: bool
):
    task = Task(minutes)
    cache = tmp_path / "cache"
    task._current, task._start_time, task._made_progress = make_job(tmp_path, cache=str(cache)), 0.0, False
    task._prepared = prepared_size(str(cache))
    task._current.folder.mkdir(parents=True)
    monkeypatch.setattr("time.monotonic", lambda: seconds)
    args = [task._current], {}
    assert (task.checkpoint(*args) is not None) == is_requeued
    assert states([task._current]) == [JobState.NOT_LAUNCHED if is_requeued else JobState.FAILED]
    task._made_progress = True
    assert task.checkpoint(*args) is not None


@pytest.mark.parametrize("file", ["PACS-A.pack", "features/PACS-A.features.3"])
def test_prepared_data_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str):
    """Features are extracted, and the cache is filled, once for all jobs, which may take several time limits."""
    cache = tmp_path / "cache"
    (cache / "features").mkdir(parents=True)
    (cache / "features" / "of another dataset").write_bytes(bytes(9))
    job = make_job(tmp_path, cache=str(cache))
    job.folder.mkdir(parents=True)
    task = Task(60)
    task._current, task._start_time, task._made_progress = job, 0.0, False
    task._prepared = prepared_size(job.config.cache)
    assert task._prepared == 9
    monkeypatch.setattr("time.monotonic", lambda: 1900.0)
    (cache / file).write_bytes(bytes(100))
    assert task.checkpoint([job], {}) is not None
    task._prepared = prepared_size(job.config.cache)
    assert task.checkpoint([job], {}) is None


def test_tasks_load_only_files_that_nobody_else_can_write(tmp_path: Path):
    sweep_dir = tmp_path / "sweep"
    sweep_dir.mkdir()
    launcher = SlurmLauncher(SlurmOptions())
    launcher._make_private_folder(sweep_dir)
    sweep_dir.chmod(0o777)
    message = rf"^everybody can write to {sweep_dir}, and could run code as you .* from .*; pass --slurm_folder"
    with pytest.raises(UsageError, match=message):
        launcher._make_private_folder(sweep_dir)
    private = SlurmLauncher(SlurmOptions(slurm_folder=str(tmp_path / "mine")))
    private._make_private_folder(sweep_dir)
    (folder,) = (tmp_path / "mine").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.name.startswith("domainbed-")
