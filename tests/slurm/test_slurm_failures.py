"""Jobs that fail, tasks that get nowhere, and a SLURM that refuses or does not answer."""

import os
import signal
from pathlib import Path

import pytest

from domainbed.sweep.queue import read_queue, slurm_folder
from domainbed.sweep.status import JobState
from tests.processes import wait_until
from tests.slurm.conftest import mend
from tests.slurm.sweeps import (
    Sweep,
    check_done_once,
    finish,
    log_of,
    slurm,
    slurm_states,
    start,
    undisturbed,
    went_on_after,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

GRID = ["--algorithms", "Gated", "--n_trials", "1", "--steps", "3", "--import", "tests.slurm.gated"]
SLOW = '{"batch_size": 8, "closed": "slow to evaluate"}'


def test_failed_jobs_are_told_and_the_others_of_their_tasks_done(tmp_path: Path):
    """Of two tasks, the middle of three jobs fails in one, and the other two in the other."""
    its = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "2", "--hparams", '{"batch_size": 8}')
    its.launch("--jobs_per_task", 3)
    expected = undisturbed(its.jobs, tmp_path)
    wait_until(lambda: not read_queue(its.folder).submissions(), its.told)
    assert its.states() == [JobState.DONE, JobState.FAILED] * 3, its.told()
    for task in its.tasks():
        assert its.output(task).count("Starting with JobEnvironment") == 2, "behind a failed job a fresh process"
    told = its.command("status", "--failed")
    assert told.status == 1
    for job in its.jobs[1::2]:
        assert f"{job}\n  RuntimeError: the gate is closed\n  failed once, last on " in told.stdout
        assert "Traceback" in log_of(job)

    left_alone = its.launch()
    assert left_alone.status == 1
    assert "What failed is left alone" in left_alone.stdout
    its.open_gate()
    retried = its.launch("--jobs_per_task", 3, "--retry_failed")
    assert ": 1 tasks, 3 jobs;" in retried.stdout
    its.wait_until_done()
    check_done_once(its, expected)


def test_a_task_that_got_nothing_done_within_its_time_fails_its_job(tmp_path: Path):
    """The signal that comes before the end of the time finds the job in an evaluation, and so does the next."""
    its = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "1", "--hparams", SLOW)
    its.launch("--jobs_per_task", 3, "--slurm_time", 4)
    expected = undisturbed(its.jobs, tmp_path)
    (task,) = its.tasks()
    evaluated = its.jobs[0]
    wait_until(lambda: "at the gate" in log_of(evaluated), its.told)
    slurm("scancel", "--signal=USR2", task)
    wait_until(lambda: "at the gate" in log_of(evaluated).partition("goes on from its checkpoint")[2], its.told)
    assert went_on_after(evaluated) == [1], "its one update was worth another life"
    slurm("scancel", "--signal=USR2", task)
    wait_until(lambda: slurm_states()[task][0] == "FAILED", its.told)
    assert its.states() == [JobState.FAILED, JobState.NOT_LAUNCHED, JobState.NOT_LAUNCHED]
    told = its.command("status", "--failed")
    assert told.status == 1
    assert f"{evaluated}\n  no update and no evaluation got done in " in told.stdout
    assert "give it more --slurm_time\n" in told.stdout

    its.open_gate()
    its.launch("--jobs_per_task", 3, "--retry_failed")
    its.wait_until_done()
    check_done_once(its, expected)


@pytest.mark.parametrize("jobs_per_task", [1, 3], ids=["an array", "a single task"])
def test_what_sbatch_refuses_is_told_in_a_line_and_leaves_nothing(tmp_path: Path, jobs_per_task: int):
    its = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "1")
    refused = its.launch("--jobs_per_task", jobs_per_task, "--slurm_partition", "nowhere")
    assert refused.status == 2
    assert refused.stderr.startswith("error: sbatch refuses: ")
    assert refused.stderr.count("\n") == 1
    assert "invalid partition specified: nowhere" in refused.stderr
    assert {path.name for path in slurm_folder(its.folder).iterdir()} <= {"lock"}
    assert its.states() == [JobState.NOT_LAUNCHED] * 3


def test_without_an_answer_nothing_is_launched_and_status_tells_the_rest(cluster: Path, tmp_path: Path):
    its = Sweep(tmp_path / "launched", *GRID, "--n_hparams", "1")
    its.launch("--slurm_extra", "hold")
    other = Sweep(tmp_path / "new", *GRID, "--n_hparams", "1")
    words = ["--output_dir", str(its.folder)]
    os.kill(int((cluster / "pid" / "slurmctld.pid").read_text()), signal.SIGTERM)
    try:
        launches = [its.start_launch(), other.start_launch(), start(["cancel", *words], its.gate)]
        status = start(["status", *words], its.gate)
        for refused in map(finish, launches):
            assert refused.status == 2
            assert refused.stderr.count("\n") == 1
            assert "Unable to contact slurm controller" in refused.stderr
        told = finish(status)
    finally:
        mend(cluster)
    assert told.status == 3
    assert told.stderr.startswith("warning: squeue: ")
    assert told.stderr.endswith("; what is queued can't be told\n")
    assert "0 of 3 jobs done" in told.stdout
    assert its.states() == [JobState.QUEUED] * 3
    assert other.states() == [JobState.NOT_LAUNCHED] * 3
    its.command("cancel", "--skip_confirmation")
