"""Failures of jobs, and kinds of jobs that are blocked because they all fail alike."""

import errno
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.errors import UsageError, printable
from domainbed.sweep.failures import (
    ATTEMPT_FILE,
    FAILURE_FILE,
    FILE_SIZE,
    Failure,
    begin_attempt,
    clear_failure,
    describe_error,
    read_failure,
    record_failure,
    remove_failure_files,
)
from domainbed.sweep.status import JobState, Status, blocked_kinds, blocked_reason, read_status
from tests.sweep.helpers import (
    LauncherHere,
    jobs_of,
    launch_words,
    main,
    make_job,
    records,
    run_here,
    states,
    steps_recorded,
)

# --- in the job's folder


def test_failures_are_recorded_and_counted(tmp_path: Path):
    assert read_failure(tmp_path / FAILURE_FILE) == Failure()
    for times in (1, 2, 3):
        begin_attempt(tmp_path)
        assert not (tmp_path / FAILURE_FILE).exists()
        record_failure(tmp_path, f"reason {times}")
        assert [path.name for path in tmp_path.iterdir()] == [FAILURE_FILE]
        failure = read_failure(tmp_path / FAILURE_FILE)
        assert (failure.reason, failure.times, failure.host) == (f"reason {times}", times, socket.gethostname())
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", failure.at)
    clear_failure(tmp_path)
    clear_failure(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [ATTEMPT_FILE]
    assert read_failure(tmp_path / ATTEMPT_FILE).times == 3
    remove_failure_files(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_killed_attempt_keeps_the_count(tmp_path: Path):
    begin_attempt(tmp_path)
    record_failure(tmp_path, "first")
    begin_attempt(tmp_path)
    begin_attempt(tmp_path)  # the previous attempt was killed
    record_failure(tmp_path, "second")
    assert read_failure(tmp_path / FAILURE_FILE).times == 2


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=[])) | st.just("\U0001f600" * 5000), min_size=1, max_size=4))
def test_any_reason_fits_into_the_existing_file(tmp_path_factory: pytest.TempPathFactory, reasons: list[str]):
    """A full disk has no room for a larger file."""
    folder = tmp_path_factory.mktemp("job")
    for times, reason in enumerate(reasons, start=1):
        begin_attempt(folder)
        record_failure(folder, reason)
        failure = read_failure(folder / FAILURE_FILE)
        assert failure.times == times
        assert printable(reason).startswith(failure.reason)
        assert len(failure.reason) >= min(len(reason), 200)
        assert (folder / FAILURE_FILE).stat().st_size == FILE_SIZE


def test_missing_folder_is_ignored(tmp_path: Path):
    record_failure(tmp_path / "no", "reason")
    clear_failure(tmp_path / "no")
    remove_failure_files(tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "description"),
    [
        (UsageError("--x must be 1"), "--x must be 1"),
        (RuntimeError("\n  it does not fit:\n\tsize 1"), "RuntimeError: it does not fit: size 1"),
        (AssertionError(), "AssertionError"),
        (SystemExit(3), "SystemExit: 3"),
        (OSError(errno.ENOSPC, "x"), "/job: No space left on device (the disk is full)"),
        (OSError(errno.EDQUOT, "x", "/a/b"), "/a/b: Disk quota exceeded (the user's disk quota is used up)"),
        (FileNotFoundError(errno.ENOENT, "x", "/a/b"), "/a/b: No such file or directory"),
        (OSError("something"), "OSError: something"),
    ],
)
def test_errors_are_described_in_one_line(error: BaseException, description: str):
    assert describe_error(error, Path("/job")) == description


# --- blocked kinds

DONE = Status(JobState.DONE)
INCOMPLETE = Status(JobState.INCOMPLETE)


def failed(reason: str) -> Status:
    return Status(JobState.FAILED, failure=Failure(reason))


def reason_after(*reasons: str) -> str:
    """Return why a kind is blocked after failures for these reasons, among other jobs."""
    return blocked_reason([INCOMPLETE, *map(failed, reasons), INCOMPLETE])


def test_three_equal_failures_block_a_kind():
    assert blocked_reason([]) == ""
    assert reason_after("same", "same") == ""
    assert reason_after("same", "same", "same") == "same"
    assert reason_after("other", "same", "same", "another", "same", "other") == "same"


def test_different_failures_do_not_block_a_kind():
    assert reason_after("a", "b", "a", "b", "c") == ""
    assert reason_after("", "", "") == "", "unknown reasons are not equal"


@pytest.mark.parametrize("position", range(5))
def test_kind_with_finished_job_is_not_blocked(position: int):
    statuses = [failed("same")] * 4
    statuses.insert(position, DONE)
    assert blocked_reason(statuses) == ""


def test_reading_stops_at_first_finished_job():
    statuses = iter([failed("same"), DONE, failed("same")])
    assert blocked_reason(statuses) == ""
    assert len(list(statuses)) == 1


def test_numbers_and_folder_names_in_reasons_are_ignored():
    template = "/sweep/{}: step {}: loss is {}, {} left"
    values = [
        ("a" * 32, 3, "1e-5", "-2.5 GiB"),
        ("0123456789abcdef" * 2, 1000, "2.0", "12 GiB"),
        ("f" * 32, 7, 4, "+1 GiB"),
    ]
    assert reason_after(*(template.format(*v) for v in values)) == template.format(*values[-1])
    assert reason_after("x is 1", "y is 1", "x is 1") == ""
    assert reason_after("loss is nan", "loss is inf", "loss is nan") == ""


def test_kinds_are_blocked_separately(tmp_path: Path):
    statuses = {make_job(tmp_path, seed=seed): failed("same") for seed in range(3)}
    statuses |= {make_job(tmp_path, dataset="RotatedDigits", seed=seed): failed("same") for seed in range(2)}
    statuses |= {make_job(tmp_path, algorithm="ERM", hparams=None, seed=seed): failed("other") for seed in range(3)}
    expected = {("ColoredDigits", "Misbehaving"): "same", ("ColoredDigits", "ERM"): "other"}
    assert blocked_kinds(statuses) == expected
    assert blocked_kinds({}) == {}


def test_repeated_failures_of_one_job_count_once():
    assert blocked_reason([Status(JobState.FAILED, failure=Failure("same", times=5))]) == ""


# --- in a sweep

FULL = "No space left on device (the disk is full)"


def fill(disk: Path, free: int) -> Path:
    """Leave so many pages free on a small disk."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    with open(filler, "wb") as file:
        file.write(bytes((space.f_bavail - free) * space.f_frsize))
    return filler


def test_job_on_full_disk_fails_with_a_reason_and_resumes_when_there_is_room(small_disk: Path):
    """Each write of the job is the first to fail in turn."""
    sweep = small_disk / "sweep"
    sweep.mkdir()
    job = make_job(sweep, save_every=1e-9)  # a checkpoint after every update
    seen = set()
    for free in range(0, 60):
        filler = fill(small_disk, free)
        (event,) = run_here(job)
        filler.unlink()
        if event.state == JobState.DONE:
            break
        assert event.state == JobState.FAILED, f"{free} pages free"
        assert FULL in event.reason, f"{free} pages free"
        status = read_status(job.folder)
        if status.failure:
            assert FULL in status.failure.reason, f"{free} pages free"
        else:
            assert not (job.folder / ATTEMPT_FILE).exists() or free < 5, f"{free} pages free"
        seen.add(status.state)
        clear_failure(job.folder)
        for path in job.folder.glob("*") if free % 2 else ():  # resumes from the last attempt, or starts over
            path.unlink()
    assert event.state == JobState.DONE
    assert free > 10, "the disk was never too small"
    assert JobState.FAILED in seen
    assert steps_recorded(job) == [0, 1, 2]
    assert not (job.folder / FAILURE_FILE).exists()


def test_failure_on_full_disk_is_recorded_once_the_job_has_started(small_disk: Path, capsys: pytest.CaptureFixture):
    sweep = small_disk / "sweep"
    words = launch_words(sweep, "--save_every", 1e-9)
    jobs = jobs_of(words)
    fill(small_disk, 16)
    assert main(words) == 1
    assert f"FAILED {jobs[0]}: " in (err := capsys.readouterr().err)
    assert FULL in err
    status = read_status(jobs[0].folder)
    assert status.state == JobState.FAILED
    assert status.failure is not None
    assert FULL in status.failure.reason
    (small_disk / "filler").unlink()
    assert main([*words, "--retry_failed"]) == 0
    assert states(jobs) == [JobState.DONE] * 3


def test_read_only_sweep_folder(small_disk: Path, capsys: pytest.CaptureFixture):
    words = launch_words(small_disk / "sweep", "--n_hparams", 2)
    assert main(launch_words(small_disk / "sweep")) == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    capsys.readouterr()
    assert main(words) == 2
    output = capsys.readouterr()
    assert "3 not launched, 3 done\n" in output.out
    assert output.err.startswith("error: ")
    assert "Read-only file system" in output.err
    assert output.err.count("\n") == 1
    assert main(["status", "--output_dir", small_disk / "sweep"]) == 0, "status only reads"
    (event,) = run_here(make_job(small_disk / "sweep"))
    assert event.state == JobState.FAILED
    assert "Read-only file system" in event.reason


def test_data_missing_on_the_machine_that_runs_the_job(
    tmp_path: Path, small_mnist_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """They existed when the launch checked the jobs."""
    launch = LauncherHere.launch

    def launch_elsewhere(self, jobs, statuses, should_stop):
        os.rename(small_mnist_dir, small_mnist_dir + " gone")
        yield from launch(self, jobs, statuses, should_stop)

    words = launch_words(
        tmp_path / "sweep", "--datasets", "ColoredMNIST", "ColoredDigits", "--data_dir", small_mnist_dir
    )
    jobs = jobs_of(words)
    with monkeypatch.context() as patch:
        patch.setattr(LauncherHere, "launch", launch_elsewhere)
        assert main(words) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert states(jobs) == [JobState.FAILED] * 3 + [JobState.DONE] * 3
    for job in jobs[:3]:
        assert f"--data_dir '{small_mnist_dir}' is not a folder" in read_status(job.folder).failure.reason
    os.rename(small_mnist_dir + " gone", small_mnist_dir)
    assert main([*words, "--retry_failed"]) == 0


def test_non_finite_metric_fails_the_job(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = launch_words(tmp_path / "sweep", how="nan")
    jobs = jobs_of(words)
    well = launch_words(tmp_path / "sweep", "--algorithms", "ERM", "--hparams", '{"batch_size": 4}')
    assert main(words) == 1
    output = capsys.readouterr()
    assert "3 failed after" in output.out
    assert main(well) == 0, "other jobs are not affected"
    assert states(jobs) == [JobState.FAILED] * 3
    assert read_status(jobs[0].folder).failure.reason.startswith(
        "training diverged at step 0: loss is nan; records of earlier steps are kept"
    )
    assert output.err.count(f"FAILED {jobs[0]}: training diverged at step 0: loss is nan; ") == 1


def test_failed_jobs_are_skipped_until_retried(tmp_path: Path, capsys: pytest.CaptureFixture):
    (cause := tmp_path / "cause").write_text("")
    words = launch_words(tmp_path / "sweep", how="raise", cause=str(cause), at=1)
    jobs = jobs_of(words)
    assert main(words) == 1
    before = {job: (job.folder / FAILURE_FILE).read_bytes() for job in jobs}
    capsys.readouterr()
    assert main(words) == 1
    assert capsys.readouterr().out == (
        f"3 jobs in {tmp_path / 'sweep'}: 3 failed\n"
        "Skipping failed jobs (see `status --failed`; `--retry_failed` retries them)\n"
    )
    assert {job: (job.folder / FAILURE_FILE).read_bytes() for job in jobs} == before
    assert main([*words, "--retry_failed"]) == 1
    assert [read_status(job.folder).failure.times for job in jobs] == [2] * 3
    cause.unlink()
    assert main([*words, "--retry_failed"]) == 0
    for job in jobs:
        assert not {ATTEMPT_FILE, FAILURE_FILE, "lock"} & {path.name for path in job.folder.iterdir()}
    # They resumed from their checkpoints, with the records of jobs that never failed.
    assert main(undisturbed := launch_words(tmp_path / "other", how="raise", cause=str(cause), at=1)) == 0
    assert [records(job) for job in jobs] == [records(job) for job in jobs_of(undisturbed)]


def test_only_three_failing_jobs_are_started(tmp_path: Path, quick_workers: None, capsys: pytest.CaptureFixture):
    """With real workers. The next launch reports it, too; without the cause, --retry_failed trains all of them."""
    (cause := tmp_path / "cause").write_text("")
    words = launch_words(
        tmp_path / "sweep", "--n_trials", 3, "--workers", 1, launcher="local", how="raise", cause=str(cause)
    )
    jobs = jobs_of(words)
    assert len(jobs) == 9
    for _ in range(2):
        capsys.readouterr()
        assert main(words) == 1
        output = capsys.readouterr()
        assert sum(job.folder.exists() for job in jobs) == 3
        assert output.err.count(": blocked, because 3 jobs of its kind failed the same way; ") == 1
        assert output.err.count("RuntimeError: out of ideas at 0") >= 1
    assert "Traceback" not in output.err
    assert sorted(set(states(jobs)), key=str) == [JobState.FAILED, JobState.NOT_LAUNCHED]
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 1
    assert (
        "Misbehaving on ColoredDigits is blocked, because 3 jobs failed the same way and none is done: step 0: "
        "RuntimeError: out of ideas at 0, in misbehaving.py line 48\n  `launch --retry_failed` retries them\n"
        in capsys.readouterr().out
    )
    cause.unlink()
    assert main([*words, "--retry_failed"]) == 0
    assert states(jobs) == [JobState.DONE] * 9
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 0
    assert "blocked" not in capsys.readouterr().out


def test_jobs_that_fail_differently_are_all_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (cause := tmp_path / "cause").write_text("")
    launch = LauncherHere.launch
    reasons = iter("abcdefghi")

    def launch_one_by_one(self, jobs, statuses, should_stop):
        for job in jobs:
            cause.write_text(next(reasons))
            yield from launch(self, [job], statuses, should_stop)

    monkeypatch.setattr(LauncherHere, "launch", launch_one_by_one)
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, how="raise file", cause=str(cause))
    assert main(words) == 1
    assert states(jobs_of(words)) == [JobState.FAILED] * 6


@pytest.mark.parametrize("is_by_hand", [False, True])
def test_deleting_failed_jobs_unblocks_their_kind(tmp_path: Path, is_by_hand: bool):
    (cause := tmp_path / "cause").write_text("")
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, how="raise", cause=str(cause))
    assert main(words) == 1
    assert states(jobs_of(words)).count(JobState.FAILED) == 3
    if is_by_hand:
        for job in jobs_of(words):
            shutil.rmtree(job.folder, ignore_errors=True)
    else:
        assert main(["delete_incomplete", "--failed", "--skip_confirmation", "--output_dir", tmp_path / "sweep"]) == 3
    assert states(jobs_of(words)) == [JobState.NOT_LAUNCHED] * 6
    cause.unlink()
    assert main(words) == 0


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_failure_file_that_is_no_file_is_replaced(tmp_path: Path, kind: str):
    (tmp_path / "target").write_text("precious")
    if kind == "pipe":
        os.mkfifo(tmp_path / ATTEMPT_FILE)
    else:
        (tmp_path / ATTEMPT_FILE).symlink_to("target" if kind == "link" else "missing")
    begin_attempt(tmp_path)
    record_failure(tmp_path, "reason")
    assert read_failure(tmp_path / FAILURE_FILE).reason == "reason"
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "missing").exists()
