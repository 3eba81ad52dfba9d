"""The state of a job, read off its folder and off the queue."""

import itertools
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.engine.lock import EXPIRY, LOCK_FILE, locked
from domainbed.records import mark_done
from domainbed.sweep.queue import Queue
from domainbed.sweep.status import JobState, Status, status_of, survey, tally
from tests.sweep.helpers import FOREIGN, alive_here, jobs_of, launch_words, lock_as, main, make_job, records

# What a lock file may be, and whether the job then runs, as far as the file tells.
LOCKS = {
    "none": False,
    "here alive": True,
    "here dead": False,
    "here another process of that number": False,
    "elsewhere fresh": True,
    "elsewhere old": False,
    "empty fresh": True,
    "empty old": False,
}
# What the queue may have of the job (its task is "9_0"), and whether the task runs.
QUEUES = {"none": None, "of others": None, "waits": "PENDING", "runs": "RUNNING", "gone": ""}


def write_lock(folder: Path, kind: str, slurm_job: str) -> None:
    owner = alive_here(slurm_job=slurm_job)
    if kind.startswith("here"):
        dead = {"here dead": {"pid": 2**22 + 1}, "here another process of that number": {"started": "1"}}
        lock_as(folder, replace(owner, **dead.get(kind, {})))
    elif kind.startswith("elsewhere"):
        lock_as(folder, replace(FOREIGN, slurm_job=slurm_job))
    elif kind.startswith("empty"):
        (folder / LOCK_FILE).touch()
    if kind.endswith("old"):
        then = time.time() - EXPIRY - 60
        os.utime(folder / LOCK_FILE, (then, then))


def test_every_combination(tmp_path: Path):
    """`done` counts above all, then who trains, then a failure, then the queue, then what is there."""
    parts = ("done", "failed", "attempt", "checkpoint")
    combinations = list(itertools.product(LOCKS, QUEUES, *[(False, True)] * len(parts)))
    first = make_job(tmp_path)
    n = len(combinations)
    jobs = [replace(first, config=replace(first.config, seed=i, output_dir=str(tmp_path / str(i)))) for i in range(n)]
    expected = []
    for job, (lock, queue, done, failed, attempt, checkpoint) in zip(jobs, combinations, strict=True):
        job.folder.mkdir()
        for is_there, name in ((done, "done"), (failed, "failed.json"), (attempt, "attempt.json")):
            if is_there:
                (job.folder / name).touch()
        if checkpoint:
            (job.folder / "checkpoint.pt").touch()
        write_lock(job.folder, lock, "9_0" if queue in ("waits", "runs", "gone") else "")

        is_running = LOCKS[lock]
        if "empty" not in lock and lock != "none" and queue in ("waits", "runs", "gone"):
            is_running = queue == "runs"  # SLURM knows better than the lock, be its process dead or alive
        if done:
            expected.append(JobState.DONE)
        elif is_running:
            expected.append(JobState.RUNNING)
        elif failed:
            expected.append(JobState.FAILED)
        elif queue in ("waits", "runs"):
            expected.append(JobState.QUEUED)
        elif attempt or checkpoint or lock != "none":
            expected.append(JobState.INCOMPLETE)
        else:
            expected.append(JobState.NOT_LAUNCHED)

    for queue, task_state in QUEUES.items():
        of_queue = [i for i, combination in enumerate(combinations) if combination[1] == queue]
        names = {"9_0": [jobs[i].folder.name for i in of_queue]} if task_state is not None else {"8": ["of others"]}
        has = {"9_0": task_state} if task_state else {"8": "RUNNING"}
        statuses = survey([jobs[i] for i in of_queue], None if queue == "none" else Queue(names, has))
        for i in of_queue:
            status = statuses[jobs[i]]
            assert status.state == expected[i], combinations[i]
            assert (status.owner is not None) == (status.state == JobState.RUNNING), combinations[i]
            assert (status.failure is not None) == (status.state == JobState.FAILED), combinations[i]
            is_left = combinations[i][0] != "none" or combinations[i][-1]
            assert status.has_leftovers == (expected[i] == JobState.DONE and is_left), combinations[i]
    assert set(expected) == set(JobState)


def test_nothing_is_there_yet(tmp_path: Path):
    assert survey([]) == {}
    assert status_of(make_job(tmp_path / "no" / "such")) == Status(JobState.NOT_LAUNCHED)


def test_from_first_to_last(tmp_path: Path):
    job = make_job(tmp_path)
    job.folder.mkdir()
    with locked(job.folder) as lock:
        lock.begin(2)
        status = status_of(job)
        assert status.state == JobState.RUNNING
        assert status.owner is not None
        assert (status.owner.pid, status.owner.step) == (os.getpid(), 2)
    assert status_of(job).state == JobState.NOT_LAUNCHED, "it left nothing"
    (job.folder / "log.txt").touch()
    assert status_of(job).state == JobState.INCOMPLETE


def test_a_file_in_a_job_folders_place(tmp_path: Path):
    job = make_job(tmp_path)
    job.folder.write_text("in the way")
    assert status_of(job).state == JobState.NOT_LAUNCHED
    job.folder.unlink()
    job.folder.symlink_to(tmp_path / "nowhere")
    assert status_of(job).state == JobState.NOT_LAUNCHED


@settings(max_examples=40)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_nothing_in_these_files_upsets_it(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    job = make_job(tmp_path_factory.mktemp("sweep"))
    job.folder.mkdir()
    (job.folder / "failed.json").write_bytes(content)
    assert status_of(job).state == JobState.FAILED
    (job.folder / LOCK_FILE).write_bytes(content)
    assert status_of(job).state == JobState.RUNNING, "fresh, whoever it may be"
    assert str(status_of(job).owner)


def test_counted_in_their_order(tmp_path: Path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(4)]
    (jobs[0].folder).mkdir()
    mark_done(jobs[0].folder)
    jobs[3].folder.mkdir()
    (jobs[3].folder / "log.txt").touch()
    assert tally(survey(jobs)) == "2 not launched, 1 incomplete, 1 done"


def test_leftovers_of_a_done_job_are_tidied_by_the_next_launch(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A job that was killed between its end and its tidying."""
    words = launch_words(tmp_path / "sweep")
    assert main(words) == 0
    jobs = jobs_of(words)
    before = records(jobs[0])
    kept = {"done", "model.pkl", "results.jsonl", "log.txt"}
    for name in ("checkpoint.pt", "checkpoint_previous.pt", "checkpoint.pt.part"):
        (jobs[0].folder / name).write_text("left")
    write_lock(jobs[0].folder, "here dead", "")
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out == f"3 jobs in {tmp_path / 'sweep'}: 3 done\n"
    assert {path.name for path in jobs[0].folder.iterdir()} == kept
    assert records(jobs[0]) == before


def test_strangers_in_the_sweeps_folder_stay_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture):
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
