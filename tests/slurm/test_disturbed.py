"""Tasks that are preempted, requeued or killed, lose their node, or reach their time limit; their jobs are done once.

All of it happens to the tasks of one sweep at the same time, while another sweep reaches its time limit.
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from domainbed.engine.lock import LockOwner, lock_owner
from domainbed.sweep.job import Job
from tests.processes import wait_until
from tests.slurm.conftest import repair
from tests.slurm.sweeps import (
    Finished,
    Sweep,
    check_done_once,
    is_training,
    log_of,
    resumed_from,
    slurm,
    slurm_states,
    undisturbed,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 301
GRID = ["--algorithms", "Gated", "--n_hparams", "1", "--steps", str(STEPS), "--import", "tests.slurm.gated"]
GRID += ["--save_every", "1e-9"]  # a checkpoint after each update: killed jobs have one within seconds
HPARAMS = ["--hparams", '{"batch_size": 8}']


@dataclass
class Scenario:
    """What happened to the tasks.

    Attributes:
        disturbed: the sweep.
        over_time: the sweep whose only task reached its time limit.
        preempted, requeued, killed, orphaned: the tasks by what happened to them; the node of the orphaned one is lost.
        after_term: the state of the requeued task between SIGTERM and its end.
        status_before, status_killed: the output of `sweep status` before all this, and after a task was killed.
        relaunched: the output of a launch after all others had restarted.
        owners: the owner of the first job of the orphaned task before its node was lost, while two processes of the
            task were alive, and afterwards.
        expected: the records of undisturbed jobs.
    """

    disturbed: Sweep
    over_time: Sweep
    preempted: list[str]
    requeued: str
    killed: str
    orphaned: str
    after_term: str
    status_before: Finished
    status_killed: Finished
    relaunched: Finished
    owners: list[LockOwner]
    expected: dict[str, list[str]]


@pytest.fixture(scope="module")
def scenario(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("disturbed")
    over_time = Sweep(folder / "over_time", *GRID, *HPARAMS, "--n_trials", "1")
    disturbed = Sweep(folder / "disturbed", *GRID, *HPARAMS, "--n_trials", "3")
    try:
        yield run_scenario(cluster, folder, disturbed, over_time)
    finally:
        for sweep in (disturbed, over_time):
            sweep.open_gate()
            sweep.command("cancel", "--skip_confirmation")
        repair(cluster)


def run_scenario(cluster: Path, folder: Path, disturbed: Sweep, over_time: Sweep) -> Scenario:
    over_time.launch("--slurm_gpus", 0, "--slurm_time", 3, "--jobs_per_task", 3, "--slurm_extra", "exclude=node3")
    disturbed.launch("--jobs_per_task", 2)
    tasks = disturbed.tasks()
    assert len(tasks) == 5
    first = {task: jobs[0] for task, jobs in tasks.items()}
    wait_until(lambda: all(is_training(job) for job in [over_time.jobs[0], *first.values()]), disturbed.describe)
    status_before = disturbed.command("status")
    before = {task: lock_owner(job.folder) for task, job in first.items()}

    # Each node has two GPUs, and therefore two tasks; the fifth task is alone on its node.
    node_of = {task: node for task, (_, node) in slurm_states().items() if task in tasks}
    numbers = Counter(node_of.values())
    preempted_node, other_node = sorted(node for node, n in numbers.items() if n == 2)
    (lost_node,) = (node for node, n in numbers.items() if n == 1)
    preempted = [task for task in tasks if node_of[task] == preempted_node]
    requeued, killed = (task for task in tasks if node_of[task] == other_node)
    (orphaned,) = (task for task in tasks if node_of[task] == lost_node)

    # SLURM takes a while to notice a lost node, and would restart requeued tasks on it; this job occupies it.
    hog = ["--no-requeue", "--nodelist", lost_node, "--gres", "gpu:1", "--mem", "100"]
    slurm("sbatch", *hog, "--output", str(folder / "hog.txt"), "--wrap", "sleep 600")
    wait_until(lambda: Counter(node for _, node in slurm_states().values())[lost_node] == 2)
    os.kill(int((cluster / "pid" / f"slurmd-{lost_node}.pid").read_text()), signal.SIGKILL)
    os.kill(before[killed].pid, signal.SIGKILL)
    # Like a preemption without another signal: SIGTERM, and the end of the task after a grace time.
    slurm("scancel", "--signal=TERM", requeued)
    wait_until(lambda: "stopped after" in log_of(first[requeued]), disturbed.describe)
    time.sleep(3)
    after_term, _ = slurm_states()[requeued]
    slurm("scontrol", "requeue", requeued)
    urgent = ["--partition", "high", "--nodelist", preempted_node, "--gres", "gpu:2", "--mem", "100"]
    slurm("sbatch", *urgent, "--output", str(folder / "urgent.txt"), "--wrap", "sleep 5")
    wait_until(lambda: slurm_states()[killed][0] == "FAILED", disturbed.describe)
    status_killed = disturbed.command("status", "--failed")

    expected = undisturbed(disturbed.jobs, folder / "undisturbed")  # includes those of the other sweep
    wait_until(lambda: all(resumed_from(first[task]) for task in [*preempted, requeued]), disturbed.describe)
    wait_until(lambda: disturbed.output(orphaned).count("Starting with JobEnvironment") == 2, disturbed.describe)
    time.sleep(8)  # so that the second process finds its job taken more than once
    owners = [before[orphaned], lock_owner(first[orphaned].folder)]
    os.kill(before[orphaned].pid, signal.SIGKILL)
    wait_until(lambda: resumed_from(first[orphaned]), disturbed.describe)
    owners.append(lock_owner(first[orphaned].folder))

    relaunched = disturbed.launch("--jobs_per_task", 2)
    disturbed.open_gate()
    wait_until(lambda: resumed_from(over_time.jobs[0]), over_time.describe)
    over_time.open_gate()
    disturbed.wait_until_done()
    over_time.wait_until_done()
    return Scenario(
        disturbed,
        over_time,
        preempted,
        requeued,
        killed,
        orphaned,
        after_term,
        status_before,
        status_killed,
        relaunched,
        owners,
        expected,
    )


def first_jobs(scenario: Scenario, *tasks: str) -> list[Job]:
    return [scenario.disturbed.tasks()[task][0] for task in tasks]


def check_saved_and_resumed(job: Job) -> None:
    resumed = resumed_from(job)  # more than once if this machine is slow, and its task reaches the time limit again
    assert resumed
    for steps in resumed:
        assert f"stopped after {steps} of {STEPS} steps" in log_of(job)
        assert steps > 1, "later than its last evaluation"


def test_disturbed_jobs_equal_undisturbed(scenario: Scenario):
    check_done_once(scenario.disturbed, scenario.expected)


def test_status_distinguishes_running_from_queued(scenario: Scenario):
    """The other jobs of a task wait for its first one."""
    assert (scenario.status_before.status, scenario.status_before.stderr) == (3, "")
    header, _, row = scenario.status_before.stdout.splitlines()[:3]
    assert header.split()[2:4] == ["queued", "running"]
    assert row.split()[2:4] == ["4", "5"]
    for task in scenario.disturbed.submissions()[0]:
        (job,) = first_jobs(scenario, task)
        assert re.search(
            rf"^{re.escape(str(job))}: .* SLURM job {task}\)$", scenario.status_before.stdout, re.MULTILINE
        )


def test_preempted_task_saves_its_state_and_resumes(scenario: Scenario):
    assert len(scenario.preempted) == 2
    for job in first_jobs(scenario, *scenario.preempted):
        check_saved_and_resumed(job)


def test_requeued_task_saves_its_state_and_resumes(scenario: Scenario):
    assert scenario.after_term == "RUNNING", "SLURM does not restart a task that ends by itself"
    check_saved_and_resumed(*first_jobs(scenario, scenario.requeued))


def test_jobs_of_a_killed_task_resume_with_the_next_launch(scenario: Scenario):
    (job,) = first_jobs(scenario, scenario.killed)
    assert f"{job}\n  interrupted, can be resumed; SLURM task {scenario.killed} FAILED" in scenario.status_killed.stdout
    assert scenario.relaunched.status == 3
    assert re.search(r"^SLURM job \d+: 1 tasks, 2 jobs;", scenario.relaunched.stdout, re.MULTILINE)
    tasks = list(scenario.disturbed.tasks().values())
    assert sorted(tasks[-1], key=str) == sorted(scenario.disturbed.tasks()[scenario.killed], key=str)
    (steps,) = resumed_from(job)
    assert steps >= 1, "from its last checkpoint"


def test_task_of_a_lost_node_is_taken_over_after_its_old_process_died(scenario: Scenario):
    (job,) = first_jobs(scenario, scenario.orphaned)
    before, during, after = scenario.owners
    assert before.pid == during.pid, "the second process waits"
    assert after.pid != before.pid
    assert {owner.slurm_job for owner in scenario.owners} == {scenario.orphaned}, "SLURM restarted the same task"
    (steps,) = resumed_from(job)
    assert steps >= 1, "from its last checkpoint"


def test_task_over_its_time_limit_is_requeued_and_done(scenario: Scenario):
    check_done_once(scenario.over_time, scenario.expected)
    check_saved_and_resumed(scenario.over_time.jobs[0])
    (task,) = scenario.over_time.tasks()
    output = scenario.over_time.output(task)
    assert "this job is timed-out" in output
    assert output.count("Starting with JobEnvironment") >= 2  # more if this machine is slow
