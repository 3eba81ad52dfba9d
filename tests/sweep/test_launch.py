"""The course of a launch: the order of its jobs, and what it prints for a launcher's events."""

import os
import re
import signal
from pathlib import Path

import pytest

from domainbed.records import append_record, mark_done
from domainbed.sweep.launch import launch_order, run_launch
from domainbed.sweep.launchers import JobEvent, Launcher, NoOptions
from domainbed.sweep.status import JobState, survey
from tests.sweep.helpers import LauncherHere, fail, make_job, states

# --- events


def test_events_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = [make_job(tmp_path, seed=seed, test_envs=(seed % 3,), trial_seed=seed // 3) for seed in range(6)]
    other_kind = make_job(tmp_path, dataset="RotatedDigits")
    jobs.append(other_kind)

    class ScriptedLauncher(Launcher):
        def launch(self, jobs, statuses, should_stop):
            yield JobEvent(jobs[0], JobState.RUNNING, steps=2)
            yield JobEvent(jobs[0], JobState.DONE, steps=3)
            yield JobEvent(jobs[1], JobState.FAILED, reason="why\n  the log")
            yield JobEvent(jobs[2], JobState.NOT_LAUNCHED, reason="blocked: why")
            yield JobEvent(jobs[3], JobState.NOT_LAUNCHED, reason="blocked: why")
            yield JobEvent(other_kind, JobState.NOT_LAUNCHED, reason="blocked: why")
            yield JobEvent(jobs[4], JobState.INCOMPLETE, reason="killed")
            yield JobEvent(jobs[5], JobState.FAILED, reason="why\n  the log")

    assert run_launch(ScriptedLauncher(NoOptions()), jobs, survey(jobs)).n_failed == 2
    output = capsys.readouterr()
    assert output.err == (
        f"FAILED {jobs[1]}: why\n  the log\n{jobs[2]}: blocked: why\n{other_kind}: blocked: why\n"
        f"{jobs[4]}: killed\n"
        f"FAILED {jobs[5]}: why\n  the log\n"
    )
    ended = [(jobs[0], "done"), (jobs[1], "failed"), (jobs[4], "incomplete"), (jobs[5], "failed")]
    expected = [f"[{i}/7] # s: {state}: {job}" for i, (job, state) in enumerate(ended, start=1)]
    assert re.sub(r"\b\d+ s", "# s", output.out).splitlines() == [*expected, "7 not launched after # s"]


def test_stop_request_reaches_the_launcher(tmp_path: Path):
    answers = []

    class AskingLauncher(Launcher):
        def launch(self, jobs, statuses, should_stop):
            answers.append(should_stop())
            signal.raise_signal(signal.SIGTERM)
            answers.append(should_stop())
            return iter(())

    jobs = [make_job(tmp_path)]
    assert run_launch(AskingLauncher(NoOptions()), jobs, survey(jobs)).stop_signal == signal.SIGTERM
    assert answers == [False, True]


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.INCOMPLETE, JobState.DONE])
@pytest.mark.parametrize("broken", ["a pipe without a reader", "/dev/full"])
def test_output_that_cannot_be_written_stops_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: JobState, broken: str
):
    """The workers must save their jobs, not be killed."""
    stopped = []

    class AskingLauncher(Launcher):
        def launch(self, jobs, statuses, should_stop):
            yield JobEvent(jobs[0], state, reason="why")
            stopped.append(should_stop())
            yield JobEvent(jobs[1], state, reason="why not")

    if broken == "/dev/full":
        descriptor = os.open(broken, os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    jobs = [make_job(tmp_path, seed=seed) for seed in range(2)]
    with open(descriptor, "w") as stream, monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(f"sys.{name}", stream)
        assert run_launch(AskingLauncher(NoOptions()), jobs, survey(jobs)).stop_signal == signal.SIGTERM
    assert stopped == [True]


def test_failed_jobs_to_run_are_retried(tmp_path: Path):
    """Others stay failed, and do not block the kind."""
    jobs = [make_job(tmp_path, seed=seed) for seed in range(5)]
    for job in jobs[:4]:
        fail(job, "why")
    result = run_launch(LauncherHere(NoOptions()), jobs[2:], survey(jobs))
    assert states(jobs) == [JobState.FAILED] * 2 + [JobState.DONE] * 3
    assert [status.state for status in result.statuses.values()] == states(jobs)
    assert (result.n_failed, result.stop_signal) == (0, None)


# --- order


def finish(folder: Path, step_time, **kwargs):
    """Create the folder of a finished job whose updates took `step_time` seconds."""
    job = make_job(folder, hparams=None, **kwargs)
    job.folder.mkdir()
    append_record(job.folder, {"step": 0, "step_time": 99.0})
    append_record(job.folder, {"step": 2, "step_time": step_time})
    mark_done(job.folder)
    return job


def test_jobs_that_take_longest_start_first(tmp_path: Path):
    kinds = {"quick": "ERM", "slow": "Fishr", "unknown": "CORAL", "invalid": "VREx"}
    finished = [finish(tmp_path, 0.5, algorithm="ERM"), finish(tmp_path, 4.0, algorithm="Fishr")]
    finished.append(finish(tmp_path, "long", algorithm="VREx"))

    def make(kind: str, **kwargs):
        return make_job(tmp_path, algorithm=kinds[kind], hparams=None, **kwargs)

    half_done = make("unknown", seed=7)
    half_done.folder.mkdir()
    append_record(half_done.folder, {"step": 0, "step_time": 0.001})
    jobs = [
        make("quick", seed=1, steps=20),
        make("unknown", seed=2),
        make("slow", seed=3, steps=2),
        make("invalid", seed=4),
        make("quick", seed=5, steps=10),
        make("slow", seed=6, steps=3),
        half_done,
    ]
    ordered = launch_order(jobs, survey([*finished, *jobs]))
    assert [job.config.seed for job in ordered] == [2, 4, 7, 6, 1, 3, 5]


def test_trials_start_one_after_another(tmp_path: Path):
    """However long their jobs take, and whether that is known or not."""
    finished = [finish(tmp_path, 0.5, algorithm="ERM"), finish(tmp_path, 4.0, algorithm="Fishr")]
    kinds = ["CORAL", "ERM", "Fishr"]
    jobs = [make_job(tmp_path, algorithm=kind, hparams=None, trial_seed=t) for kind in kinds for t in (2, 0, 1)]
    ordered = [(job.config.trial_seed, job.config.algorithm) for job in launch_order(jobs, survey([*finished, *jobs]))]
    assert ordered == [(trial, kind) for trial in range(3) for kind in ("CORAL", "Fishr", "ERM")]


def test_order_is_kept_without_finished_jobs(tmp_path: Path):
    jobs = [make_job(tmp_path, seed=seed, steps=seed + 1) for seed in range(5)]
    assert launch_order(jobs, survey(jobs)) == jobs
    assert launch_order([], survey(jobs)) == []
