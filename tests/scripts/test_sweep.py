"""From command to table, with real processes: launched, killed, launched again, collected."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domainbed.records import load_records, read_job
from domainbed.scripts import cli, sweep, train
from domainbed.sweep.job import Job, JobState

ARGS = ["--datasets", "ColoredDigits", "--algorithms", "ERM", "--n_hparams", "2", "--n_trials", "1"]
SMALL = [*ARGS, "--hparams", '{"batch_size": 8}']


def jobs_in(folder: Path, *args: str) -> list[Job]:
    return sweep.jobs_of(sweep.parser().parse_args(["launch", *args, "--output_dir", str(folder)]))


@pytest.mark.slow
def test_from_command_to_table(run_module, tmp_path: Path):
    folder = tmp_path / "sweep"
    command = ["sweep", "launch", *SMALL, "--steps", 3, "--leave_one_out", "--output_dir", folder, "--workers", 2]
    finished = run_module(*command, input="y\n")
    assert finished.returncode == 0, finished.stderr
    assert f"12 jobs in {folder}: 12 not launched" in finished.stdout
    assert "Launch 12 jobs with launcher local? [y/N]" in finished.stdout
    assert "[12/12]" in finished.stdout
    assert "12 done after" in finished.stdout

    jobs = jobs_in(folder, *SMALL, "--steps", "3", "--leave_one_out")
    assert {path.name for path in folder.iterdir()} == {job.folder.name for job in jobs}
    for job in jobs:
        assert {p.name for p in job.folder.iterdir()} == {"results.jsonl", "log.txt", "model.pkl", "done"}
        records, _ = read_job(job.folder)
        assert [r["step"] for r in records] == [0, 2]
        assert records[0]["args"] == job.config.args()
        assert records[0]["hparams"]["batch_size"] == 8

    written = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = run_module(*command)
    assert again.returncode == 0
    assert again.stdout == f"12 jobs in {folder}: 12 done\n"
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == written

    tables = run_module("collect_results", "--input_dir", folder)
    assert tables.returncode == 0, tables.stderr
    assert tables.stdout.startswith("12 jobs with records, 12 of them done\n\n==== Model selection: training-domain")
    rows = [line for line in tables.stdout.splitlines() if line.startswith("ERM ")]
    assert len(rows) == 6, "for each of three methods the dataset's table and the averages"
    assert all(re.search(r"\d+\.\d \+/- 0\.0", row) for row in rows)
    assert "X" not in tables.stdout


def test_every_option_of_a_job_reaches_it(tmp_path: Path):
    given = {
        "eval": "splits",
        "clean_evaluation": True,
        "on_bad_image": "skip",
        "weights_dir": "/w",
        "cache": "/c",
        "cache_gb": 2.5,
        "resident_gb": 1.5,
        "loader_workers": 3,
        "save_every": 2.5,
        "deterministic": True,
    }
    assert set(given) == set(cli.JOB_OPTIONS)
    flags = [word for name, v in given.items() for word in ([f"--{name}"] if v is True else [f"--{name}", str(v)])]
    for job in jobs_in(tmp_path, *ARGS, *flags):
        assert {name: getattr(job.config, name) for name in given} == given
        words = job.command()
        again = train.config_of(train.parser().parse_args(words[words.index("domainbed.scripts.train") + 1 :]))
        assert again == job.config
        assert {name: getattr(again, name) for name in given} == given


def children_of(pid: int) -> list[int]:
    finished = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in finished.stdout.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc, which only Linux has")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_stopped_midway_and_launched_again(run_module, tmp_path: Path, how: signal.Signals):
    folder = tmp_path / "sweep"
    endless = [*SMALL, "--steps", "1000000"]
    command = [sys.executable, "-m", "domainbed.scripts.sweep", "launch", *endless, "--output_dir", str(folder)]
    # A new session: the signal reaches the launcher alone, as a `kill` would.
    launcher = subprocess.Popen(
        [*command, "--skip_confirmation", "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    jobs = jobs_in(folder, *endless)
    try:
        wait_until(lambda: len(list(folder.glob("*/results.jsonl"))) == 2)
        workers = [pid for pid in children_of(launcher.pid) if is_alive(pid)]
        assert len(workers) >= 2
        os.kill(launcher.pid, how)
        _, stderr = launcher.communicate(timeout=60)
        wait_until(lambda: not any(is_alive(pid) for pid in workers), seconds=30)
    finally:
        launcher.kill()
    assert launcher.returncode == (130 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert stderr == "\nStopped. The same command launches again what is not done.\n"
    states = [job.state() for job in jobs]
    assert states.count(JobState.INCOMPLETE) == 2
    assert states.count(JobState.NOT_LAUNCHED) == len(jobs) - 2

    dummy = run_module("sweep", "launch", *endless, "--output_dir", folder, "--command_launcher", "dummy")
    assert f"{len(jobs)} jobs in {folder}: {len(jobs) - 2} not launched, 2 incomplete" in dummy.stderr
    assert all(" -m domainbed.scripts.train " in line for line in dummy.stdout.splitlines())
    assert len(dummy.stdout.splitlines()) == len(jobs)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 8])
def test_ctrl_c_in_the_terminal(tmp_path: Path, seconds: float):
    """It reaches launcher and workers alike, be they just starting: one line, no traceback."""
    words = ["launch", *SMALL, "--steps", "1000000", "--output_dir", str(tmp_path / "sweep"), "--skip_confirmation"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "domainbed.scripts.sweep", *words, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert launcher.stdout is not None
        assert launcher.stdout.readline().endswith("6 not launched\n")
        wait_until(lambda: len(children_of(launcher.pid)) >= 2)
        time.sleep(seconds)
        os.killpg(launcher.pid, signal.SIGINT)
        _, stderr = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 130
    assert stderr == "\nStopped. The same command launches again what is not done.\n"


@pytest.mark.slow
def test_two_launches_at_once_train_each_job_once(tmp_path: Path):
    words = ["launch", *SMALL, "--steps", "31", "--output_dir", str(tmp_path / "sweep"), "--skip_confirmation"]
    command = [sys.executable, "-m", "domainbed.scripts.sweep", *words, "--workers", "1"]
    launchers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    for launcher in launchers:
        _, stderr = launcher.communicate(timeout=200)
        assert (launcher.returncode, stderr) == (0, b"")
    jobs = jobs_in(tmp_path / "sweep", *SMALL, "--steps", "31")
    assert all(job.state() == JobState.DONE for job in jobs)
    for job in jobs:
        assert [r["step"] for r in read_job(job.folder)[0]] == [0, 30]
        assert (job.folder / "log.txt").read_text().count("step    30") == 1


@pytest.mark.slow
def test_a_killed_jobs_records_are_replaced(run_module, tmp_path: Path):
    folder = tmp_path / "sweep"
    args = [*SMALL, "--steps", "3"]
    jobs = jobs_in(folder, *args)
    jobs[0].folder.mkdir(parents=True)
    torn = json.dumps({"step": 100, "args": jobs[0].config.args()}) + '\n{"step": 2'
    (jobs[0].folder / "results.jsonl").write_text(torn)
    finished = run_module("sweep", "launch", *args, "--output_dir", folder, "--skip_confirmation")
    assert finished.returncode == 0, finished.stderr
    assert "5 not launched, 1 incomplete" in finished.stdout
    frame, problems = load_records(str(folder))
    assert problems == []
    assert frame.groupby("folder")["step"].apply(list).tolist() == [[0, 2]] * 6


@pytest.mark.slow
def test_failures_are_told_and_the_others_done(run_module, tmp_path: Path):
    """A job folder that can't be written to: its place is taken by a file."""
    folder = tmp_path / "sweep"
    args = [*SMALL, "--steps", "3"]
    jobs = jobs_in(folder, *args)
    folder.mkdir()
    jobs[2].folder.write_text("in the way")
    finished = run_module("sweep", "launch", *args, "--output_dir", folder, "--skip_confirmation")
    assert finished.returncode == 1
    assert f"FAILED {jobs[2]}: {jobs[2].folder}: File exists\n(no log at {jobs[2].folder}/log.txt)" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert "5 done, 1 failed after" in finished.stdout
    assert "The same command launches again what is not done." in finished.stdout
    assert [job.state() for job in jobs].count(JobState.DONE) == 5


def test_no_is_no(run_module, tmp_path: Path):
    finished = run_module("sweep", "launch", *SMALL, "--output_dir", tmp_path / "sweep", input="n\n")
    assert finished.returncode == 2
    assert finished.stderr == "error: nothing was launched\n"
    assert not (tmp_path / "sweep").exists()
