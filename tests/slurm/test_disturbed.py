"""Tasks are preempted, requeued, killed, lose their node, or run out of time; their jobs are done once all the same.

All of it happens at once, to the tasks of one sweep, while another sweep runs into its time limit.
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
from tests.slurm.conftest import mend
from tests.slurm.sweeps import (
    Finished,
    Sweep,
    check_done_once,
    log_of,
    slurm,
    slurm_states,
    trains,
    undisturbed,
    went_on_after,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 301
GRID = ["--algorithms", "Gated", "--n_hparams", "1", "--steps", str(STEPS), "--import", "tests.slurm.gated"]
HPARAMS = ["--hparams", '{"batch_size": 8}']


@dataclass
class Story:
    """What happened to the tasks.

    Attributes:
        disturbed: the sweep.
        over_time: the sweep whose only task ran out of time.
        preempted, requeued, killed, bereft: the tasks by what befell them; bereft is that whose node went down.
        after_term: the state of the requeued task between SIGTERM and its end.
        at_first, when_killed: what `sweep status` told while all was well, and after one was killed.
        relaunched: what a launch told when all the others had started again.
        lives: who held the bereft task's first job before, while two processes of that task lived, and afterwards.
        expected: the records of the jobs, had nothing happened.
    """

    disturbed: Sweep
    over_time: Sweep
    preempted: list[str]
    requeued: str
    killed: str
    bereft: str
    after_term: str
    at_first: Finished
    when_killed: Finished
    relaunched: Finished
    lives: list[LockOwner]
    expected: dict[str, list[str]]


@pytest.fixture(scope="module")
def story(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("disturbed")
    over_time = Sweep(folder / "over_time", *GRID, *HPARAMS, "--n_trials", "1")
    disturbed = Sweep(folder / "disturbed", *GRID, *HPARAMS, "--n_trials", "3")
    try:
        yield tell(cluster, folder, disturbed, over_time)
    finally:
        for its in (disturbed, over_time):
            its.open_gate()
            its.command("cancel", "--skip_confirmation")
        mend(cluster)


def tell(cluster: Path, folder: Path, disturbed: Sweep, over_time: Sweep) -> Story:
    """Have it all happen."""
    over_time.launch("--slurm_gpus", 0, "--slurm_time", 3, "--jobs_per_task", 3, "--slurm_extra", "exclude=node3")
    disturbed.launch("--jobs_per_task", 2)
    tasks = disturbed.tasks()
    assert len(tasks) == 5
    first = {task: jobs[0] for task, jobs in tasks.items()}
    wait_until(lambda: all(trains(job) for job in [over_time.jobs[0], *first.values()]), disturbed.told)
    at_first = disturbed.command("status")
    before = {task: lock_owner(job.folder) for task, job in first.items()}

    # Two tasks a node, as each has two GPUs; the fifth task has a node for itself.
    node_of = {task: node for task, (_, node) in slurm_states().items() if task in tasks}
    numbers = Counter(node_of.values())
    preempted_node, other_node = sorted(node for node, n in numbers.items() if n == 2)
    (lost_node,) = (node for node, n in numbers.items() if n == 1)
    preempted = [task for task in tasks if node_of[task] == preempted_node]
    requeued, killed = (task for task in tasks if node_of[task] == other_node)
    (bereft,) = (task for task in tasks if node_of[task] == lost_node)

    # SLURM believes in the node for a while, and would start on it again what is requeued meanwhile.
    hog = ["--no-requeue", "--nodelist", lost_node, "--gres", "gpu:1", "--mem", "100"]
    slurm("sbatch", *hog, "--output", str(folder / "hog.txt"), "--wrap", "sleep 600")
    wait_until(lambda: Counter(node for _, node in slurm_states().values())[lost_node] == 2)
    os.kill(int((cluster / "pid" / f"slurmd-{lost_node}.pid").read_text()), signal.SIGKILL)
    os.kill(before[killed].pid, signal.SIGKILL)
    # As where a preempted task is sent no other signal: first SIGTERM, and its end when the time of grace is over.
    slurm("scancel", "--signal=TERM", requeued)
    wait_until(lambda: "stopped after" in log_of(first[requeued]), disturbed.told)
    time.sleep(3)
    after_term, _ = slurm_states()[requeued]
    slurm("scontrol", "requeue", requeued)
    urgent = ["--partition", "high", "--nodelist", preempted_node, "--gres", "gpu:2", "--mem", "100"]
    slurm("sbatch", *urgent, "--output", str(folder / "urgent.txt"), "--wrap", "sleep 5")
    wait_until(lambda: slurm_states()[killed][0] == "FAILED", disturbed.told)
    when_killed = disturbed.command("status", "--failed")

    expected = undisturbed(disturbed.jobs, folder / "undisturbed")  # the other sweep's are among them
    wait_until(lambda: all(went_on_after(first[task]) for task in [*preempted, requeued]), disturbed.told)
    wait_until(lambda: disturbed.output(bereft).count("Starting with JobEnvironment") == 2, disturbed.told)
    time.sleep(8)  # for the second life to find its job taken, and more than once
    lives = [before[bereft], lock_owner(first[bereft].folder)]
    os.kill(before[bereft].pid, signal.SIGKILL)
    wait_until(lambda: went_on_after(first[bereft]), disturbed.told)
    lives.append(lock_owner(first[bereft].folder))

    relaunched = disturbed.launch("--jobs_per_task", 2)
    disturbed.open_gate()
    wait_until(lambda: went_on_after(over_time.jobs[0]), over_time.told)
    over_time.open_gate()
    disturbed.wait_until_done()
    over_time.wait_until_done()
    return Story(
        disturbed,
        over_time,
        preempted,
        requeued,
        killed,
        bereft,
        after_term,
        at_first,
        when_killed,
        relaunched,
        lives,
        expected,
    )


def first_jobs(story: Story, *tasks: str) -> list[Job]:
    return [story.disturbed.tasks()[task][0] for task in tasks]


def check_saved_and_went_on(job: Job) -> None:
    (steps,) = went_on_after(job)
    assert f"stopped after {steps} of {STEPS} steps" in log_of(job)
    assert steps > 1, "later than at its last evaluation"


def test_each_job_is_done_once_and_as_if_undisturbed(story: Story):
    check_done_once(story.disturbed, story.expected)


def test_running_and_queued_are_told_apart(story: Story):
    """The jobs behind the first of each task wait for it."""
    assert (story.at_first.status, story.at_first.stderr) == (3, "")
    header, _, row = story.at_first.stdout.splitlines()[:3]
    assert header.split()[2:4] == ["queued", "running"]
    assert row.split()[2:4] == ["4", "5"]
    for task in story.disturbed.submissions()[0]:
        (job,) = first_jobs(story, task)
        assert re.search(rf"^{re.escape(str(job))}: .* SLURM job {task}\)$", story.at_first.stdout, re.MULTILINE)


def test_a_preempted_task_saves_its_state_and_goes_on_when_the_other_is_done(story: Story):
    assert len(story.preempted) == 2
    for job in first_jobs(story, *story.preempted):
        check_saved_and_went_on(job)


def test_a_requeued_task_saves_its_state_and_goes_on(story: Story):
    assert story.after_term == "RUNNING", "what ends by itself, SLURM does not start again"
    check_saved_and_went_on(*first_jobs(story, story.requeued))


def test_the_jobs_of_a_killed_task_go_on_with_the_next_launch(story: Story):
    (job,) = first_jobs(story, story.killed)
    assert f"{job}\n  stopped and can go on; SLURM's task {story.killed} FAILED" in story.when_killed.stdout
    assert story.relaunched.status == 3
    assert re.search(r"^SLURM job \d+: 1 tasks, 2 jobs;", story.relaunched.stdout, re.MULTILINE)
    tasks = list(story.disturbed.tasks().values())
    assert sorted(tasks[-1], key=str) == sorted(story.disturbed.tasks()[story.killed], key=str)
    (steps,) = went_on_after(job)
    assert steps in (1, 101, 201), "from the checkpoint of its last evaluation"


def test_a_task_whose_node_is_lost_is_taken_over_when_its_old_process_is_dead(story: Story):
    (job,) = first_jobs(story, story.bereft)
    at_first, while_both_live, at_last = story.lives
    assert at_first.pid == while_both_live.pid, "the second life waits"
    assert at_last.pid != at_first.pid
    assert {life.slurm_job for life in story.lives} == {story.bereft}, "SLURM started the same task again"
    (steps,) = went_on_after(job)
    assert steps in (1, 101, 201), "from the checkpoint of its last evaluation"


def test_a_task_over_its_time_limit_is_requeued_and_done(story: Story):
    check_done_once(story.over_time, story.expected)
    check_saved_and_went_on(story.over_time.jobs[0])
    (task,) = story.over_time.tasks()
    assert "this job is timed-out" in story.over_time.output(task)
    assert story.over_time.output(task).count("Starting with JobEnvironment") == 2
