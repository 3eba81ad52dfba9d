"""`sweep status`, `cancel` and `delete_incomplete`, beside launches that run."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from domainbed.engine import lock
from domainbed.engine.lock import EXPIRY, locked
from domainbed.records import mark_done
from domainbed.scripts import sweep
from domainbed.sweep.cancel import delete_jobs
from domainbed.sweep.log import log_launch
from domainbed.sweep.queue import write_tasks
from domainbed.sweep.status import JobState, status_of
from tests.processes import wait_until
from tests.sweep.helpers import (
    FOREIGN,
    begin,
    fill_folder,
    hold_elsewhere,
    jobs_of,
    launch_words,
    lock_as,
    main,
    make_job,
    records,
    states,
    steps_recorded,
)

YES = "--skip_confirmation"


def remembered(words: list[str]):
    """The jobs of a launch that was said to have been, without any having run."""
    args = sweep.parser().parse_args(words)
    log_launch(Path(args.output_dir), sweep.grid_of(args))
    return sweep.jobs_of(args)


# --- status


def test_the_exit_status_tells(tmp_path: Path, capsys: pytest.CaptureFixture):
    status = ["status", "--output_dir", tmp_path / "sweep"]
    assert main(status) == 2
    assert capsys.readouterr().err == (
        f"error: --output_dir {tmp_path / 'sweep'} holds no sweep: nothing was launched there\n"
    )
    jobs = remembered(launch_words(tmp_path / "sweep"))
    assert main(status) == 3
    fill_folder(jobs[0], JobState.DONE)
    fill_folder(jobs[1], JobState.RUNNING)
    assert main(status) == 3
    fill_folder(jobs[2], JobState.FAILED)
    assert main(status) == 1
    for job in jobs[1:]:
        mark_done(job.folder)
    assert main(status) == 0


def test_failures_are_told_on_request(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = remembered(launch_words(tmp_path / "sweep"))
    fill_folder(jobs[1], JobState.FAILED)
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 1
    assert "it was too much" not in capsys.readouterr().out
    assert main(["status", "--failed", "--output_dir", tmp_path / "sweep"]) == 1
    told = capsys.readouterr().out
    assert f"\n{jobs[1]}\n  RuntimeError: it was too much\n  failed once, last on " in told
    assert told.endswith(f"log: {jobs[1].folder}/log.txt\n")


@pytest.mark.slow
def test_watched_to_the_end_and_a_launch_beside_another(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A second launch of jobs of which some are running trains the others, once each."""
    (slow := tmp_path / "slow").touch()
    given = {"how": "slow", "cause": str(slow)}
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, "--workers", 1, "--steps", 99, launcher="local", **given)
    jobs = jobs_of(words)
    first = begin(words, tmp_path / "first.log")
    try:
        wait_until(lambda: any(job.folder.joinpath("results.jsonl").exists() for job in jobs))
        second = begin(words, tmp_path / "second.log")
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
        assert codes <= {0, 3}, "the one that has nothing left to begin does not wait for the other's last job"
    finally:
        first.kill()
    assert main(["status", "--watch", "--output_dir", tmp_path / "sweep"]) == 0, "nothing moves: it ends at once"
    assert "6 of 6 jobs done; 594 of 594 updates\n" in capsys.readouterr().out
    assert states(jobs) == [JobState.DONE] * 6
    assert [steps_recorded(job) for job in jobs] == [[0, 98]] * 6


# --- cancel


@pytest.mark.slow
def test_a_launch_here_is_cancelled_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (slow := tmp_path / "slow").touch()
    given = {"how": "slow", "cause": str(slow)}
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, "--steps", 200, "--workers", 2, launcher="local", **given)
    jobs = jobs_of(words)
    launcher = begin(words, tmp_path / "log", quick_workers=False)
    cancel = ["cancel", "--output_dir", tmp_path / "sweep"]
    try:
        wait_until(lambda: sum(job.folder.joinpath("checkpoint.pt").exists() for job in jobs) == 2)
        monkeypatch.setattr("builtins.input", lambda question: print(question) or "n")
        assert main(cancel) == 2
        told = capsys.readouterr()
        assert told.err == "error: nothing was stopped\n"
        assert told.out == f"6 jobs in {tmp_path / 'sweep'}: 4 not launched, 2 running\nStop 2 jobs? [y/N] \n"
        assert states(jobs).count(JobState.RUNNING) == 2
        assert main([*cancel, YES]) == 3
        told = capsys.readouterr()
        assert told.out.endswith("Now: 4 not launched, 2 incomplete\n")
        assert told.err == ""
        launcher.join(30)
        assert launcher.exitcode == 128 + 15, "it stops with its jobs, and goes on with no other"
    finally:
        launcher.kill()
    log = (tmp_path / "log").read_text()
    assert log.endswith("Stopped. The same command goes on with what is not done.\n")
    assert "4 not launched, 2 incomplete after" in log
    assert states(jobs).count(JobState.INCOMPLETE) == 2
    assert main(cancel) == 3, "nothing runs: nobody is asked"
    slow.unlink()
    assert main([*words, "--command_launcher", "here"]) == 0
    assert main(undisturbed := launch_words(tmp_path / "other", "--n_trials", 2, "--steps", 200, **given)) == 0
    assert [records(job) for job in jobs] == [records(job) for job in jobs_of(undisturbed)]


def test_a_job_on_its_own_is_cancelled_and_one_elsewhere_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = remembered(launch_words(tmp_path / "sweep"))
    jobs[0].folder.mkdir(parents=True)
    fill_folder(jobs[1], JobState.RUNNING)
    there = (jobs[1].folder / "lock").read_bytes()
    process = hold_elsewhere(jobs[0].folder)
    try:
        assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 1
        assert process.wait(30) == 0
    finally:
        process.kill()
    told = capsys.readouterr()
    assert told.err == f"{jobs[1]}: process 4711 on elsewhere must be stopped there\n"
    assert told.out.endswith("Now: 2 not launched, 1 running\n")
    assert (jobs[1].folder / "lock").read_bytes() == there


def test_the_number_of_a_process_that_died_and_was_given_to_another_stops_nobody(tmp_path: Path):
    jobs = remembered(launch_words(tmp_path / "sweep"))
    jobs[0].folder.mkdir(parents=True)
    process = hold_elsewhere(tmp_path)
    try:
        owner = lock.lock_owner(tmp_path)
        assert owner is not None
        lock_as(jobs[0].folder, replace(owner, started="1"))
        assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 3
        assert process.poll() is None
    finally:
        process.kill()


def test_tasks_of_slurm_are_cancelled_by_their_submission(tmp_path: Path, slurm, capsys: pytest.CaptureFixture):
    jobs = remembered(launch_words(tmp_path / "sweep"))
    write_tasks(tmp_path / "sweep", "9", {"9_0": jobs[:1], "9_1": jobs[1:2]})
    write_tasks(tmp_path / "sweep", "8", {"8": jobs[2:]})
    jobs[0].folder.mkdir()
    lock_as(jobs[0].folder, replace(FOREIGN, slurm_job="9_0"))
    gone = tmp_path / "gone"
    slurm(squeue=f'test -e {gone} || printf "9_0|RUNNING\\n9_1|PENDING\\n"', scancel=f"touch {gone}")
    assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 3
    told = capsys.readouterr()
    assert told.err == ""
    assert "1 not launched, 1 queued, 1 running\n" in told.out
    assert told.out.endswith("Now: 2 not launched, 1 incomplete\n")
    assert (tmp_path / "scancel.called").read_text() == "9\n"


# --- delete_incomplete


def one_of_each(tmp_path: Path, slurm):
    """A job in each state. The queued one has a folder, too."""
    words = launch_words(tmp_path / "sweep", "--n_trials", 2)
    jobs = remembered(words)
    by_state = dict(zip(JobState, jobs, strict=True))
    for state, job in by_state.items():
        fill_folder(job, state)
    write_tasks(tmp_path / "sweep", "9", {"9": [by_state[JobState.QUEUED]]})
    slurm(squeue='echo "9|PENDING"')
    return by_state


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("failed_too", [False, True])
def test_only_what_is_incomplete_is_deleted(tmp_path: Path, slurm, capsys: pytest.CaptureFixture, failed_too: bool):
    by_state = one_of_each(tmp_path, slurm)
    deleted = {JobState.INCOMPLETE} | ({JobState.FAILED} if failed_too else set())
    kept = {state: content(job.folder) for state, job in by_state.items() if state not in deleted}
    delete = ["delete_incomplete", YES, "--output_dir", tmp_path / "sweep", *["--failed"] * failed_too]
    assert main(delete) == (3 if failed_too else 1)
    told = capsys.readouterr()
    assert told.err == ""
    assert "1 not launched, 1 queued, 1 running, 1 incomplete, 1 failed, 1 done\n" in told.out
    if failed_too:
        assert told.out.endswith("Now: 3 not launched, 1 queued, 1 running, 1 done\n")
    else:
        assert told.out.endswith("Now: 2 not launched, 1 queued, 1 running, 1 failed, 1 done\n")
    assert not any(by_state[state].folder.exists() for state in deleted)
    assert {state: content(by_state[state].folder) for state in kept} == kept
    assert {path.name for path in (tmp_path / "sweep" / ".sweep").iterdir()} == {"launches", "slurm"}
    capsys.readouterr()
    assert main(delete[:1] + delete[2:]) == (3 if failed_too else 1), "there is nothing to ask"


def test_a_no_deletes_nothing(tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    one_of_each(tmp_path, slurm)
    before = content(tmp_path / "sweep")
    for answer in ("n", "", "ye", "no thanks"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: print(question) or answer)
        capsys.readouterr()
        assert main(["delete_incomplete", "--failed", "--output_dir", tmp_path / "sweep"]) == 2
        told = capsys.readouterr()
        assert "Delete the folders of 2 jobs, with all they have trained? [y/N]" in told.out
        assert told.err == "error: nothing was deleted\n"
    assert content(tmp_path / "sweep") == before


def test_what_somebody_goes_on_with_while_the_question_stands_is_kept(
    tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    by_state = one_of_each(tmp_path, slurm)
    incomplete, failed = by_state[JobState.INCOMPLETE], by_state[JobState.FAILED]
    processes = []

    def answer(question: str) -> str:
        processes.append(hold_elsewhere(incomplete.folder))
        mark_done(failed.folder)
        return "yes"

    monkeypatch.setattr("builtins.input", answer)
    try:
        assert main(["delete_incomplete", "--failed", "--output_dir", tmp_path / "sweep"]) == 3
    finally:
        processes[0].terminate()
    assert processes[0].wait(30) == 0
    kept = [f"{job} was gone on with meanwhile; it is kept" for job in (incomplete, failed)]
    assert capsys.readouterr().err.splitlines() == kept
    assert (incomplete.folder / "log.txt").exists()
    assert status_of(failed).state == JobState.DONE
    assert (failed.folder / "log.txt").exists()


def test_what_is_queued_while_the_question_stands_is_kept(
    tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """And so is what failed, where a task that waits has it, too."""
    by_state = one_of_each(tmp_path, slurm)
    incomplete, failed = by_state[JobState.INCOMPLETE], by_state[JobState.FAILED]

    def answer(question: str) -> str:
        write_tasks(tmp_path / "sweep", "10", {"10_0": [incomplete, failed]})
        slurm(squeue='printf "9|PENDING\\n10_0|PENDING\\n"')
        return "yes"

    monkeypatch.setattr("builtins.input", answer)
    assert main(["delete_incomplete", "--failed", "--output_dir", tmp_path / "sweep"]) == 1
    assert (incomplete.folder / "log.txt").exists()
    assert (failed.folder / "log.txt").exists()


def test_a_refusal_of_scancel_keeps_nobody_here_from_being_stopped(
    tmp_path: Path, slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr("domainbed.sweep.cancel.PATIENCE", 3)
    jobs = remembered(launch_words(tmp_path / "sweep"))
    write_tasks(tmp_path / "sweep", "9", {"9": jobs[:1]})
    slurm(squeue='echo "9|PENDING"', scancel="echo 'Access denied' >&2; exit 1")
    jobs[1].folder.mkdir(parents=True)
    owner = hold_elsewhere(jobs[1].folder)
    try:
        assert main(["cancel", YES, "--output_dir", tmp_path / "sweep"]) == 1
    finally:
        owner.terminate()
    assert owner.wait(30) == 0
    told = capsys.readouterr()
    assert set(told.err.splitlines()) == {"scancel: Access denied", "SLURM has not yet ended its task 9"}
    assert told.out.endswith("Now: 2 not launched, 1 queued\n")


def test_a_folder_that_is_gone_or_whose_holder_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "WATCH", 0.1)
    gone, dead, mine = (make_job(tmp_path, seed=seed) for seed in range(3))
    for job in (dead, mine):
        job.folder.mkdir()
    lock_as(dead.folder, FOREIGN)
    then = time.time() - EXPIRY - 60
    os.utime(dead.folder / "lock", (then, then))
    with locked(mine.folder):
        assert delete_jobs([gone, dead, mine]) == [mine]
        assert mine.folder.exists()
    assert not dead.folder.exists()
