"""The status of a job, read from its folder and the queue."""

import itertools
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.engine.lock import HEARTBEAT_TIMEOUT, LOCK_FILE, locked
from domainbed.records import mark_done
from domainbed.sweep.queue import Queue
from domainbed.sweep.status import JobState, Status, count_states, read_status, survey
from tests.sweep.helpers import FOREIGN, jobs_of, launch_words, live_owner, main, make_job, records, write_lock

# Kinds of lock files, and whether the job is running according to the file.
LOCKS = {
    "none": False,
    "here alive": True,
    "here dead": False,
    "here reused pid": False,
    "elsewhere fresh": True,
    "elsewhere old": False,
    "empty fresh": True,
    "empty old": False,
}
# The queue's state of the job's task, which is "9_0": no queue, unknown to it, or one of SLURM's states.
QUEUES = {"none": None, "of others": None, "waits": "PENDING", "runs": "RUNNING", "gone": ""}


def create_lock(folder: Path, kind: str, slurm_job: str) -> None:
    owner = live_owner(slurm_job=slurm_job)
    if kind.startswith("here"):
        dead = {"here dead": {"pid": 2**22 + 1}, "here reused pid": {"started": "1"}}
        write_lock(folder, replace(owner, **dead.get(kind, {})))
    elif kind.startswith("elsewhere"):
        write_lock(folder, replace(FOREIGN, slurm_job=slurm_job))
    elif kind.startswith("empty"):
        (folder / LOCK_FILE).touch()
    if kind.endswith("old"):
        then = time.time() - HEARTBEAT_TIMEOUT - 60
        os.utime(folder / LOCK_FILE, (then, then))


def test_all_combinations(tmp_path: Path):
    """The order of precedence: `done`, a live owner, a failure, pruning, the queue, any other file."""
    parts = ("done", "failed", "pruned", "attempt", "checkpoint")
    combinations = list(itertools.product(LOCKS, QUEUES, *[(False, True)] * len(parts)))
    first = make_job(tmp_path)
    n = len(combinations)
    jobs = [replace(first, config=replace(first.config, seed=i, output_dir=str(tmp_path / str(i)))) for i in range(n)]
    expected = []
    for job, (lock, queue, done, failed, pruned, attempt, checkpoint) in zip(jobs, combinations, strict=True):
        job.folder.mkdir()
        names = ("done", "failed.json", "pruned.json", "attempt.json", "checkpoint.pt")
        for exists, name in zip((done, failed, pruned, attempt, checkpoint), names, strict=True):
            if exists:
                (job.folder / name).touch()
        create_lock(job.folder, lock, "9_0" if queue in ("waits", "runs", "gone") else "")

        is_running = LOCKS[lock]
        if "empty" not in lock and lock != "none" and queue in ("waits", "runs", "gone"):
            is_running = queue == "runs"  # SLURM takes precedence over the lock
        if done:
            expected.append(JobState.DONE)
        elif is_running:
            expected.append(JobState.RUNNING)
        elif failed:
            expected.append(JobState.FAILED)
        elif pruned:
            expected.append(JobState.PRUNED)
        elif queue in ("waits", "runs"):
            expected.append(JobState.QUEUED)
        elif attempt or checkpoint or lock != "none":
            expected.append(JobState.INCOMPLETE)
        else:
            expected.append(JobState.NOT_LAUNCHED)

    for queue, task_state in QUEUES.items():
        indices = [i for i, combination in enumerate(combinations) if combination[1] == queue]
        names = {"9_0": [jobs[i].folder.name for i in indices]} if task_state is not None else {"8": ["of others"]}
        has = {"9_0": task_state} if task_state else {"8": "RUNNING"}
        statuses = survey([jobs[i] for i in indices], None if queue == "none" else Queue(names, has))
        for i in indices:
            status = statuses[jobs[i]]
            assert status.state == expected[i], combinations[i]
            assert (status.owner is not None) == (status.state == JobState.RUNNING), combinations[i]
            assert (status.failure is not None) == (status.state == JobState.FAILED), combinations[i]
            has_files = combinations[i][0] != "none" or combinations[i][-1]
            assert status.has_leftovers == (expected[i] == JobState.DONE and has_files), combinations[i]
    assert set(expected) == set(JobState)


def test_missing_folders(tmp_path: Path):
    assert survey([]) == {}
    assert read_status(tmp_path / "no" / "such") == Status(JobState.NOT_LAUNCHED)


def test_states_during_the_life_of_a_job(tmp_path: Path):
    job = make_job(tmp_path)
    job.folder.mkdir()
    with locked(job.folder) as lock:
        lock.start_from(2)
        status = read_status(job.folder)
        assert status.state == JobState.RUNNING
        assert status.owner is not None
        assert (status.owner.pid, status.owner.step) == (os.getpid(), 2)
    assert read_status(job.folder).state == JobState.NOT_LAUNCHED, "the folder is empty"
    (job.folder / "log.txt").touch()
    assert read_status(job.folder).state == JobState.INCOMPLETE


def test_file_in_place_of_the_folder(tmp_path: Path):
    job = make_job(tmp_path)
    job.folder.write_text("in the way")
    assert read_status(job.folder).state == JobState.NOT_LAUNCHED
    job.folder.unlink()
    job.folder.symlink_to(tmp_path / "nowhere")
    assert read_status(job.folder).state == JobState.NOT_LAUNCHED


@settings(max_examples=40)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_any_file_content_is_accepted(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    job = make_job(tmp_path_factory.mktemp("sweep"))
    job.folder.mkdir()
    (job.folder / "failed.json").write_bytes(content)
    assert read_status(job.folder).state == JobState.FAILED
    (job.folder / LOCK_FILE).write_bytes(content)
    assert read_status(job.folder).state == JobState.RUNNING, "a fresh lock of an unknown owner"
    assert str(read_status(job.folder).owner)


def test_count_states(tmp_path: Path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(4)]
    (jobs[0].folder).mkdir()
    mark_done(jobs[0].folder)
    jobs[3].folder.mkdir()
    (jobs[3].folder / "log.txt").touch()
    assert count_states(survey(jobs)) == "2 not launched, 1 incomplete, 1 done"


def test_next_launch_removes_leftovers_of_finished_jobs(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Those of a job that was killed when it was done but had not removed them."""
    words = launch_words(tmp_path / "sweep")
    assert main(words) == 0
    jobs = jobs_of(words)
    before = records(jobs[0])
    kept = {"done", "model.pkl", "results.jsonl", "log.txt"}
    for name in ("checkpoint.pt", "checkpoint_previous.pt", f"checkpoint.pt.{32 * '0'}.part"):
        (jobs[0].folder / name).write_text("left")
    create_lock(jobs[0].folder, "here dead", "")
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out == f"3 jobs in {tmp_path / 'sweep'}: 3 done\n"
    assert {path.name for path in jobs[0].folder.iterdir()} == kept
    assert records(jobs[0]) == before


def test_unrelated_files_in_the_sweep_folder_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture):
    sweep = tmp_path / "sweep"
    (sweep / "notes").mkdir(parents=True)
    (sweep / "notes" / "lock").touch()
    (sweep / "0123456789abcdef0123456789abcdef").mkdir()  # another sweep's job
    (sweep / "0123456789abcdef0123456789abcdef" / "results.jsonl").touch()
    (sweep / "readme.txt").write_text("mine")
    assert main(launch_words(sweep)) == 0
    assert main(["delete_incomplete", "--failed", "--skip_confirmation", "--output_dir", sweep]) == 0
    assert "3 jobs in" in capsys.readouterr().out
    assert (sweep / "notes" / "lock").exists()
    assert (sweep / "0123456789abcdef0123456789abcdef" / "results.jsonl").exists()
    assert (sweep / "readme.txt").read_text() == "mine"
