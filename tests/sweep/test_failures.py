"""Failures: kept in words, counted, and kinds of jobs that all fail alike held back."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.errors import UsageError
from domainbed.sweep.failures import (
    ATTEMPT_FILE,
    FAILURE_FILE,
    WIDTH,
    Failure,
    begin_attempt,
    blocked_reason,
    clear_failure,
    describe_error,
    forget_failures,
    let_go,
    note_outcome,
    read_failure,
    record_failure,
)
from domainbed.sweep.status import JobState, status_of
from tests.sweep.helpers import LauncherHere, jobs_of, launch_words, main, make_job, records, states, steps_recorded

# --- kept in the job's folder


def test_a_failure_is_kept_and_counted(tmp_path: Path):
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
    forget_failures(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_dies_before_it_can_tell_leaves_the_count(tmp_path: Path):
    begin_attempt(tmp_path)
    record_failure(tmp_path, "first")
    begin_attempt(tmp_path)
    begin_attempt(tmp_path)  # the one before was killed
    record_failure(tmp_path, "second")
    assert read_failure(tmp_path / FAILURE_FILE).times == 2


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=[])) | st.just("\U0001f600" * 5000), min_size=1, max_size=4))
def test_any_words_fit_where_the_first_were(tmp_path_factory: pytest.TempPathFactory, reasons: list[str]):
    """On a full disk there is room for no more than what is there already."""
    folder = tmp_path_factory.mktemp("job")
    for times, reason in enumerate(reasons, start=1):
        begin_attempt(folder)
        record_failure(folder, reason)
        failure = read_failure(folder / FAILURE_FILE)
        assert failure.times == times
        assert reason.startswith(failure.reason)
        assert len(failure.reason) >= min(len(reason), 200)
        assert (folder / FAILURE_FILE).stat().st_size == WIDTH


def test_where_there_is_no_folder_nothing_is_kept(tmp_path: Path):
    record_failure(tmp_path / "no", "reason")
    clear_failure(tmp_path / "no")
    forget_failures(tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UsageError("write it thus"), "write it thus"),
        (RuntimeError("\n  it does not fit:\n\tsize 1"), "RuntimeError: it does not fit: size 1"),
        (AssertionError(), "AssertionError"),
        (SystemExit(3), "SystemExit: 3"),
        (OSError(errno.ENOSPC, "x"), "/job: No space left on device (the disk is full)"),
        (OSError(errno.EDQUOT, "x", "/a/b"), "/a/b: Disk quota exceeded (your quota is used up)"),
        (FileNotFoundError(errno.ENOENT, "x", "/a/b"), "/a/b: No such file or directory"),
        (OSError("something"), "OSError: something"),
    ],
)
def test_errors_in_words(error: BaseException, words: str):
    assert describe_error(error, Path("/job")) == words


# --- kinds that fail alike


def outcomes(folder: Path, *reasons: str) -> str:
    """Why a kind is held back after these ends of its jobs, each another job."""
    for seed, reason in enumerate(reasons):
        note_outcome(make_job(folder, seed=seed), reason)
    return blocked_reason(make_job(folder, seed=99))


def test_three_that_fail_alike_hold_their_kind_back(tmp_path: Path):
    assert outcomes(tmp_path / "none") == ""
    assert outcomes(tmp_path / "two", "same", "same") == ""
    assert outcomes(tmp_path / "three", "same", "same", "same") == "same"
    assert outcomes(tmp_path / "then", "same", "same", "same", "", "other") == "same", "whatever came after"


def test_no_kind_is_held_back_for_another_whose_name_is_like_its_own(tmp_path: Path):
    kinds = [("A", name) for name in ("ERM+", "ERM*", "ERM%2B", "ERM ", "B/C")] + [
        ("A/B", "C"),
        ("A-B", "C"),
        ("A", "B-C"),
    ]
    for kind in kinds:
        jobs = [SimpleNamespace(kind=kind, folder=tmp_path / str(i)) for i in range(3)]
        assert blocked_reason(jobs[0]) == ""
        for job in jobs:
            note_outcome(job, f"{kind} fails")
        assert blocked_reason(jobs[0]) == f"{kind} fails"


def test_another_end_among_the_first_three_does_not(tmp_path: Path):
    for i, reasons in enumerate([("", "a", "a", "a", "a"), ("a", "", "a", "a"), ("a", "a", "", "a"), ("", "", "")]):
        assert outcomes(tmp_path / f"well {i}", *reasons) == ""
    for i, reasons in enumerate([("b", "a", "a", "a"), ("a", "b", "a"), ("a", "a", "b", "a", "a", "a")]):
        assert outcomes(tmp_path / f"other {i}", *reasons) == ""


def test_numbers_and_folders_make_no_difference(tmp_path: Path):
    words = "/sweep/{}: step {}: loss is {}, {} left"
    given = [
        ("a" * 32, 3, "1e-5", "-2.5 GiB"),
        ("0123456789abcdef" * 2, 1000, "2.0", "12 GiB"),
        ("f" * 32, 7, 4, "+1 GiB"),
    ]
    assert outcomes(tmp_path / "like", *(words.format(*g) for g in given)) == words.format(*given[-1])
    assert outcomes(tmp_path / "unlike", "x is 1", "y is 1", "x is 1") == ""
    assert outcomes(tmp_path / "nan", "loss is nan", "loss is inf", "loss is nan") == ""


def test_one_job_that_fails_three_times_is_one(tmp_path: Path):
    job = make_job(tmp_path)
    for _ in range(5):
        note_outcome(job, "same")
    assert blocked_reason(job) == ""


def test_of_a_job_that_was_tried_again_the_last_end_counts(tmp_path: Path):
    jobs = [make_job(tmp_path, seed=i) for i in range(3)]
    for job in jobs:
        note_outcome(job, "alike")
    assert blocked_reason(jobs[0]) == "alike"
    note_outcome(jobs[1], "")
    assert blocked_reason(jobs[0]) == ""


def test_other_kinds_and_other_sweeps_are_not_held_back(tmp_path: Path):
    assert outcomes(tmp_path / "a", "same", "same", "same")
    assert blocked_reason(make_job(tmp_path / "a", algorithm="ERM", hparams=None)) == ""
    assert blocked_reason(make_job(tmp_path / "a", dataset="RotatedDigits")) == ""
    assert blocked_reason(make_job(tmp_path / "b")) == ""


def test_a_kind_is_let_go(tmp_path: Path):
    assert outcomes(tmp_path, "same", "same", "same")
    let_go(make_job(tmp_path))
    assert blocked_reason(make_job(tmp_path)) == ""
    let_go(make_job(tmp_path))


def test_a_torn_line_counts_for_nothing(tmp_path: Path):
    job = make_job(tmp_path)
    outcomes(tmp_path, "same", "same")
    (file,) = (tmp_path / ".sweep" / "outcomes").rglob("*.jsonl")
    for torn in ('["x"\n', "7\n", '["a", "b", "c"]\n', "null\n", "[[], 3]\n", "\xff"):
        file.write_text(file.read_text(encoding="latin-1") + torn, encoding="latin-1")
        assert blocked_reason(job) == ""


# --- in a sweep

FULL = "No space left on device (the disk is full)"


def fill(disk: Path, free: int) -> Path:
    """Leave so many pages free on a small disk."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    with open(filler, "wb") as file:
        file.write(bytes((space.f_bavail - free) * space.f_frsize))
    return filler


def test_on_a_full_disk_the_job_fails_in_words_and_goes_on_when_there_is_room(small_disk: Path):
    """However full it is: at every write of the job that can be the first to find no room."""
    sweep = small_disk / "sweep"
    sweep.mkdir()
    job = make_job(sweep)
    was_kept = set()
    for free in range(0, 60):
        filler = fill(small_disk, free)
        (update,) = LauncherHere({}).launch([job])
        filler.unlink()
        if update.state == JobState.DONE:
            break
        assert update.state == JobState.FAILED, f"{free} pages free"
        assert FULL in update.reason, f"{free} pages free"
        status = status_of(job)
        if status.failure:
            assert FULL in status.failure.reason, f"{free} pages free"
        else:
            assert not (job.folder / ATTEMPT_FILE).exists() or free < 5, f"{free} pages free"
        was_kept.add(status.state)
        let_go(job)
        for path in job.folder.glob("*") if free % 2 else ():  # goes on from what the try before left, or begins anew
            path.unlink()
    assert update.state == JobState.DONE
    assert free > 10, "the disk never was too small"
    assert JobState.FAILED in was_kept
    assert steps_recorded(job) == [0, 1, 2]
    assert not (job.folder / FAILURE_FILE).exists()


def test_once_begun_the_failure_on_a_full_disk_is_kept(small_disk: Path, capsys: pytest.CaptureFixture):
    sweep = small_disk / "sweep"
    words = launch_words(sweep)
    jobs = jobs_of(words)
    fill(small_disk, 16)
    assert main(words) == 1
    assert f"FAILED {jobs[0]}: " in (told := capsys.readouterr().err)
    assert FULL in told
    status = status_of(jobs[0])
    assert status.state == JobState.FAILED
    assert status.failure is not None
    assert FULL in status.failure.reason
    (small_disk / "filler").unlink()
    assert main([*words, "--retry_failed"]) == 0
    assert states(jobs) == [JobState.DONE] * 3


def test_a_sweeps_folder_that_may_not_be_written_to(small_disk: Path, capsys: pytest.CaptureFixture):
    words = launch_words(small_disk / "sweep", "--n_hparams", 2)
    assert main(launch_words(small_disk / "sweep")) == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    capsys.readouterr()
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out.endswith("3 not launched, 3 done\n")
    assert told.err.startswith("error: ")
    assert "Read-only file system" in told.err
    assert told.err.count("\n") == 1
    assert main(["status", "--output_dir", small_disk / "sweep"]) == 0, "to look, reading is enough"
    (update,) = LauncherHere({}).launch([make_job(small_disk / "sweep")])
    assert update.state == JobState.FAILED
    assert "Read-only file system" in update.reason


def test_data_that_are_missing_where_the_job_runs(
    tmp_path: Path, small_mnist_dir: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """They were there when the launch looked."""
    launch = LauncherHere.launch

    def launch_elsewhere(self, jobs, should_stop=lambda: False):
        os.rename(small_mnist_dir, small_mnist_dir + " gone")
        yield from launch(self, jobs, should_stop)

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
        assert f"--data_dir '{small_mnist_dir}' is not a folder" in status_of(job).failure.reason
    os.rename(small_mnist_dir + " gone", small_mnist_dir)
    assert main([*words, "--retry_failed"]) == 0


def test_a_figure_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = launch_words(tmp_path / "sweep", how="nan")
    jobs = jobs_of(words)
    well = launch_words(tmp_path / "sweep", "--algorithms", "ERM", "--hparams", '{"batch_size": 4}')
    assert main(words) == 1
    told = capsys.readouterr()
    assert "3 failed after" in told.out
    assert main(well) == 0, "the others go on"
    assert states(jobs) == [JobState.FAILED] * 3
    assert status_of(jobs[0]).failure.reason.startswith("at step 0 loss is nan; the job ends")
    assert told.err.count(f"FAILED {jobs[0]}: at step 0 loss is nan; ") == 1


def test_what_failed_is_left_alone_until_it_is_to_be_retried(tmp_path: Path, capsys: pytest.CaptureFixture):
    (cause := tmp_path / "cause").write_text("")
    words = launch_words(tmp_path / "sweep", how="raise", cause=str(cause), at=1)
    jobs = jobs_of(words)
    assert main(words) == 1
    before = {job: (job.folder / FAILURE_FILE).read_bytes() for job in jobs}
    capsys.readouterr()
    assert main(words) == 1
    told = capsys.readouterr().out
    assert told == (
        f"3 jobs in {tmp_path / 'sweep'}: 3 failed\n"
        "What failed is left alone: status --failed tells why, --retry_failed tries again.\n"
    )
    assert {job: (job.folder / FAILURE_FILE).read_bytes() for job in jobs} == before
    assert main([*words, "--retry_failed"]) == 1
    assert [status_of(job).failure.times for job in jobs] == [2] * 3
    cause.unlink()
    assert main([*words, "--retry_failed"]) == 0
    for job in jobs:
        assert not {ATTEMPT_FILE, FAILURE_FILE, "lock"} & {path.name for path in job.folder.iterdir()}
    # ... and from where it had failed, as if it never had
    assert main(undisturbed := launch_words(tmp_path / "other", how="raise", cause=str(cause), at=1)) == 0
    assert [records(job) for job in jobs] == [records(job) for job in jobs_of(undisturbed)]


def test_only_three_of_a_kind_that_fails_are_begun(tmp_path: Path, quick_workers: None, capsys: pytest.CaptureFixture):
    """Real workers. The next launch says so, too; when the cause is gone, --retry_failed trains them all."""
    (cause := tmp_path / "cause").write_text("")
    words = launch_words(
        tmp_path / "sweep", "--n_trials", 3, "--workers", 1, launcher="local", how="raise", cause=str(cause)
    )
    jobs = jobs_of(words)
    assert len(jobs) == 9
    for begun in (3, 3):
        capsys.readouterr()
        assert main(words) == 1
        told = capsys.readouterr()
        assert sum(job.folder.exists() for job in jobs) == begun
        assert told.err.count("held back: the first 3 of its kind to end all failed alike") == 1
        assert told.err.count("RuntimeError: out of ideas at 0") >= 1
    assert "Traceback" not in told.err
    assert sorted(set(states(jobs)), key=str) == [JobState.FAILED, JobState.NOT_LAUNCHED]
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 1
    assert (
        "Misbehaving on ColoredDigits is held back, for the first 3 to end all failed alike: RuntimeError: out of "
        "ideas at 0\n  launch --retry_failed tries again\n" in capsys.readouterr().out
    )
    cause.unlink()
    assert main([*words, "--retry_failed"]) == 0
    assert states(jobs) == [JobState.DONE] * 9
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 0
    assert "held back" not in capsys.readouterr().out


def test_what_fails_otherwise_each_time_is_all_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (cause := tmp_path / "cause").write_text("")
    launch = LauncherHere.launch
    excuses = iter("abcdefghi")

    def launch_one_by_one(self, jobs, should_stop=lambda: False):
        for job in jobs:
            cause.write_text(next(excuses))
            yield from launch(self, [job], should_stop)

    monkeypatch.setattr(LauncherHere, "launch", launch_one_by_one)
    words = launch_words(tmp_path / "sweep", "--n_trials", 2, how="raise in own words", cause=str(cause))
    assert main(words) == 1
    assert states(jobs_of(words)) == [JobState.FAILED] * 6


@pytest.mark.parametrize("is_by_hand", [False, True])
def test_a_kind_whose_failed_folders_were_deleted_is_held_back_no_more(tmp_path: Path, is_by_hand: bool):
    """Deleted by hand, they leave nobody to notice, and --retry_failed must be given."""
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
    assert main([*words, *["--retry_failed"] * is_by_hand]) == 0


def test_outcomes_are_one_line_each(tmp_path: Path):
    outcomes(tmp_path, "two\nlines", "\u2028", "")
    (file,) = (tmp_path / ".sweep" / "outcomes").rglob("*.jsonl")
    assert len([json.loads(line) for line in file.read_text().split("\n") if line]) == 3
