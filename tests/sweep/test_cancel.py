"""`sweep status`, `cancel` and `delete_incomplete`, also during launches."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from domainbed.engine import lock
from domainbed.engine.lock import HEARTBEAT_TIMEOUT, locked
from domainbed.records import mark_done
from domainbed.sweep.cancel import delete_jobs
from domainbed.sweep.queue import write_tasks
from domainbed.sweep.status import JobState, read_status
from tests.processes import wait_until
from tests.sweep.helpers import (
    FOREIGN,
    fail,
    fill_folder,
    hold_lock,
    jobs_of,
    launch_words,
    log_only,
    main,
    make_job,
    records,
    start_launch,
    states,
    steps_recorded,
    write_lock,
)

YES = "--skip_confirmation"


def test_link_to_a_job_folder_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Another user may have chosen its target."""
    first, second, _ = log_only(launch_words(tmp_path / "sweep"))
    for job in (first, second):
        fill_folder(job, JobState.INCOMPLETE)
    first.folder.rename(tmp_path / "elsewhere")
    first.folder.symlink_to(tmp_path / "elsewhere")
    assert main(["delete_incomplete", "--output_dir", tmp_path / "sweep", YES]) == 2
    assert f"{first.folder} is a link; delete it and its target yourself" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir())
    assert second.folder.is_dir()
    first.folder.unlink()
    assert main(["delete_incomplete", "--output_dir", tmp_path / "sweep", YES]) == 3
    assert not second.folder.exists()


# --- status


def test_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture):
    status = ["status", "--output_dir", tmp_path / "sweep"]
    assert main(status) == 2
    assert capsys.readouterr().err == (
        f"error: --output_dir {tmp_path / 'sweep'} contains no sweep; run `sweep launch` first\n"
    )
    jobs = log_only(launch_words(tmp_path / "sweep"))
    assert main(status) == 3
    fill_folder(jobs[0], JobState.DONE)
    fill_folder(jobs[1], JobState.RUNNING)
    assert main(status) == 3
    fill_folder(jobs[2], JobState.FAILED)
    assert main(status) == 1
    for job in jobs[1:]:
        mark_done(job.folder)
    assert main(status) == 0


def test_failures_are_printed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = log_only(launch_words(tmp_path / "sweep"))
    fill_folder(jobs[1], JobState.FAILED)
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 1
    assert "it was too much" not in capsys.readouterr().out
    assert main(["status", "--failed", "--output_dir", tmp_path / "sweep"]) == 1
    output = capsys.readouterr().out
    assert f"\n{jobs[1]}\n  RuntimeError: it was too much\n  failed once, last on " in output
    assert output.endswith(f"log: {jobs[1].folder}/log.txt\n")


@pytest.mark.slow
def test_two_launches_at_once_watched_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture):
    """The second launch trains the jobs that the first one has not started."""
    (slow := tmp_path / "slow").touch()
    given = {"how": "slow", "cause": str(slow)}
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, "--workers", 1, "--steps", 99, launcher="local", **given)
    jobs = jobs_of(words)
    first = start_launch(words, tmp_path / "first.log")
    try:
        wait_until(lambda: any(job.folder.joinpath("results.jsonl").exists() for job in jobs))
        second = start_launch(words, tmp_path / "second.log")
        wait_until(lambda: states(jobs).count(JobState.RUNNING) == 2)
        threading.Timer(2, slow.unlink).start()
        assert main(["status", "--watch", "0.2", "--output_dir", tmp_path / "sweep"]) in (0, 3)
        shown = capsys.readouterr().out
        assert shown.count("Dataset") > 2
        assert " of 99 updates" in shown
        for process in (first, second):
            process.join(60)
        codes = {first.exitcode, second.exitcode}
        assert 0 in codes
        assert codes <= {0, 3}, "a launch without jobs left to start does not wait for those of the other"
    finally:
        first.kill()
    assert main(["status", "--watch", "--output_dir", tmp_path / "sweep"]) == 0, (
        "exits at once, because no job is running"
    )
    assert "6 of 6 jobs done; 594 of 594 updates\n" in capsys.readouterr().out
    assert states(jobs) == [JobState.DONE] * 6
    assert [steps_recorded(job) for job in jobs] == [[0, 98]] * 6


# --- cancel


@pytest.mark.slow
def test_launch_on_this_machine_is_cancelled_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (slow := tmp_path / "slow").touch()
    given = {"how": "slow", "cause": str(slow)}
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, "--steps", 200, "--workers", 2, launcher="local", **given)
    jobs = jobs_of(words)
    launcher = start_launch(words, tmp_path / "log", quick_workers=False)
    cancel = ["cancel", "--output_dir", tmp_path / "sweep"]
    try:
        wait_until(lambda: sum(job.folder.joinpath("results.jsonl").exists() for job in jobs) == 2)
        monkeypatch.setattr("builtins.input", lambda question: print(question) or "n")
        assert main(cancel) == 2
        output = capsys.readouterr()
        assert output.err == "error: nothing was stopped\n"
        assert output.out == f"6 jobs in {tmp_path / 'sweep'}: 4 not launched, 2 running\nStop 2 jobs? [y/N] \n"
        assert states(jobs).count(JobState.RUNNING) == 2
        assert main([*cancel, YES]) == 3
        output = capsys.readouterr()
        assert output.out.endswith("Now: 4 not launched, 2 incomplete\n")
        assert output.err == ""
        launcher.join(30)
        assert launcher.exitcode == 128 + 15, "it stops with its jobs and starts no others"
    finally:
        launcher.kill()
    log = (tmp_path / "log").read_text()
    assert log.endswith("Stopped. Run the same command to resume.\n")
    assert "4 not launched, 2 incomplete after" in log
    assert states(jobs).count(JobState.INCOMPLETE) == 2
    assert main(cancel) == 3, "no question, because no job is running"
    slow.unlink()
    assert main([*words, "--command_launcher", "here"]) == 0
    assert main(undisturbed := launch_words(tmp_path / "other", "--n_trials", 2, "--steps", 200, **given)) == 0
    assert [records(job) for job in jobs] == [records(job) for job in jobs_of(undisturbed)]


def test_job_without_launcher_is_stopped_but_not_one_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = log_only(launch_words(tmp_path / "sweep"))
    jobs[0].folder.mkdir(parents=True)
    fill_folder(jobs[1], JobState.RUNNING)
    lock_before = (jobs[1].folder / "lock").read_bytes()
    process = hold_lock(jobs[0].folder)
    try:
        assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 1
        assert process.wait(30) == 0
    finally:
        process.kill()
    output = capsys.readouterr()
    assert output.err == f"{jobs[1]}: process 4711 on elsewhere runs on another machine; stop it there\n"
    assert output.out.endswith("Now: 2 not launched, 1 running\n")
    assert (jobs[1].folder / "lock").read_bytes() == lock_before


def test_process_with_reused_pid_is_not_stopped(tmp_path: Path):
    jobs = log_only(launch_words(tmp_path / "sweep"))
    jobs[0].folder.mkdir(parents=True)
    process = hold_lock(tmp_path)
    try:
        owner = lock.lock_owner(tmp_path)
        assert owner is not None
        write_lock(jobs[0].folder, replace(owner, started="1"))
        assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 3
        assert process.poll() is None
    finally:
        process.kill()


def test_process_that_ends_during_the_question_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    jobs = log_only(launch_words(tmp_path / "sweep"))
    jobs[0].folder.mkdir(parents=True)
    process = hold_lock(jobs[0].folder)

    def answer(question: str) -> str:
        process.terminate()
        assert process.wait(30) == 0
        return "yes"

    monkeypatch.setattr("builtins.input", answer)
    try:
        assert main(["cancel", "--output_dir", tmp_path / "sweep"]) == 3
    finally:
        process.kill()
    assert capsys.readouterr().err == ""


def test_slurm_tasks_are_cancelled_by_submission(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    jobs = log_only(launch_words(tmp_path / "sweep"))
    write_tasks(tmp_path / "sweep", "9", {"9_0": jobs[:1], "9_1": jobs[1:2]})
    write_tasks(tmp_path / "sweep", "8", {"8": jobs[2:]})
    jobs[0].folder.mkdir()
    write_lock(jobs[0].folder, replace(FOREIGN, slurm_job="9_0"))
    gone = tmp_path / "gone"
    slurm(squeue=f'test -e {gone} || printf "9_0|RUNNING\\n9_1|PENDING\\n"', scancel=f"touch {gone}")
    assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 3
    output = capsys.readouterr()
    assert output.err == ""
    assert "1 not launched, 1 queued, 1 running\n" in output.out
    assert output.out.endswith("Now: 2 not launched, 1 incomplete\n")
    assert (tmp_path / "scancel.called").read_text() == "9\n"


# --- delete_incomplete


def one_job_per_state(tmp_path: Path, slurm):
    """Return a job in each state. The queued one has a folder, too."""
    words = launch_words(tmp_path / "sweep", "--n_trials", 7, "--test_envs", 0)
    jobs = log_only(words)
    by_state = dict(zip(JobState, jobs, strict=True))
    for state, job in by_state.items():
        fill_folder(job, state)
    write_tasks(tmp_path / "sweep", "9", {"9": [by_state[JobState.QUEUED]]})
    slurm(squeue='echo "9|PENDING"')
    return by_state


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("others", [[], [JobState.FAILED], [JobState.FAILED, JobState.PRUNED]])
def test_only_incomplete_jobs_are_deleted(tmp_path: Path, slurm, capsys: pytest.CaptureFixture, others: list[JobState]):
    by_state = one_job_per_state(tmp_path, slurm)
    deleted = {JobState.INCOMPLETE, *others}
    status = 3 if JobState.FAILED in deleted else 1
    kept = {state: content(job.folder) for state, job in by_state.items() if state not in deleted}
    delete = ["delete_incomplete", YES, "--output_dir", tmp_path / "sweep", *(f"--{state.value}" for state in others)]
    assert main(delete) == status
    output = capsys.readouterr()
    assert output.err == ""
    assert "1 not launched, 1 queued, 1 running, 1 incomplete, 1 failed, 1 pruned, 1 done\n" in output.out
    left = "".join(f", 1 {s.value}" for s in (JobState.FAILED, JobState.PRUNED) if s not in deleted)
    assert output.out.endswith(f"Now: {1 + len(deleted)} not launched, 1 queued, 1 running{left}, 1 done\n")
    assert not any(by_state[state].folder.exists() for state in deleted)
    assert {state: content(by_state[state].folder) for state in kept} == kept
    assert {path.name for path in (tmp_path / "sweep" / ".sweep").iterdir()} == {"deleting.lock", "launches", "slurm"}
    capsys.readouterr()
    assert main(delete[:1] + delete[2:]) == status, "no question, because there is nothing to delete"


def test_failed_job_without_a_folder_is_not_deleted(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    """Its SLURM task failed before it started Python."""
    jobs = log_only(launch_words(tmp_path / "sweep"))
    write_tasks(tmp_path / "sweep", "9", {"9": jobs})
    slurm(squeue="true", sacct='echo "9|FAILED|1:0"')
    assert main(["delete_incomplete", "--failed", "--output_dir", tmp_path / "sweep"]) == 1
    assert capsys.readouterr().out.endswith("3 failed\nNow: 3 failed\n"), "no question"


def test_answer_no_deletes_nothing(
    tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    one_job_per_state(tmp_path, slurm)
    before = content(tmp_path / "sweep")
    for answer in ("n", "", "ye", "no thanks"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: print(question) or answer)
        capsys.readouterr()
        assert main(["delete_incomplete", "--failed", "--output_dir", tmp_path / "sweep"]) == 2
        output = capsys.readouterr()
        assert "Delete the folders of 2 jobs, including their checkpoints? [y/N]" in output.out
        assert output.err == "error: nothing was deleted\n"
    assert content(tmp_path / "sweep") == before


def test_jobs_resumed_during_the_question_are_not_deleted(
    tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    by_state = one_job_per_state(tmp_path, slurm)
    incomplete, failed = by_state[JobState.INCOMPLETE], by_state[JobState.FAILED]
    processes = []

    def answer(question: str) -> str:
        processes.append(hold_lock(incomplete.folder))
        mark_done(failed.folder)
        return "yes"

    monkeypatch.setattr("builtins.input", answer)
    try:
        assert main(["delete_incomplete", "--failed", "--output_dir", tmp_path / "sweep"]) == 3
    finally:
        processes[0].terminate()
    assert processes[0].wait(30) == 0
    expected = [f"{job} was resumed in the meantime; not deleted" for job in (incomplete, failed)]
    assert capsys.readouterr().err.splitlines() == expected
    assert (incomplete.folder / "log.txt").exists()
    assert read_status(failed.folder).state == JobState.DONE
    assert (failed.folder / "log.txt").exists()


def test_jobs_queued_during_the_question_are_not_deleted(
    tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """A failed job may also be part of a waiting task."""
    by_state = one_job_per_state(tmp_path, slurm)
    incomplete, failed = by_state[JobState.INCOMPLETE], by_state[JobState.FAILED]

    def answer(question: str) -> str:
        write_tasks(tmp_path / "sweep", "10", {"10_0": [incomplete, failed]})
        slurm(squeue='printf "9|PENDING\\n10_0|PENDING\\n"')
        return "yes"

    monkeypatch.setattr("builtins.input", answer)
    assert main(["delete_incomplete", "--failed", "--output_dir", tmp_path / "sweep"]) == 1
    assert (incomplete.folder / "log.txt").exists()
    assert (failed.folder / "log.txt").exists()


def test_jobs_on_this_machine_are_stopped_if_scancel_fails(
    tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("domainbed.sweep.cancel.TIMEOUT", 3)
    jobs = log_only(launch_words(tmp_path / "sweep"))
    write_tasks(tmp_path / "sweep", "9", {"9": jobs[:1]})
    slurm(squeue='echo "9|PENDING"', scancel="echo 'Access denied' >&2; exit 1")
    jobs[1].folder.mkdir(parents=True)
    owner = hold_lock(jobs[1].folder)
    try:
        assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 1
    finally:
        owner.terminate()
    assert owner.wait(30) == 0
    output = capsys.readouterr()
    assert set(output.err.splitlines()) == {"scancel: Access denied", "SLURM task 9 is still in the queue"}
    assert output.out.endswith("Now: 2 not launched, 1 queued\n")


def test_delete_missing_folder_and_folder_of_dead_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "TAKEOVER_DELAY", 0.1)
    gone, dead, mine = (make_job(tmp_path, seed=seed) for seed in range(3))
    for job in (dead, mine):
        job.folder.mkdir()
    write_lock(dead.folder, FOREIGN)
    then = time.time() - HEARTBEAT_TIMEOUT - 60
    os.utime(dead.folder / "lock", (then, then))
    with locked(mine.folder):
        assert delete_jobs([gone, dead, mine], tmp_path, {JobState.DONE}) == [mine]
        assert mine.folder.exists()
    assert not dead.folder.exists()


@pytest.mark.parametrize("kept", [set(), {JobState.FAILED}])
def test_job_that_failed_in_the_meantime_is_deleted_only_on_request(tmp_path: Path, kept: set[JobState]):
    job = make_job(tmp_path)
    fail(job, "why")
    assert delete_jobs([job], tmp_path, {JobState.DONE, *kept}) == ([job] if kept else [])
    assert job.folder.exists() == bool(kept)


def test_remains_of_a_killed_deletion_are_deleted(tmp_path: Path):
    """Even if no job is incomplete any more."""
    words = launch_words(tmp_path / "sweep")
    log_only(words)
    for i in range(3):
        (tmp_path / "sweep" / ".sweep" / f"deleted-{i}" / "folder").mkdir(parents=True)
        (tmp_path / "sweep" / ".sweep" / f"deleted-{i}" / "log.txt").touch()
    assert main(["delete_incomplete", "--output_dir", tmp_path / "sweep"]) == 3
    names = {path.name for path in (tmp_path / "sweep" / ".sweep").iterdir()}
    assert not {name for name in names if name.startswith("deleted-")}
    assert "launches" in names
