"""Sweeps that are cancelled, by `sweep cancel` or `scancel`, and launched again."""

from pathlib import Path

import pytest

from domainbed.sweep.queue import read_queue
from domainbed.sweep.status import JobState
from tests.processes import wait_until
from tests.slurm.sweeps import Sweep, check_done_once, is_training, log_of, resumed_from, slurm, undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 101
GRID = ["--algorithms", "Gated", "--n_hparams", "1", "--n_trials", "1", "--steps", str(STEPS)]
TWO_AT_ONCE = ["--slurm_array_parallelism", "2"]


def test_cancelled_jobs_are_resumed_by_the_next_launch(tmp_path: Path):
    """After `sweep cancel`, and after `scancel`."""
    sweep = Sweep(tmp_path / "jobs", *GRID, "--import", "tests.slurm.gated", "--hparams", '{"batch_size": 8}')
    started = sweep.jobs[:2]
    sweep.launch(*TWO_AT_ONCE)
    expected = undisturbed(sweep.jobs, tmp_path)
    wait_until(lambda: all(is_training(job) for job in started), sweep.describe)
    assert sweep.states() == [JobState.RUNNING, JobState.RUNNING, JobState.QUEUED]

    cancelled = sweep.command("cancel", "--skip_confirmation")
    assert (cancelled.status, cancelled.stderr) == (3, "")
    assert "Now: 1 not launched, 2 incomplete" in cancelled.stdout
    assert [log_of(job).count("stopped after") for job in started] == [1, 1]
    assert not any((job.folder / "lock").exists() for job in started)

    again = sweep.launch(*TWO_AT_ONCE)
    assert ": 3 tasks, 3 jobs;" in again.stdout
    wait_until(lambda: all(resumed_from(job) for job in started), sweep.describe)
    (number,) = {task.partition("_")[0] for task in sweep.submissions()[-1]}
    slurm("scancel", number)
    wait_until(lambda: not read_queue(sweep.folder).submissions(), sweep.describe)
    assert sweep.states() == [JobState.INCOMPLETE, JobState.INCOMPLETE, JobState.NOT_LAUNCHED]

    sweep.open_gate()
    sweep.launch("--jobs_per_task", 3)
    sweep.wait_until_done()
    check_done_once(sweep, expected)
    for job in started:
        first, second = resumed_from(job)
        assert 1 < first < second, "each time from a later step"


def test_waiting_tasks_are_queued_and_cancelled(tmp_path: Path):
    sweep = Sweep(tmp_path / "jobs", *GRID, "--import", "tests.slurm.gated")
    sweep.launch("--slurm_extra", "hold")
    assert sweep.states() == [JobState.QUEUED] * 3
    status = sweep.command("status")
    assert (status.status, status.stderr) == (3, "")
    assert status.stdout.splitlines()[-1].startswith("0 of 3 jobs done; 0 of 303 updates")
    assert "SLURM job" not in sweep.launch("--slurm_extra", "hold").stdout, "no job is submitted twice"
    cancelled = sweep.command("cancel", "--skip_confirmation")
    assert (cancelled.status, cancelled.stdout) == (3, f"3 jobs in {sweep.folder}: 3 queued\nNow: 3 not launched\n")
