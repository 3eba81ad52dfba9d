"""What a launch tells while it goes, of a launcher's made-up updates."""

import re
from pathlib import Path

import pytest

from domainbed.sweep.follow import follow
from domainbed.sweep.launchers import Launcher, Update
from domainbed.sweep.status import JobState
from tests.sweep.helpers import make_job


def test_told_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = [make_job(tmp_path, seed=seed, test_envs=(seed % 3,), trial_seed=seed // 3) for seed in range(6)]
    of_another_kind = make_job(tmp_path, dataset="RotatedDigits")
    jobs.append(of_another_kind)

    class MadeUp(Launcher):
        def launch(self, jobs, should_stop=lambda: False):
            yield Update(jobs[0], JobState.RUNNING, steps=2)
            yield Update(jobs[0], JobState.DONE, steps=3)
            yield Update(jobs[1], JobState.FAILED, reason="why\n  the log")
            yield Update(jobs[2], JobState.NOT_LAUNCHED, reason="held back: why")
            yield Update(jobs[3], JobState.NOT_LAUNCHED, reason="held back: why")
            yield Update(of_another_kind, JobState.NOT_LAUNCHED, reason="held back: why")
            yield Update(jobs[4], JobState.INCOMPLETE, reason="killed")
            yield Update(jobs[5], JobState.FAILED, reason="why\n  the log")

    assert follow(MadeUp({}), jobs, lambda: False) == 2, "so many failed"
    told = capsys.readouterr()
    assert told.err == (
        f"FAILED {jobs[1]}: why\n  the log\n{jobs[2]}: held back: why\n{of_another_kind}: held back: why\n"
        f"{jobs[4]}: killed\n"
        f"FAILED {jobs[5]}: why\n  the log\n"
    )
    lines = ["done", "failed", "incomplete", "failed"]
    of = (jobs[0], jobs[1], jobs[4], jobs[5])
    expected = [f"[{i}/7] # s: {state}: {job}" for i, (state, job) in enumerate(zip(lines, of, strict=True), start=1)]
    assert re.sub(r"\] \d+ s", "] # s", told.out).splitlines() == expected


def test_the_request_to_stop_reaches_the_launcher(tmp_path: Path):
    asked = []

    class Obedient(Launcher):
        def launch(self, jobs, should_stop=lambda: False):
            asked.append(should_stop())
            return iter(())

    follow(Obedient({}), [make_job(tmp_path)], lambda: True)
    assert asked == [True]
