"""Sweeps that are cancelled, by our command or SLURM's, and launched again."""

from pathlib import Path

import pytest

from domainbed.sweep.queue import read_queue
from domainbed.sweep.status import JobState
from tests.processes import wait_until
from tests.slurm.sweeps import Sweep, check_done_once, log_of, slurm, trains, undisturbed, went_on_after

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 101
GRID = ["--algorithms", "Gated", "--n_hparams", "1", "--n_trials", "1", "--steps", str(STEPS)]
TWO_AT_ONCE = ["--slurm_array_parallelism", "2"]


def test_what_was_cancelled_goes_on_with_the_next_launch(tmp_path: Path):
    """Twice: by `sweep cancel`, and by scancel."""
    its = Sweep(tmp_path / "jobs", *GRID, "--import", "tests.slurm.gated", "--hparams", '{"batch_size": 8}')
    begun = its.jobs[:2]
    its.launch(*TWO_AT_ONCE)
    expected = undisturbed(its.jobs, tmp_path)
    wait_until(lambda: all(trains(job) for job in begun), its.told)
    assert its.states() == [JobState.RUNNING, JobState.RUNNING, JobState.QUEUED]

    cancelled = its.command("cancel", "--skip_confirmation")
    assert (cancelled.status, cancelled.stderr) == (3, "")
    assert "Now: 1 not launched, 2 incomplete" in cancelled.stdout
    assert [log_of(job).count("stopped after") for job in begun] == [1, 1]
    assert not any((job.folder / "lock").exists() for job in begun)

    again = its.launch(*TWO_AT_ONCE)
    assert ": 3 tasks, 3 jobs;" in again.stdout
    wait_until(lambda: all(went_on_after(job) for job in begun), its.told)
    (number,) = {task.partition("_")[0] for task in its.submissions()[-1]}
    slurm("scancel", number)
    wait_until(lambda: not read_queue(its.folder).submissions(), its.told)
    assert its.states() == [JobState.INCOMPLETE, JobState.INCOMPLETE, JobState.NOT_LAUNCHED]

    its.open_gate()
    its.launch("--jobs_per_task", 3)
    its.wait_until_done()
    check_done_once(its, expected)
    for job in begun:
        first, second = went_on_after(job)
        assert 1 < first < second, "each time later than before"


def test_tasks_that_wait_are_queued_and_cancelled(tmp_path: Path):
    its = Sweep(tmp_path / "jobs", *GRID, "--import", "tests.slurm.gated")
    its.launch("--slurm_extra", "hold")
    assert its.states() == [JobState.QUEUED] * 3
    told = its.command("status")
    assert (told.status, told.stderr) == (3, "")
    assert told.stdout.splitlines()[-1].startswith("0 of 3 jobs done; 0 of 303 updates")
    assert "SLURM job" not in its.launch("--slurm_extra", "hold").stdout, "nothing is submitted twice"
    cancelled = its.command("cancel", "--skip_confirmation")
    assert (cancelled.status, cancelled.stdout) == (3, f"3 jobs in {its.folder}: 3 queued\nNow: 3 not launched\n")
