"""The local launcher, with real worker processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from domainbed.engine.interrupts import stop_on_signals
from domainbed.engine.lock import lock_owner, locked
from domainbed.errors import UsageError
from domainbed.sweep.failures import Failure
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.launchers.base import passed_over
from domainbed.sweep.launchers.local import LocalLauncher, worker_environments
from domainbed.sweep.status import JobState, status_of
from domainbed.sweep.worker import ignore_sigint
from tests.sweep.helpers import fill_folder, launch_words, main, make_job, steps_recorded

SIGKILLED = "its process was ended by SIGKILL (the kernel does so when memory runs out)"
WAYS = {
    "raise": "RuntimeError: out of ideas at 0",
    "killed": SIGKILLED,
    "usage": "not like this",
    "nan": "at step 0 loss is nan; the job ends, its records up to here stay",
    "exit": "its process ended with status 3",
    "leave a thread": "RuntimeError: a thread goes on",
}


@pytest.mark.slow
def test_a_job_that_fails_takes_nobody_with_it(tmp_path: Path, quick_workers: None):
    """Every way to fail, one behind the other in one worker, and a good job after each."""
    jobs = []
    for seed, how in enumerate(WAYS):
        jobs += [make_job(tmp_path, how), make_job(tmp_path, seed=seed)]
    last: dict[Job, JobState] = {}
    reasons = {}
    steps = {job: [] for job in jobs}
    for update in LocalLauncher({"workers": 1}).launch(jobs):
        assert last.get(update.job) in (None, JobState.RUNNING), "told again after its end"
        last[update.job] = update.state
        steps[update.job].append(update.steps)
        reasons[update.job] = update.reason
    for job in jobs[1::2]:
        assert last[job] == JobState.DONE
        assert status_of(job).state == JobState.DONE
        assert steps[job] == [1, 2, 3, 3]
        assert steps_recorded(job) == [0, 1, 2]
    first_lines = {}
    for job, how in zip(jobs[::2], WAYS, strict=True):
        status = status_of(job)
        assert last[job] == status.state == (JobState.INCOMPLETE if how == "killed" else JobState.FAILED)
        log = (job.folder / "log.txt").read_text()
        assert f"about to do {how}" in log or how == "nan"
        assert log.splitlines()[-1] in reasons[job], "the end of the log is told"
        assert str(job.folder / "log.txt") in reasons[job]
        first_lines[how] = reasons[job].splitlines()[0].partition(". ")[0]
        assert (status.failure or Failure(WAYS[how])).reason.startswith(WAYS[how])
    assert first_lines == WAYS
    assert "Traceback" in (jobs[0].folder / "log.txt").read_text()
    assert "Traceback" not in (jobs[2 * list(WAYS).index("usage")].folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_dead_workers_child_that_lives_on_is_not_waited_for(tmp_path: Path):
    """It holds all that its parent held open. (With workers that are started as they are outside of tests.)"""
    began = time.monotonic()
    (*_, update) = LocalLauncher({"workers": 1}).launch([make_job(tmp_path, "leave a child")])
    assert update.state == status_of(update.job).state == JobState.INCOMPLETE
    assert update.reason.startswith(SIGKILLED)
    assert time.monotonic() - began < 200, "the child sleeps 300 s"


@pytest.mark.slow
def test_jobs_that_another_launch_took_on_are_passed_over(tmp_path: Path, quick_workers: None):
    done, running, well = (make_job(tmp_path, seed=seed) for seed in range(3))
    done.folder.mkdir(parents=True)
    (done.folder / "done").write_text("done")
    running.folder.mkdir()
    with locked(running.folder):
        updates = list(LocalLauncher({"workers": 1}).launch([done, running, well]))
        assert {p.name for p in running.folder.iterdir()} == {"lock"}
    assert [(u.job, u.state) for u in updates[:2]] == [(done, JobState.DONE), (running, JobState.RUNNING)]
    assert [u.steps for u in updates] == [3, 0, 1, 2, 3, 3]
    assert {p.name for p in done.folder.iterdir()} == {"done"}
    assert status_of(well).state == JobState.DONE


@pytest.mark.slow
def test_stopping_at_once_ends_the_workers(tmp_path: Path, quick_workers: None):
    launcher = LocalLauncher({"workers": 2})
    updates = launcher.launch([make_job(tmp_path), make_job(tmp_path, "sleep")])
    for update in updates:
        if update.state == JobState.DONE:
            break
    processes = [worker.process for worker in launcher._running]
    assert any(process.is_alive() for process in processes), "the sleeper sleeps on"
    launcher.stop()
    assert not any(process.is_alive() for process in processes)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert worker_environments(None, 100) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert worker_environments(None, 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert worker_environments(2, 100) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert worker_environments(None, 3, threads=1) == [{"OMP_NUM_THREADS": "1"}] * 3
    assert worker_environments(20, 100) == [{"OMP_NUM_THREADS": "1"}] * 20


def test_a_worker_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(None, 100)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(3, 100)] == ["5", "7", "5"]


def test_no_workers():
    with pytest.raises(UsageError, match="--workers must be at least 1, not 0"):
        LocalLauncher({"workers": 0})


def test_dummy_prints_commands(tmp_path: Path, capsys: pytest.CaptureFixture):
    job = make_job(tmp_path / "with space")
    assert list(LAUNCHERS["dummy"]({}).launch([job])) == []
    printed = capsys.readouterr().out
    assert "-m domainbed.scripts.train --dataset ColoredDigits --algorithm Misbehaving --test_envs 0" in printed
    assert f"--output_dir '{job.folder}'" in printed
    assert not tmp_path.joinpath("with space").exists()


def test_multi_gpu_wants_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(launch_words(tmp_path / "sweep", launcher="multi_gpu")) == 2
    assert capsys.readouterr().err == (
        "error: launcher multi_gpu finds no GPU here; --command_launcher local trains on the CPU\n"
    )
    assert list(tmp_path.iterdir()) == [], "a launch that is refused asked for nothing"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    LAUNCHERS["multi_gpu"]({"workers": 2}).check()
    assert [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(3, 9)] == ["0", "1", "0"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in worker_environments(None, 9)] == ["0", "1"]


@pytest.mark.slow
def test_asked_to_stop_it_ends_with_all_saved_and_begins_nothing_more(tmp_path: Path, quick_workers: None):
    """A stop while the first jobs run, and one before anything was begun."""
    (slow := tmp_path / "slow").touch()
    jobs = [make_job(tmp_path, "slow", cause=str(slow), seed=seed, steps=300) for seed in range(4)]
    launcher = LocalLauncher({"workers": 2})
    updates = list(launcher.launch(jobs, lambda: all((job.folder / "results.jsonl").exists() for job in jobs[:2])))
    ended = {u.job: u for u in updates if u.state != JobState.RUNNING}
    assert set(ended) == set(jobs[:2])
    assert [status_of(job).state for job in jobs] == [JobState.INCOMPLETE] * 2 + [JobState.NOT_LAUNCHED] * 2
    assert all(update.state == JobState.INCOMPLETE and not update.reason for update in ended.values())
    for job in jobs[:2]:
        assert {"checkpoint.pt", "results.jsonl"} < {path.name for path in job.folder.iterdir()}
        assert "stopped after" in (job.folder / "log.txt").read_text().splitlines()[-1]
    other = [make_job(tmp_path / "other", seed=seed) for seed in range(2)]
    list(launcher.launch(other, lambda: True))
    assert JobState.DONE not in [status_of(job).state for job in other]


@pytest.mark.slow
def test_a_killed_job_goes_on_from_its_checkpoint(tmp_path: Path, quick_workers: None):
    """As the kernel does when memory runs out; the next launch takes no step twice."""
    (cause := tmp_path / "cause").touch()
    job = make_job(tmp_path, "killed", at=5, cause=str(cause), steps=9, checkpoint_freq=2)
    (*_, last) = LocalLauncher({"workers": 1}).launch([job])
    assert last.state == status_of(job).state == JobState.INCOMPLETE
    assert last.reason.startswith(SIGKILLED)
    assert steps_recorded(job) == [0, 2, 4]
    cause.unlink()
    assert [u.steps for u in LocalLauncher({"workers": 1}).launch([job])] == [7, 9, 9]
    assert status_of(job).state == JobState.DONE
    assert steps_recorded(job) == [0, 2, 4, 6, 8]
    assert "This job goes on from its checkpoint after 5 steps." in (job.folder / "log.txt").read_text()


@pytest.mark.slow
def test_a_worker_that_was_sent_home_harms_no_other_job(tmp_path: Path, quick_workers: None):
    """Somebody sends SIGTERM to the process that `status` shows."""
    slow = [make_job(tmp_path, "slow", seed=seed, steps=100, checkpoint_freq=100) for seed in range(2)]
    jobs = [slow[0], make_job(tmp_path), slow[1], make_job(tmp_path, seed=1)]
    last = {}
    for update in LocalLauncher({"workers": 1}).launch(jobs):
        last[update.job] = update.state
        if update.state == JobState.RUNNING and update.job in slow and update.steps == 1:
            os.kill(lock_owner(update.job.folder).pid, signal.SIGTERM)
    assert [last[job] for job in jobs] == [JobState.INCOMPLETE, JobState.DONE] * 2
    assert [status_of(job).state for job in jobs] == [JobState.INCOMPLETE, JobState.DONE] * 2


def test_what_failed_in_another_launch_is_not_tried_again_by_this_one(tmp_path: Path):
    job = make_job(tmp_path)
    assert passed_over(job, status_of(job).state) is None
    fill_folder(job, JobState.FAILED)
    update = passed_over(job, status_of(job).state)
    assert (update.state, update.reason) == (JobState.FAILED, "it has failed in another launch")


@pytest.mark.parametrize("hears", ["the main thread", "another thread"])
def test_a_ctrl_c_while_a_worker_starts_is_the_launchers_and_not_lost(hears: str):
    program = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    children = []
    over = threading.Event()
    other = threading.Thread(target=over.wait, daemon=True)  # as tqdm and OpenMP have them

    def start() -> None:
        with ignore_sigint():
            os.kill(os.getpid(), signal.SIGINT)
            children.append(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True))

    if hears == "another thread":
        other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        with stop_on_signals() as asked_to_stop:
            start()
            assert asked_to_stop.signals == [signal.SIGINT]
    finally:
        over.set()
    assert [child.stdout for child in children] == ["True\n"] * 2
