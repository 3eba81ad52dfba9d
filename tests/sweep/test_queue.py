"""The queue as read from the output of fake SLURM commands, including what a real cluster rarely prints."""

import json
import os
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.sweep.queue import Queue, job_name, read_queue, slurm_folder, slurm_output, task_outcomes, write_tasks
from domainbed.sweep.status import JobState, survey
from tests.sweep.helpers import fail, jobs_of, launch_words, main, make_job


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
    called = (tmp_path / "squeue.called").read_text()
    assert called == f"--noheader --all --array --user {os.getuid()} --name {job_name(tmp_path)} --format %i|%T\n"
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
    assert called[0] == "--noheader --parsable2 --allocations --format JobID,State --jobs 10,9"
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
    slurm(squeue="true", sacct='echo "9_0|OUT_OF_MEMORY"; echo "9_1|COMPLETED"')
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
