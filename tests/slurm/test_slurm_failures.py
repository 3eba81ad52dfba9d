"""Jobs that fail, tasks without progress, rejected submissions, and a SLURM that does not respond."""

import os
import re
import signal
from pathlib import Path

import pytest

from domainbed.sweep.queue import read_queue, slurm_folder
from domainbed.sweep.status import JobState
from tests.processes import wait_until
from tests.slurm.conftest import repair
from tests.slurm.sweeps import (
    Sweep,
    check_done_once,
    finish,
    log_of,
    resumed_from,
    slurm,
    slurm_states,
    start,
    undisturbed,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

GRID = ["--algorithms", "Gated", "--n_trials", "1", "--steps", "3", "--import", "tests.slurm.gated"]
SLOW = '{"batch_size": 8, "closed": "slow to evaluate"}'


def test_failed_jobs_do_not_affect_others_of_their_tasks(tmp_path: Path):
    """The middle one of three jobs fails in one task, and the other two in the other."""
    sweep = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "2", "--hparams", '{"batch_size": 8}')
    sweep.launch("--jobs_per_task", 3)
    expected = undisturbed(sweep.jobs, tmp_path)
    wait_until(lambda: not read_queue(sweep.folder).submissions(), sweep.describe)
    assert sweep.states() == [JobState.DONE, JobState.FAILED] * 3, sweep.describe()
    for task in sweep.tasks():
        assert sweep.output(task).count("Starting with JobEnvironment") == 2, "a new process after a failed job"
    status = sweep.command("status", "--failed")
    assert status.status == 1
    for job in sweep.jobs[1::2]:
        reason = r"step \d+: RuntimeError: the gate is closed, in gated\.py line \d+"
        assert re.search(rf"{re.escape(str(job))}\n  {reason}\n  failed once, last on ", status.stdout)
        assert "Traceback" in log_of(job)

    relaunched = sweep.launch()
    assert relaunched.status == 1
    assert "Skipping failed jobs" in relaunched.stdout
    sweep.open_gate()
    retried = sweep.launch("--jobs_per_task", 3, "--retry_failed")
    assert ": 1 tasks, 3 jobs;" in retried.stdout
    sweep.wait_until_done()
    check_done_once(sweep, expected)


def test_failed_job_is_retried_while_its_task_trains_others(tmp_path: Path):
    """That task does not come back to it."""
    sweep = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "2", "--hparams", '{"batch_size": 8}', "--steps", "20")
    sweep.launch("--jobs_per_task", 6)
    wait_until(lambda: {JobState.FAILED, JobState.RUNNING} <= set(sweep.states()), sweep.describe)
    n_failed = sweep.states().count(JobState.FAILED)
    retried = sweep.launch("--jobs_per_task", 6, "--retry_failed")
    assert f": 1 tasks, {n_failed} jobs;" in retried.stdout, sweep.describe()
    sweep.open_gate()
    sweep.wait_until_done()
    check_done_once(sweep, undisturbed(sweep.jobs, tmp_path))


def test_task_without_progress_in_its_time_limit_fails_its_job(tmp_path: Path):
    """Both signals before the time limit arrive during an evaluation."""
    sweep = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "1", "--hparams", SLOW)
    sweep.launch("--jobs_per_task", 3, "--slurm_time", 4)
    expected = undisturbed(sweep.jobs, tmp_path)
    (task,) = sweep.tasks()
    evaluated = sweep.jobs[0]
    wait_until(lambda: "at the gate" in log_of(evaluated), sweep.describe)
    slurm("scancel", "--signal=USR2", task)
    wait_until(lambda: "at the gate" in log_of(evaluated).partition("Resuming from checkpoint")[2], sweep.describe)
    assert resumed_from(evaluated) == [1], "one update counts as progress"
    slurm("scancel", "--signal=USR2", task)
    wait_until(lambda: slurm_states()[task][0] == "FAILED", sweep.describe)
    assert sweep.states() == [JobState.FAILED, JobState.NOT_LAUNCHED, JobState.NOT_LAUNCHED]
    status = sweep.command("status", "--failed")
    assert status.status == 1
    assert f"{evaluated}\n  no update, evaluation or preparation finished in " in status.stdout
    assert "increase --slurm_time\n" in status.stdout

    sweep.open_gate()
    sweep.launch("--jobs_per_task", 3, "--retry_failed")
    sweep.wait_until_done()
    check_done_once(sweep, expected)


def test_jobs_of_tasks_that_fail_before_they_start_fail_with_the_log_of_slurm(tmp_path: Path):
    """Tasks that were cancelled before they started are submitted again."""
    sweep = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "1", "--hparams", '{"batch_size": 8}')
    setup = ["echo task $SLURM_ARRAY_TASK_ID needs a module >&2", "test $SLURM_ARRAY_TASK_ID = 2", "sleep 100"]
    sweep.launch("--slurm_setup", *setup)
    tasks = list(sweep.tasks())
    wait_until(lambda: [slurm_states()[task][0] for task in tasks] == ["FAILED", "FAILED", "RUNNING"], sweep.describe)
    slurm("scancel", tasks[2])
    wait_until(lambda: not read_queue(sweep.folder).submissions(), sweep.describe)
    assert sweep.states() == [JobState.FAILED, JobState.FAILED, JobState.NOT_LAUNCHED]
    status = sweep.command("status", "--failed")
    assert (status.status, status.stderr) == (1, "")
    for i, job in enumerate(sweep.jobs[:2]):
        log = slurm_folder(sweep.folder) / tasks[i].partition("_")[0] / f"{tasks[i]}_0_log.err"
        reason = f"SLURM task {tasks[i]} ended FAILED (exit code 1:0) before the job started; log: {log}: "
        failed = f"--slurm_setup '{setup[1]}' failed with exit status 1"
        assert f"{job}\n  {reason}{failed}\n  failed once\n" in status.stdout
        assert log.read_text().startswith(f"task {i} needs a module\n")
    sweep.open_gate()
    relaunched = sweep.launch()
    assert "Skipping failed jobs" in relaunched.stdout
    assert ": 1 tasks, 1 jobs;" in relaunched.stdout
    wait_until(lambda: not read_queue(sweep.folder).submissions(), sweep.describe)
    assert sweep.states() == [JobState.FAILED, JobState.FAILED, JobState.DONE]
    expected = undisturbed(sweep.jobs, tmp_path)
    assert ": 2 tasks, 2 jobs;" in sweep.launch("--retry_failed").stdout
    sweep.wait_until_done()
    check_done_once(sweep, expected)


@pytest.mark.parametrize("jobs_per_task", [1, 3], ids=["an array", "a single task"])
def test_rejected_submission_is_one_line_and_leaves_no_files(tmp_path: Path, jobs_per_task: int):
    sweep = Sweep(tmp_path / "jobs", *GRID, "--n_hparams", "1")
    refused = sweep.launch("--jobs_per_task", jobs_per_task, "--slurm_partition", "nowhere")
    assert refused.status == 2
    assert refused.stderr.startswith("error: sbatch rejected the submission: ")
    assert refused.stderr.count("\n") == 1
    assert "invalid partition specified: nowhere" in refused.stderr
    assert {path.name for path in slurm_folder(sweep.folder).iterdir()} <= {"lock"}
    assert sweep.states() == [JobState.NOT_LAUNCHED] * 3


def test_unresponsive_slurm_prevents_launches_but_not_status(cluster: Path, tmp_path: Path):
    sweep = Sweep(tmp_path / "launched", *GRID, "--n_hparams", "1")
    sweep.launch("--slurm_extra", "hold")
    other = Sweep(tmp_path / "new", *GRID, "--n_hparams", "1")
    words = ["--output_dir", str(sweep.folder)]
    os.kill(int((cluster / "pid" / "slurmctld.pid").read_text()), signal.SIGTERM)
    try:
        launches = [sweep.start_launch(), other.start_launch(), start(["cancel", *words], sweep.gate)]
        status = start(["status", *words], sweep.gate)
        for refused in map(finish, launches):
            assert refused.status == 2
            assert refused.stderr.count("\n") == 1
            assert "Unable to contact slurm controller" in refused.stderr
        finished = finish(status)
    finally:
        repair(cluster)
    assert finished.status == 3
    assert finished.stderr.startswith("warning: squeue: ")
    assert finished.stderr.endswith("; queued jobs cannot be recognized\n")
    assert "0 of 3 jobs done" in finished.stdout
    assert sweep.states() == [JobState.QUEUED] * 3
    assert other.states() == [JobState.NOT_LAUNCHED] * 3
    sweep.command("cancel", "--skip_confirmation")
