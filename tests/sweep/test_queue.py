"""SLURM's answers, read: by commands that are made up where a real cluster can't be brought to give them."""

import json
import os
from pathlib import Path

import pytest

from domainbed.errors import UsageError
from domainbed.sweep.failures import note_outcome
from domainbed.sweep.queue import Queue, ends_of, job_name, read_queue, slurm_folder, slurm_output, write_tasks
from domainbed.sweep.status import JobState, survey
from tests.sweep.helpers import jobs_of, launch_words, main, make_job


def test_of_what_waits_or_runs(tmp_path: Path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(4)]
    names = [job.folder.name for job in jobs]
    queue = Queue({"7_0": names[:2], "7_1": names[2:3], "8": names[3:]}, {"7_0": "PENDING", "8": "RUNNING"})
    assert [queue.has(job) for job in jobs] == [True, True, False, True]
    assert queue.submissions() == ["7", "8"]
    assert [queue.runs(task) for task in ("7_0", "7_1", "8", "9", "")] == [False, False, True, None, None]


@pytest.mark.parametrize("state", ["CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "PENDING"])
def test_a_task_that_is_to_start_again_does_not_run(state: str):
    assert Queue({"7": ["a"]}, {"7": state}).runs("7") is False


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"])
def test_a_task_that_holds_its_node_runs(state: str):
    assert Queue({"7": ["a"]}, {"7": state}).runs("7") is True


def test_where_nothing_was_submitted_nobody_is_asked(tmp_path: Path, slurm):
    slurm(squeue="exit 1", sacct="exit 1")
    assert read_queue(tmp_path) is None
    assert ends_of(tmp_path, ["a"]) == {}
    assert not (tmp_path / "squeue.called").exists()


def test_the_queue_as_squeue_tells_it(tmp_path: Path, slurm):
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
    ("script", "told"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("exit 4", "squeue: status 4"),
    ],
)
def test_a_queue_that_does_not_answer(tmp_path: Path, slurm, capsys: pytest.CaptureFixture, script: str, told: str):
    """To look goes on without it; what could do harm does not."""
    words = launch_words(tmp_path / "sweep")
    assert main(words) == 0
    job = make_job(tmp_path / "sweep")
    write_tasks(tmp_path / "sweep", "9", {"9": [job]})
    slurm(squeue=script)
    with pytest.raises(UsageError, match=told):
        read_queue(tmp_path / "sweep")
    output = ["--output_dir", tmp_path / "sweep"]
    for command in (words, ["cancel", *output], ["delete_incomplete", *output]):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: squeue: ")
        assert told in error
        assert error.count("\n") == 1
    assert main(["status", *output]) == 0
    shown = capsys.readouterr()
    assert "3 of 3 jobs done" in shown.out
    assert shown.err.startswith("warning: squeue: ")
    assert shown.err.endswith("; what is queued can't be told\n")


def test_without_slurms_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tasks(tmp_path, "9", {"9": [make_job(tmp_path)]})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_queue(tmp_path) is None, "a sweep that was copied here"
    with pytest.raises(UsageError, match="sbatch is not on this machine; run this where SLURM's commands are"):
        slurm_output(["sbatch"])


def tasks_of_two_submissions(folder: Path) -> list[str]:
    """Two submissions of the same three jobs; the second one's tasks are their last."""
    jobs = [make_job(folder, seed=seed) for seed in range(3)]
    write_tasks(folder, "9", {f"9_{i}": [job] for i, job in enumerate(jobs)})
    write_tasks(folder, "10", {"10_0": jobs[:2]})
    return [job.folder.name for job in jobs]


def test_how_tasks_ended_as_sacct_tells_it(tmp_path: Path, slurm):
    names = tasks_of_two_submissions(tmp_path)
    slurm(sacct='printf "10_0|CANCELLED by 1000\\n9_2|TIMEOUT\\n9_1|FAILED\\n"', squeue="exit 1")
    assert ends_of(tmp_path, [*names, "stranger"]) == {
        names[0]: "10_0 CANCELLED",
        names[1]: "10_0 CANCELLED",
        names[2]: "9_2 TIMEOUT",
    }
    assert ends_of(tmp_path, names[2:]) == {names[2]: "9_2 TIMEOUT"}
    called = (tmp_path / "sacct.called").read_text().splitlines()
    assert called[0] == "--noheader --parsable2 --allocations --format JobID,State --jobs 10,9"
    assert called[1].endswith("--jobs 9")


def test_how_tasks_ended_where_no_accounts_are_kept(tmp_path: Path, slurm):
    names = tasks_of_two_submissions(tmp_path)
    slurm(sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1", squeue='printf "9_2|NODE_FAIL\\n"')
    assert ends_of(tmp_path, names) == {names[2]: "9_2 NODE_FAIL"}
    slurm(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert ends_of(tmp_path, names) == {}


def test_status_tells_why_slurm_cut_jobs_short(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    words = launch_words(tmp_path / "sweep")
    assert main(words) == 0
    jobs = jobs_of(words)
    (jobs[0].folder / "done").unlink()
    write_tasks(tmp_path / "sweep", "9", {"9_0": jobs[:1], "9_1": jobs[1:]})
    slurm(squeue="true", sacct='echo "9_0|OUT_OF_MEMORY"; echo "9_1|COMPLETED"')
    capsys.readouterr()
    assert main(["status", "--failed", "--output_dir", tmp_path / "sweep"]) == 3
    assert capsys.readouterr().out.endswith(
        f"{jobs[0]}\n  stopped and can go on; SLURM's task 9_0 OUT_OF_MEMORY; log: {jobs[0].folder}/log.txt\n"
    )


def test_tasks_are_kept_by_submission(tmp_path: Path):
    write_tasks(tmp_path, "9", {"9": [job := make_job(tmp_path)]})
    assert json.loads((slurm_folder(tmp_path) / "9" / "tasks.json").read_text()) == {"9": [job.folder.name]}
    assert [path.name for path in (slurm_folder(tmp_path) / "9").iterdir()] == ["tasks.json"]


@pytest.mark.parametrize("damaged", ["{", '["9_0"]', '{"9_0": 5}', "\xff", "[" * 100_000], ids=range(5))
def test_a_damaged_list_of_tasks_is_told_once_and_left_out(
    tmp_path: Path, slurm, capsys: pytest.CaptureFixture, damaged: str
):
    names = tasks_of_two_submissions(tmp_path)
    file = slurm_folder(tmp_path) / "9" / "tasks.json"
    file.write_bytes(damaged.encode("latin-1"))
    slurm(squeue='printf "9_2|RUNNING\\n10_0|RUNNING\\n"', sacct='printf "9_2|TIMEOUT\\n10_0|TIMEOUT\\n"')
    queue = read_queue(tmp_path)
    assert queue is not None
    assert queue.tasks == {"10_0": names[:2]}
    assert ends_of(tmp_path, names) == dict.fromkeys(names[:2], "10_0 TIMEOUT")
    assert capsys.readouterr().err == (
        f"warning: {file} is damaged; that submission is left out (scancel 9 stops what SLURM may have of it)\n"
    )


def test_jobs_of_a_kind_that_is_held_back_are_not_submitted(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    """There is no sbatch here that they could be submitted with."""
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, launcher="slurm")
    jobs = jobs_of(words)
    for job in jobs[:3]:
        note_outcome(job, "out of ideas")
    slurm(squeue="true", scontrol="echo MaxArraySize = 5")
    assert main(words) == 3
    told = capsys.readouterr()
    assert (
        told.err.count("held back: the first 3 of its kind to end all failed alike; --retry_failed tries again: ") == 1
    )
    assert told.err.count("out of ideas") == 1
    assert "6 not launched after" in told.out
