"""The local launcher, with real worker processes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from domainbed.engine.interrupts import stop_on_signals
from domainbed.engine.lock import lock_owner, locked
from domainbed.errors import UsageError
from domainbed.sweep.failures import Failure
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import LAUNCHERS, JobEvent
from domainbed.sweep.launchers.base import skip_event
from domainbed.sweep.launchers.local import LocalLauncher, LocalOptions, worker_environments
from domainbed.sweep.processes import ignore_sigint
from domainbed.sweep.run import TAKEN
from domainbed.sweep.status import JobState, read_status, survey
from tests.sweep.helpers import launch_words, main, make_job, never, steps_recorded

SIGKILLED = "its process was killed by SIGKILL (possibly by the kernel, because memory ran out)"
REASONS = {
    "raise": "step 0: RuntimeError: out of ideas at 0, in misbehaving.py line 48",
    "killed": SIGKILLED,
    "usage": "not like this",
    "nan": "training diverged at step 0: loss is nan; records of earlier steps are kept",
    "exit": "its process exited with status 3",
    "leave a thread": "step 0: RuntimeError: a thread is still running, in misbehaving.py line 59",
}


def launch(jobs: Sequence[Job], workers: int = 1, should_stop: Callable[[], bool] = never) -> Iterator[JobEvent]:
    return LocalLauncher(LocalOptions(workers)).launch(jobs, survey(jobs), should_stop)


@pytest.mark.slow
def test_failing_jobs_do_not_affect_others(tmp_path: Path, quick_workers: None):
    """Every way to fail, one after another in one worker, and a good job after each."""
    jobs = []
    for seed, how in enumerate(REASONS):
        jobs += [make_job(tmp_path, how), make_job(tmp_path, seed=seed)]
    last: dict[Job, JobState] = {}
    reasons = {}
    steps = {job: [] for job in jobs}
    for event in launch(jobs):
        assert last.get(event.job) in (None, JobState.RUNNING), "no event follows the last one"
        last[event.job] = event.state
        steps[event.job].append(event.steps)
        reasons[event.job] = event.reason
    for job in jobs[1::2]:
        assert last[job] == JobState.DONE
        assert read_status(job.folder).state == JobState.DONE
        assert steps[job] == [0, 1, 2, 3, 3]
        assert steps_recorded(job) == [0, 1, 2]
    first_lines = {}
    for job, how in zip(jobs[::2], REASONS, strict=True):
        status = read_status(job.folder)
        assert last[job] == status.state == (JobState.INCOMPLETE if how == "killed" else JobState.FAILED)
        log = (job.folder / "log.txt").read_text()
        assert f"about to do {how}" in log or how == "nan"
        assert log.splitlines()[-1] in reasons[job], "the reason includes the end of the log"
        assert str(job.folder / "log.txt") in reasons[job]
        first_lines[how] = reasons[job].splitlines()[0].partition(". ")[0]
        assert (status.failure or Failure(REASONS[how])).reason.startswith(REASONS[how])
    assert first_lines == REASONS
    assert "Traceback" in (jobs[0].folder / "log.txt").read_text()
    assert "Traceback" not in (jobs[2 * list(REASONS).index("usage")].folder / "log.txt").read_text()


@pytest.mark.slow
def test_surviving_child_of_a_dead_worker_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It keeps the connection open. (With workers that start as they do outside of tests.)"""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (*_, event) = launch([make_job(tmp_path, "leave a child")])
    assert event.state == read_status(event.job.folder).state == JobState.INCOMPLETE
    assert event.reason.startswith(SIGKILLED)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # it is still alive


@pytest.mark.slow
def test_jobs_of_another_launch_are_skipped(tmp_path: Path, quick_workers: None):
    """They were not launched yet when this launch read their statuses."""
    done, running, failed, well = jobs = [make_job(tmp_path, seed=seed) for seed in range(4)]
    events = launch(jobs)
    done.folder.mkdir(parents=True)
    (done.folder / "done").write_text("done")
    running.folder.mkdir()
    failed.folder.mkdir()
    (failed.folder / "failed.json").touch()
    with locked(running.folder):
        events = list(events)
        assert {p.name for p in running.folder.iterdir()} == {"lock"}
    assert events[:3] == [
        JobEvent(done, JobState.DONE, steps=3),
        JobEvent(running, JobState.RUNNING, reason=TAKEN),
        JobEvent(failed, JobState.FAILED, reason="failed in another launch"),
    ]
    assert [(event.job, event.steps) for event in events[3:]] == [(well, steps) for steps in (0, 1, 2, 3, 3)]
    assert {p.name for p in done.folder.iterdir()} == {"done"}
    assert {p.name for p in failed.folder.iterdir()} == {"failed.json"}
    assert read_status(well.folder).state == JobState.DONE


def test_jobs_that_may_start(tmp_path: Path):
    job = make_job(tmp_path)
    startable = [state for state in JobState if skip_event(job, state, "") is None]
    assert startable == [JobState.NOT_LAUNCHED, JobState.INCOMPLETE]
    event = skip_event(job, JobState.INCOMPLETE, "out of ideas")
    assert event.state == JobState.INCOMPLETE
    assert event.reason.startswith("blocked, ")
    assert event.reason.endswith(": out of ideas")


@pytest.mark.slow
def test_stop_kills_the_workers(tmp_path: Path, quick_workers: None):
    launcher = LocalLauncher(LocalOptions(workers=2))
    events = launcher.launch([make_job(tmp_path), make_job(tmp_path, "sleep")], {}, never)
    for event in events:
        if event.state == JobState.DONE:
            break
    processes = [worker.process for worker in launcher._workers]
    assert any(process.is_alive() for process in processes), "a job is still sleeping"
    launcher.stop()
    assert not any(process.is_alive() for process in processes)


def environments(n_jobs: int, **options: int) -> list[dict[str, str]]:
    return worker_environments(LocalOptions(**options), n_jobs)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert environments(100) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert environments(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert environments(100, workers=2) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert environments(3, threads=1) == [{"OMP_NUM_THREADS": "1"}] * 3
    assert environments(100, workers=20) == [{"OMP_NUM_THREADS": "1"}] * 20


def test_one_worker_per_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(100)] == ["0", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(9, workers=3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments(100, workers=3)] == ["5", "7", "5"]


@pytest.mark.parametrize("name", ["workers", "threads"])
def test_invalid_options(name: str):
    with pytest.raises(UsageError, match=f"--{name} must be at least 1, not 0"):
        LocalOptions(**{name: 0})


def test_print_commands(tmp_path: Path, capsys: pytest.CaptureFixture):
    job = make_job(tmp_path / "with space")
    LocalLauncher(LocalOptions()).print_commands([job])
    printed = capsys.readouterr().out
    assert "-m domainbed.scripts.train --dataset ColoredDigits --algorithm Misbehaving --test_envs 0" in printed
    assert f"--output_dir '{job.folder}'" in printed
    assert not tmp_path.joinpath("with space").exists()


def test_multi_gpu_requires_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(launch_words(tmp_path / "sweep", launcher="multi_gpu")) == 2
    assert capsys.readouterr().err == (
        "error: the multi_gpu launcher found no GPU; use --command_launcher local to train on the CPU\n"
    )
    assert list(tmp_path.iterdir()) == [], "the launch is not logged"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    LAUNCHERS["multi_gpu"](LocalOptions(workers=2)).check()


@pytest.mark.slow
def test_stop_request_saves_running_jobs_and_starts_no_more(tmp_path: Path, quick_workers: None):
    """One while the first jobs are running, and one before any job has started."""
    (slow := tmp_path / "slow").touch()
    jobs = [make_job(tmp_path, "slow", cause=str(slow), seed=seed, steps=300) for seed in range(4)]
    events = launch(jobs, 2, lambda: all((job.folder / "results.jsonl").exists() for job in jobs[:2]))
    ended = {event.job: event for event in events if event.state != JobState.RUNNING}
    assert set(ended) == set(jobs[:2])
    final = [read_status(job.folder).state for job in jobs]
    assert final == [JobState.INCOMPLETE] * 2 + [JobState.NOT_LAUNCHED] * 2
    assert all(event.state == JobState.INCOMPLETE and not event.reason for event in ended.values())
    for job in jobs[:2]:
        assert {"checkpoint.pt", "results.jsonl"} < {path.name for path in job.folder.iterdir()}
        assert "stopped after" in (job.folder / "log.txt").read_text().splitlines()[-1]
    other = [make_job(tmp_path / "other", seed=seed) for seed in range(2)]
    list(launch(other, 2, lambda: True))
    assert JobState.DONE not in [read_status(job.folder).state for job in other]


@pytest.mark.slow
def test_killed_job_resumes_from_its_checkpoint(tmp_path: Path, quick_workers: None):
    """Killed as by the kernel when memory runs out; the next launch repeats no step."""
    (cause := tmp_path / "cause").touch()
    job = make_job(tmp_path, "killed", at=5, cause=str(cause), steps=9, checkpoint_freq=2, save_every=1e-9)
    (*_, last) = launch([job])
    assert last.state == read_status(job.folder).state == JobState.INCOMPLETE
    assert last.reason.startswith(SIGKILLED)
    assert steps_recorded(job) == [0, 2, 4]
    cause.unlink()
    assert [event.steps for event in launch([job])] == [0, 7, 9, 9]
    assert read_status(job.folder).state == JobState.DONE
    assert steps_recorded(job) == [0, 2, 4, 6, 8]
    assert "Resuming from checkpoint at step 5" in (job.folder / "log.txt").read_text()


@pytest.mark.slow
def test_worker_stopped_by_sigterm_affects_no_other_job(tmp_path: Path, quick_workers: None):
    """SIGTERM is sent to the process that `status` prints."""
    slow = [make_job(tmp_path, "slow", seed=seed, steps=100, checkpoint_freq=100) for seed in range(2)]
    jobs = [slow[0], make_job(tmp_path), slow[1], make_job(tmp_path, seed=1)]
    last = {}
    for event in launch(jobs):
        last[event.job] = event.state
        if event.state == JobState.RUNNING and event.job in slow and event.steps == 1:
            os.kill(lock_owner(event.job.folder).pid, signal.SIGTERM)
    assert [last[job] for job in jobs] == [JobState.INCOMPLETE, JobState.DONE] * 2
    assert [read_status(job.folder).state for job in jobs] == [JobState.INCOMPLETE, JobState.DONE] * 2


@pytest.mark.parametrize("receiver", ["main thread", "other thread"])
def test_ctrl_c_during_the_start_of_a_worker_reaches_only_the_launcher(receiver: str):
    program = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    children = []
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait, daemon=True)  # like those of tqdm and OpenMP

    def start() -> None:
        with ignore_sigint():
            os.kill(os.getpid(), signal.SIGINT)
            children.append(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True))

    if receiver == "other thread":
        thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        with stop_on_signals() as stop_request:
            start()
            assert stop_request.signals == [signal.SIGINT]
    finally:
        is_over.set()
    assert [child.stdout for child in children] == ["True\n"] * 2
