"""The queue as read from the output of fake SLURM commands, including what a real cluster rarely prints."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.sweep.job import Job
from domainbed.sweep.launchers.slurm import outside_allocation
from domainbed.sweep.queue import Queue, job_name, read_queue, slurm_folder, slurm_output, task_outcomes, write_tasks
from domainbed.sweep.status import JobState, survey
from tests.sweep.helpers import fail, fill_folder, jobs_of, launch_words, log_only, main, make_job


def test_waiting_and_running_tasks(tmp_path: Path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(4)]
    names = [job.folder.name for job in jobs]
    queue = Queue({"7_0": names[:2], "7_1": names[2:3], "8": names[3:]}, {"7_0": "PENDING", "8": "RUNNING"})
    assert [queue.has(name) for name in names] == [True, True, False, True]
    assert queue.submissions() == ["7", "8"]
    assert [queue.is_running(task) for task in ("7_0", "7_1", "8", "9", "")] == [False, False, True, None, None]


@pytest.mark.parametrize("state", ["CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "PENDING"])
def test_requeued_task_is_not_running(state: str):
    assert Queue({"7": ["a"]}, {"7": state}).is_running("7") is False


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"])
def test_task_on_a_node_is_running(state: str):
    assert Queue({"7": ["a"]}, {"7": state}).is_running("7") is True


def test_settings_of_users_for_squeue_are_ignored(slurm, monkeypatch: pytest.MonkeyPatch):
    slurm(squeue='echo "[$SQUEUE_STATES] [$SLURM_CONF]"')
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    assert slurm_output(["squeue"]) == "[] [/etc/slurm.conf]\n"


def test_tasks_do_not_inherit_the_job_that_submits_them(monkeypatch: pytest.MonkeyPatch):
    variables = {"SLURM_MEM_PER_CPU": "4G", "SLURM_CPU_BIND": "quiet", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with outside_allocation():
        assert {name for name in variables if name in os.environ} == {"SLURM_CONF", "HOME"}
    assert {name: os.environ[name] for name in variables} == variables


def test_slurm_is_not_queried_without_submissions(tmp_path: Path, slurm):
    slurm(squeue="exit 1", sacct="exit 1")
    assert read_queue(tmp_path) is None
    assert task_outcomes(tmp_path, ["a"]) == {}
    assert not (tmp_path / "squeue.called").exists()


def test_queue_is_read_from_squeue(tmp_path: Path, slurm):
    slurm(squeue='printf "9_0|RUNNING\\n\\n9_1|PENDING\\n77|RUNNING\\nnonsense\\n"')
    jobs = [make_job(tmp_path, seed=seed) for seed in range(4)]
    write_tasks(tmp_path, "9", {"9_0": jobs[:1], "9_1": jobs[1:2]})
    write_tasks(tmp_path, "10", {"10": jobs[2:]})
    queue = read_queue(tmp_path)
    assert queue is not None
    assert queue.tasks == {"9_0": [jobs[0].folder.name], "9_1": [jobs[1].folder.name]}
    states = [status.state for status in survey(jobs, queue).values()]
    assert states == [JobState.QUEUED] * 2 + [JobState.NOT_LAUNCHED] * 2
    called = (tmp_path / "squeue.called").read_text().splitlines()
    assert called[0] == f"--noheader --all --array --user {os.getuid()} --name {job_name(tmp_path)} --format %i|%T"
    assert job_name(tmp_path) != job_name(tmp_path / "copied")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("exit 4", "squeue: exit status 4"),
    ],
)
def test_unresponsive_slurm(tmp_path: Path, slurm, capsys: pytest.CaptureFixture, script: str, message: str):
    """Commands that only read work without the queue; others refuse."""
    words = launch_words(tmp_path / "sweep")
    assert main(words) == 0
    job = make_job(tmp_path / "sweep")
    write_tasks(tmp_path / "sweep", "9", {"9": [job]})
    slurm(squeue=script)
    with pytest.raises(UsageError, match=message):
        read_queue(tmp_path / "sweep")
    output = ["--output_dir", tmp_path / "sweep"]
    for command in (words, ["cancel", *output], ["delete_incomplete", *output]):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: squeue: ")
        assert message in error
        assert error.count("\n") == 1
    assert main(["status", *output]) == 0
    output = capsys.readouterr()
    assert "3 of 3 jobs done" in output.out
    assert output.err.startswith("warning: squeue: ")
    assert output.err.endswith("; queued jobs cannot be recognized\n")


def test_without_slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tasks(tmp_path, "9", {"9": [make_job(tmp_path)]})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_queue(tmp_path) is None, "the sweep was copied here"
    with pytest.raises(UsageError, match="sbatch not found; run this on a machine with the SLURM commands"):
        slurm_output(["sbatch"])


def submit_twice(folder: Path) -> list[str]:
    """Record a submission of three jobs and then one of the first two, and return the names of their folders."""
    jobs = [make_job(folder, seed=seed) for seed in range(3)]
    write_tasks(folder, "9", {f"9_{i}": [job] for i, job in enumerate(jobs)})
    write_tasks(folder, "10", {"10_0": jobs[:2]})
    return [job.folder.name for job in jobs]


def test_task_outcomes_from_sacct(tmp_path: Path, slurm):
    names = submit_twice(tmp_path)
    slurm(sacct='printf "10_0|CANCELLED by 1000\\n9_2|TIMEOUT\\n9_1|FAILED\\n"', squeue="exit 1")
    assert task_outcomes(tmp_path, [*names, "stranger"]) == {
        names[0]: "10_0 CANCELLED",
        names[1]: "10_0 CANCELLED",
        names[2]: "9_2 TIMEOUT",
    }
    assert task_outcomes(tmp_path, names[2:]) == {names[2]: "9_2 TIMEOUT"}
    called = (tmp_path / "sacct.called").read_text().splitlines()
    assert called[0] == "--noheader --parsable2 --allocations --format JobID,State,ExitCode --jobs 10,9"
    assert called[1].endswith("--jobs 9")


def test_task_outcomes_without_accounting(tmp_path: Path, slurm):
    names = submit_twice(tmp_path)
    slurm(sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1", squeue='printf "9_2|NODE_FAIL\\n"')
    assert task_outcomes(tmp_path, names) == {names[2]: "9_2 NODE_FAIL"}
    slurm(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert task_outcomes(tmp_path, names) == {}


def test_status_prints_how_slurm_ended_tasks(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    words = launch_words(tmp_path / "sweep")
    assert main(words) == 0
    jobs = jobs_of(words)
    (jobs[0].folder / "done").unlink()
    write_tasks(tmp_path / "sweep", "9", {"9_0": jobs[:1], "9_1": jobs[1:]})
    slurm(squeue="true", sacct='echo "9_0|OUT_OF_MEMORY|0:125"; echo "9_1|COMPLETED|0:0"')
    capsys.readouterr()
    assert main(["status", "--failed", "--output_dir", tmp_path / "sweep"]) == 3
    assert capsys.readouterr().out.endswith(
        f"{jobs[0]}\n  interrupted, can be resumed; SLURM task 9_0 OUT_OF_MEMORY; log: {jobs[0].folder}/log.txt\n"
    )


def test_tasks_are_recorded_by_submission(tmp_path: Path):
    write_tasks(tmp_path, "9", {"9": [job := make_job(tmp_path)]})
    assert json.loads((slurm_folder(tmp_path) / "9" / "tasks.json").read_text()) == {"9": [job.folder.name]}
    assert [path.name for path in (slurm_folder(tmp_path) / "9").iterdir()] == ["tasks.json"]


@pytest.mark.parametrize("damaged", ["{", '["9_0"]', '{"9_0": 5}', "\xff", "[" * 100_000], ids=range(5))
def test_damaged_list_of_tasks_is_skipped_with_one_warning(
    tmp_path: Path, slurm, capsys: pytest.CaptureFixture, damaged: str
):
    names = submit_twice(tmp_path)
    file = slurm_folder(tmp_path) / "9" / "tasks.json"
    file.write_bytes(damaged.encode("latin-1"))
    slurm(squeue='printf "9_2|RUNNING\\n10_0|RUNNING\\n"', sacct='printf "9_2|TIMEOUT\\n10_0|TIMEOUT\\n"')
    queue = read_queue(tmp_path)
    assert queue is not None
    assert queue.tasks == {"10_0": names[:2]}
    assert task_outcomes(tmp_path, names) == dict.fromkeys(names[:2], "10_0 TIMEOUT")
    assert capsys.readouterr().err == (
        f"warning: {file} is damaged; skipping that submission (`scancel 9` stops tasks that are still in the queue)\n"
    )


def test_jobs_of_a_blocked_kind_are_not_submitted(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    """There is no sbatch to submit them with."""
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, launcher="slurm")
    jobs = jobs_of(words)
    for job in jobs[:3]:
        fail(job, "out of ideas")
    slurm(squeue="true", scontrol="echo MaxArraySize = 5")
    assert main(words) == 1
    output = capsys.readouterr()
    assert output.err.count(": blocked, because 3 jobs of its kind failed the same way; ") == 1
    assert output.err.count("out of ideas") == 1
    assert "3 not launched, 3 failed after" in output.out


# --- tasks that end before they start Python


def submit_and_end(tmp_path: Path, logs: list[str | None], started: Sequence[int] = ()) -> list[Job]:
    """Record three tasks of a job each that are not in the queue, with these logs, and return the jobs."""
    words = launch_words(tmp_path / "sweep", "--n_hparams", 1, launcher="slurm")
    jobs = log_only(words)
    write_tasks(tmp_path / "sweep", "9", {f"9_{i}": [job] for i, job in enumerate(jobs)})
    folder = slurm_folder(tmp_path / "sweep") / "9"
    for i, log in enumerate(logs):
        if log is not None:
            (folder / f"9_{i}_0_log.err").write_text(log)
    for i in started:
        (folder / f"9_{i}.started").touch()
    return jobs


def states_of(jobs: Sequence[Job]) -> list[str]:
    return [status.state.value for status in survey(jobs, read_queue(jobs[0].folder.parent)).values()]


def test_task_that_failed_before_its_job_started(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    jobs = submit_and_end(tmp_path, ["bash: module: command not found\nsrun: error: exit code 1\n", "", None])
    slurm(squeue="true", sacct='printf "9_0|FAILED|1:0\\n9_1|TIMEOUT|0:0\\n9_2|OUT_OF_MEMORY|0:125\\n"')
    capsys.readouterr()
    assert main(["status", "--failed", "--output_dir", tmp_path / "sweep"]) == 1
    folder = slurm_folder(tmp_path / "sweep") / "9"
    reasons = [
        f"9_0 ended FAILED (exit code 1:0) before the job started; log: {folder}/9_0_0_log.err: "
        "bash: module: command not found",
        f"9_1 ended TIMEOUT before the job started; log: {folder}/9_1_0_log.err",
        f"9_2 ended OUT_OF_MEMORY (exit code 0:125) before the job started; it wrote no log to {folder}",
    ]
    expected = [f"{job}\n  SLURM task {reason}\n  failed once\n" for job, reason in zip(jobs, reasons, strict=True)]
    assert capsys.readouterr().out.endswith("".join(expected))


def test_log_in_another_folder(tmp_path: Path, slurm):
    """That of --slurm_folder, also if SLURM has forgotten the task."""
    jobs = submit_and_end(tmp_path, [])
    logs = tmp_path / "mine" / "9"
    logs.mkdir(parents=True)
    (logs / "9_0_0_log.err").write_text("no module named submitit\n")
    write_tasks(tmp_path / "sweep", "9", {f"9_{i}": [job] for i, job in enumerate(jobs)}, logs)
    slurm(squeue="true", sacct="exit 1")
    statuses = survey(jobs, read_queue(tmp_path / "sweep"))
    assert [status.state.value for status in statuses.values()] == ["failed", "not launched", "not launched"]
    reason = statuses[jobs[0]].failure.reason
    assert reason.endswith(f"log: {logs}/9_0_0_log.err: no module named submitit")


def test_job_that_failed_before_it_started_is_skipped_and_retried(tmp_path: Path, slurm, capsys):
    """A retry by another launcher leaves a folder, which counts from then on."""
    jobs = submit_and_end(tmp_path, ["why"] * 3)
    slurm(squeue="true", sacct='printf "9_0|FAILED|1:0\\n9_1|FAILED|1:0\\n9_2|CANCELLED by 0|0:0\\n"')
    words = launch_words(tmp_path / "sweep", "--n_hparams", 1)
    assert main(words) == 1
    assert "Skipping failed jobs" in capsys.readouterr().out
    assert states_of(jobs) == ["failed", "failed", "done"]
    assert main([*words, "--retry_failed"]) == 0
    assert states_of(jobs) == ["done"] * 3


@pytest.mark.parametrize("state", ["CANCELLED by 1000", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "COMPLETED"])
def test_task_that_did_not_fail_by_itself_can_be_relaunched(tmp_path: Path, slurm, state: str):
    jobs = submit_and_end(tmp_path, ["what it wrote"] * 3)
    slurm(squeue="true", sacct=f'printf "9_0|{state}|0:0\\n9_1|{state}|1:0\\n9_2|{state}|0:9\\n"')
    assert states_of(jobs) == ["not launched"] * 3


def test_failed_task_that_started_its_jobs_is_relaunched(tmp_path: Path, slurm):
    """It was killed, and its incomplete jobs were deleted."""
    jobs = submit_and_end(tmp_path, ["why"] * 3, started=[0, 2])
    slurm(squeue="true", sacct='printf "9_0|FAILED|0:9\\n9_1|FAILED|0:9\\n9_2|FAILED|0:9\\n"')
    assert states_of(jobs) == ["not launched", "failed", "not launched"]


def test_job_with_a_folder_or_in_a_later_task_did_not_fail_before_it_started(tmp_path: Path, slurm):
    jobs = submit_and_end(tmp_path, ["why"] * 3)
    fill_folder(jobs[0], JobState.INCOMPLETE)
    write_tasks(tmp_path / "sweep", "10", {"10": [jobs[1]]})
    slurm(squeue='echo "10|PENDING"', sacct='printf "9_0|FAILED|1:0\\n9_1|FAILED|1:0\\n9_2|FAILED|1:0\\n"')
    assert states_of(jobs) == ["incomplete", "queued", "failed"]


def test_log_decides_if_slurm_has_forgotten_a_task(tmp_path: Path, slurm):
    cancelled = "slurmstepd: error: *** JOB 9 ON node1 CANCELLED AT 2026-11-28T20:07:07 DUE TO PREEMPTION ***\n"
    jobs = submit_and_end(tmp_path, ["x" * 10_000 + "\nno such file\n", cancelled, None])
    slurm(squeue='case "$*" in *"--states all"*) exit 1;; esac', sacct="exit 1")
    assert states_of(jobs) == ["failed", "not launched", "not launched"]
    (status, *_) = survey(jobs, read_queue(tmp_path / "sweep")).values()
    assert status.failure is not None
    assert status.failure.reason.startswith("SLURM task 9_0 ended before the job started; log: ")
    assert status.failure.reason.endswith("9_0_0_log.err: no such file")


def test_exit_code_from_squeue(tmp_path: Path, slurm):
    """squeue prints a wait status."""
    submit_and_end(tmp_path, [None] * 3)
    script = 'case "$*" in *"--states all"*) printf "9_0|FAILED|768|\\n9_1|FAILED|9|\\n9_2|FAILED|0|\\n";; esac'
    slurm(squeue=script, sacct="exit 1")
    queue = read_queue(tmp_path / "sweep")
    assert queue is not None
    ends = [reason.partition(" before")[0] for reason in queue.failures.values()]
    assert ends == [
        "SLURM task 9_0 ended FAILED (exit code 3:0)",
        "SLURM task 9_1 ended FAILED (exit code 0:9)",
        "SLURM task 9_2 ended FAILED",
    ]


@pytest.mark.parametrize("name", ["%A", "a%", "a\\b", "a\nb"])
@pytest.mark.parametrize("options", [[], ["--dry_run"]])
def test_folder_that_sbatch_would_misread_is_refused(
    tmp_path: Path, slurm, capsys: pytest.CaptureFixture, name: str, options: list[str]
):
    slurm(squeue="exit 1", scontrol="echo MaxArraySize = 5", sbatch="exit 1")
    assert main(launch_words(tmp_path / name / "sweep", *options, launcher="slurm")) == 2
    assert ", which sbatch would interpret in the paths of its logs; choose" in capsys.readouterr().err
    assert not (tmp_path / "sbatch.called").exists()
