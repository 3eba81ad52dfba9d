"""The bars of a launch on a terminal, and its events as JSON lines."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domainbed.sweep.display import BarDisplay
from domainbed.sweep.job import Job
from domainbed.sweep.json_output import JsonDisplay
from domainbed.sweep.launch import run_launch
from domainbed.sweep.launchers import JobEvent, Launcher, NoOptions
from domainbed.sweep.status import JobState, survey
from tests.processes import wait_until
from tests.sweep.helpers import live_owner, make_job, write_lock
from tests.test_terminal import Terminal


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal until the end of a test. (pytest replaces what a fixture assigns.)"""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def run_with_lock(job: Job, **owner) -> JobEvent:
    """Create the folder of a running job, and return the event of its start."""
    job.folder.mkdir()
    write_lock(job.folder, live_owner(**owner))
    return JobEvent(job, JobState.RUNNING)


def test_each_running_job_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    terminal = use_terminal(monkeypatch)
    jobs = [make_job(tmp_path, seed=seed, steps=100) for seed in range(4)]
    with BarDisplay(jobs) as display:
        for job in jobs[:2]:
            display.show(run_with_lock(job, step=60, first_step=20, seconds=80.0))
        display.refresh()
        bars = dict(display._bars)
        assert [(bars[job].n, bars[job].pos, bars[job].postfix) for job in jobs[:2]] == [
            (60, -1, "0.5 steps/s, 80 s left"),
            (60, -2, "0.5 steps/s, 80 s left"),
        ]
        display.show(JobEvent(jobs[0], JobState.RUNNING, steps=50))  # a record that arrives late
        assert (bars[jobs[0]].n, display._total.n) == (60, 120)
        display.show(JobEvent(jobs[0], JobState.DONE, steps=100))
        assert display._total.n == 160
        display.show(JobEvent(jobs[2], JobState.RUNNING))
        assert {job: bar.pos for job, bar in display._bars.items()} == {jobs[1]: -2, jobs[2]: -1}, "lines are reused"
        display.show(JobEvent(jobs[1], JobState.FAILED, reason="no luck"))
        display.show(JobEvent(jobs[2], JobState.RUNNING, reason="another process is training it"))
        display.show(JobEvent(jobs[3], JobState.RUNNING))
        display.show(JobEvent(jobs[3], JobState.PRUNED, steps=30, reason="it was behind"))
        assert (display._total.n, display._total.total) == (190, 330), "without the updates that pruning saves"
        assert not display._bars
        assert display._total.postfix == "3/4 jobs, 1 failed"
    assert "it was behind" not in terminal.getvalue()
    assert f"\033[31mFAILED\033[0m {jobs[1]}: no luck\n" in terminal.getvalue()


def test_locks_are_read_while_a_launch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Missing, damaged and hostile locks do no harm."""
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr("domainbed.sweep.display.REFRESH_INTERVAL", 0.01)
    jobs = [make_job(tmp_path, seed=seed, steps=100) for seed in range(3)]

    class ScriptedLauncher(Launcher):
        def launch(self, jobs, statuses, should_stop) -> Iterator[JobEvent]:
            yield run_with_lock(jobs[0], step=30, first_step=0, seconds=10.0)
            yield run_with_lock(jobs[1], step=10, seconds=float("nan"))
            (jobs[2].folder).mkdir()
            (jobs[2].folder / "lock").write_text('{"step": ')
            yield JobEvent(jobs[2], JobState.RUNNING)
            wait_until(lambda: "3.0 steps/s, 23 s left" in terminal.getvalue(), seconds=30)
            yield JobEvent(jobs[0], JobState.INCOMPLETE, reason="killed")

    result = run_launch(ScriptedLauncher(NoOptions()), jobs, survey(jobs))
    assert result.n_failed == 0
    assert f"{jobs[0]}: killed\n" in terminal.getvalue()
    assert capsys.readouterr().out.startswith("3 running after "), "this process holds the locks"


def test_events_are_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    now = [100.0]
    monkeypatch.setattr("domainbed.sweep.json_output.time.monotonic", lambda: now[0])
    jobs = [make_job(tmp_path, seed=seed, steps=100, test_envs=(seed % 3,)) for seed in range(6)]
    stream = io.StringIO()
    with JsonDisplay(jobs, stream) as display:
        display.show(JobEvent(jobs[0], JobState.RUNNING))
        display.show(JobEvent(jobs[0], JobState.RUNNING, steps=20))
        now[0] += 10
        display.show(JobEvent(jobs[0], JobState.RUNNING, steps=40))
        display.show(JobEvent(jobs[0], JobState.DONE, steps=100))
        display.show(JobEvent(jobs[1], JobState.FAILED, reason="why \ud800\x1b[2J\n  the log"))
        display.show(JobEvent(jobs[2], JobState.NOT_LAUNCHED, reason="blocked"))
        display.show(JobEvent(jobs[3], JobState.RUNNING, reason="another process is training it"))
        display.show(JobEvent(jobs[4], JobState.INCOMPLETE, reason="killed"))
        display.show(JobEvent(jobs[5], JobState.QUEUED))
    assert display.n_failed == 1
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["event"], event["job"]) for event in events] == [
        ("started", jobs[0].folder.name),
        ("progress", jobs[0].folder.name),
        ("progress", jobs[0].folder.name),
        ("done", jobs[0].folder.name),
        ("failed", jobs[1].folder.name),
        ("skipped", jobs[2].folder.name),
        ("skipped", jobs[3].folder.name),
        ("interrupted", jobs[4].folder.name),
        ("queued", jobs[5].folder.name),
    ]
    assert events[0]["rate"] is events[1]["rate"] is None
    assert {name: events[2][name] for name in ("step", "steps", "rate", "seconds_left")} == {
        "step": 40,
        "steps": 100,
        "rate": 2.0,
        "seconds_left": 30.0,
    }
    assert events[4]["reason"] == "why \ud800\x1b[2J\n  the log"
    assert {name: events[1][name] for name in ("dataset", "algorithm", "test_envs", "trial_seed")} == {
        "dataset": "ColoredDigits",
        "algorithm": "Misbehaving",
        "test_envs": [0],
        "trial_seed": 0,
    }
    assert capsys.readouterr() == ("", "")
