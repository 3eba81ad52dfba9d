"""The local launcher, with real worker processes."""

from pathlib import Path

import pytest

import tests.sweep.misbehaving  # noqa: F401  registers the algorithm
from domainbed.engine.config import JobConfig
from domainbed.engine.lock import locked
from domainbed.errors import UsageError
from domainbed.records import read_job
from domainbed.sweep.job import Job, JobState
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.launchers.local import LocalLauncher, worker_environments


def make_job(tmp_path: Path, how: str, seed: int = 0) -> Job:
    config = JobConfig(
        dataset="ColoredDigits",
        algorithm="Misbehaving",
        test_envs=(0,),
        steps=3,
        checkpoint_freq=1,
        seed=seed,
        hparams=f'{{"how": "{how}", "batch_size": 4}}',
        imports=("tests.sweep.misbehaving",),
    )
    return Job.in_sweep(config, tmp_path)


SIGKILLED = "its process was ended by SIGKILL (the kernel does so when memory runs out)"
WAYS = {
    "raise": "RuntimeError: out of ideas",
    "killed": SIGKILLED,
    "usage": "not like this",
    "exit": "its process ended with status 3",
    "leave a thread": "RuntimeError: a thread goes on",
    "leave a child": SIGKILLED,
}


@pytest.mark.slow
def test_a_job_that_fails_takes_nobody_with_it(tmp_path: Path):
    """Every way to fail, one behind the other in one worker, and a good job after each."""
    jobs = []
    for seed, how in enumerate(WAYS):
        jobs += [make_job(tmp_path, how), make_job(tmp_path, "well", seed)]
    last: dict[Job, JobState] = {}
    reasons = {}
    steps = {job: [] for job in jobs}
    for update in LocalLauncher(workers=1).launch(jobs):
        assert last.get(update.job) in (None, JobState.RUNNING), "told again after its end"
        last[update.job] = update.state
        steps[update.job].append(update.steps)
        reasons[update.job] = update.reason
    for job in jobs[1::2]:
        assert last[job] == JobState.DONE
        assert job.state() == JobState.DONE
        assert steps[job] == [1, 2, 3, 3]
        assert [r["step"] for r in read_job(job.folder)[0]] == [0, 1, 2]
    first_lines = {}
    for job, how in zip(jobs[::2], WAYS, strict=True):
        assert last[job] == JobState.FAILED
        assert job.state() == JobState.INCOMPLETE
        log = (job.folder / "log.txt").read_text()
        assert f"about to do {how}" in log
        assert log.splitlines()[-1] in reasons[job], "the end of the log is told"
        assert str(job.folder / "log.txt") in reasons[job]
        first_lines[how] = reasons[job].splitlines()[0]
    assert first_lines == WAYS
    assert "Traceback" in (jobs[0].folder / "log.txt").read_text()
    assert "Traceback" not in (jobs[4].folder / "log.txt").read_text()


@pytest.mark.slow
def test_jobs_that_another_launch_took_on_are_passed_over(tmp_path: Path):
    done, running, well = (make_job(tmp_path, "well", seed) for seed in range(3))
    done.folder.mkdir(parents=True)
    (done.folder / "done").write_text("done")
    running.folder.mkdir()
    with locked(running.folder):
        updates = list(LocalLauncher(workers=1).launch([done, running, well]))
    assert [(u.job, u.state) for u in updates[:2]] == [(done, JobState.DONE), (running, JobState.RUNNING)]
    assert [u.steps for u in updates] == [3, 0, 1, 2, 3, 3]
    assert {p.name for p in done.folder.iterdir()} == {"done"}
    assert {p.name for p in running.folder.iterdir()} == {".lock"}
    assert well.state() == JobState.DONE


@pytest.mark.slow
def test_stopping_ends_the_workers(tmp_path: Path):
    launcher = LocalLauncher(workers=2)
    updates = launcher.launch([make_job(tmp_path, "well"), make_job(tmp_path, "sleep")])
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
        LocalLauncher(workers=0)


def test_dummy_prints_commands(tmp_path: Path, capsys: pytest.CaptureFixture):
    job = make_job(tmp_path / "with space", "well")
    assert list(LAUNCHERS["dummy"]().launch([job])) == []
    printed = capsys.readouterr().out
    assert "-m domainbed.scripts.train --dataset ColoredDigits --algorithm Misbehaving --test_envs 0" in printed
    assert f"--output_dir '{job.folder}'" in printed
    assert not tmp_path.joinpath("with space").exists()
