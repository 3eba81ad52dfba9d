"""Sweeps with real processes: launched, killed, resumed, collected."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from domainbed.engine.config import JobConfig
from domainbed.records import append_record, mark_done, read_job
from domainbed.scripts import sweep, train
from domainbed.sweep.grid import NOT_SHARED
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.status import JobState
from tests.conftest import read_sweep
from tests.processes import children_of, is_alive, wait_until
from tests.sweep.helpers import (
    LauncherHere,
    fill_folder,
    jobs_of,
    launch_words,
    main,
    records,
    start_launch,
    states,
    steps_recorded,
)

ARGS = ["--datasets", "ColoredDigits", "--algorithms", "ERM", "--n_hparams", "2", "--n_trials", "1"]
SMALL = [*ARGS, "--hparams", '{"batch_size": 8}']


@pytest.fixture
def here() -> Iterator[None]:
    """`--command_launcher here` runs jobs in this process, with one thread, like two workers on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with LAUNCHERS.temporarily("here", LauncherHere):
        yield
    torch.set_num_threads(before)


def jobs_in(folder: Path, *args: str) -> list[Job]:
    return jobs_of(["launch", *args, "--output_dir", str(folder)])


@pytest.mark.slow
def test_launch_and_collect(run_module, run_command, tmp_path: Path):
    folder = tmp_path / "sweep"
    command = ["sweep", "launch", *SMALL, "--steps", 3, "--leave_one_out", "--output_dir", folder, "--workers", 2]
    finished = run_module(*command, input="y\n")
    assert finished.returncode == 0, finished.stderr
    assert f"12 jobs in {folder}: 12 not launched" in finished.stdout
    assert "Launch 12 jobs with launcher local? [y/N]" in finished.stdout
    assert "[12/12]" in finished.stdout
    assert "12 done after" in finished.stdout

    jobs = jobs_in(folder, *SMALL, "--steps", "3", "--leave_one_out")
    assert {path.name for path in folder.iterdir()} == {job.folder.name for job in jobs} | {".sweep"}
    for job in jobs:
        assert {p.name for p in job.folder.iterdir()} == {"results.jsonl", "log.txt", "model.pkl", "done"}
        records, _ = read_job(job.folder)
        assert [r["step"] for r in records] == [0, 2]
        assert records[0]["args"] == job.config.args()
        assert records[0]["hparams"]["batch_size"] == 8

    written = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = run_command(*command)
    assert again.returncode == 0
    assert again.stdout == f"12 jobs in {folder}: 12 done\n"
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == written

    tables = run_command("collect_results", "--input_dir", folder)
    assert tables.returncode == 0, tables.stderr
    assert tables.stdout.startswith("12 runs requested: 12 done\n\n==== Model selection: training-domain")
    rows = [line for line in tables.stdout.splitlines() if line.startswith("ERM ")]
    assert len(rows) == 6, "the dataset's table and the averages, for each of three methods"
    assert all(re.search(r"\d+\.\d \(n = 1\)", row) for row in rows)
    assert "X" not in tables.stdout


def test_launch_with_the_archive_of_another_sweep(run_command, tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    archive = tmp_path / "records.tar.xz"
    launch = ["sweep", "launch", *SMALL, "--steps", 3, "--skip_confirmation", "--workers", 2]
    assert run_command(*launch, "--output_dir", first).returncode == 0
    exported = run_command("sweep", "export", "--output_dir", first, "--archive", archive)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith(f"6 jobs written to {archive} (")
    more = ["--n_trials", 2]
    finished = run_command(*launch, *more, "--output_dir", second, "--import_results", archive)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0].startswith(f"6 jobs imported from {archive}; ")
    assert lines[1] == f"12 jobs in {second}: 6 not launched, 6 done"
    assert run_command(*launch, *more, "--output_dir", first).returncode == 0
    tables = [run_command("collect_results", "--input_dir", folder) for folder in (first, second)]
    assert tables[0].stdout == tables[1].stdout
    assert tables[0].stdout.startswith("12 runs requested: 12 done")


def test_options_of_jobs_reach_them(tmp_path: Path):
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
        "protocol": "head",
        "precision": "bf16",
        "engine": "eager",
        "compile": "off",
        "track": "landscape",
        "log_to": ("csv",),
        "task": "domain_adaptation",
        "uda_holdout_fraction": 0.25,
        "save_model_every_checkpoint": True,
        "save_best_model": True,
        "save_predictions": True,
        "averaging": "swad",
        "trust_checkpoint": True,
        "init_from": str(tmp_path / "model.pkl"),
    }
    (tmp_path / "model.pkl").touch()
    of_tables = {"columns", "split_by"}  # see tests/datasets/test_table.py
    elsewhere = {"data_dir", "steps", "hparams", "holdout_fraction", "skip_model_save", "imports", *of_tables}
    assert set(given) == {f.name for f in fields(JobConfig)} - NOT_SHARED - elsewhere
    flags = []
    for name, v in given.items():
        flags += [f"--{name}", *([] if v is True else v if isinstance(v, tuple) else [str(v)])]
    for job in jobs_in(tmp_path, *ARGS, *flags):
        assert {name: getattr(job.config, name) for name in given} == given
        words = job.command()
        again = train.config_of(train.parser().parse_args(words[words.index("domainbed.scripts.train") + 1 :]))
        assert again == job.config
        assert {name: getattr(again, name) for name in given} == given


def start_session(words: list[str]) -> subprocess.Popen:
    """Start a launch in a new session, so that its process group can be sent SIGINT, as a terminal does on Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "domainbed.scripts.sweep", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


STOPPING = "\nStopping after saving a checkpoint; press Ctrl-C again to stop immediately.\n"
STOPPED = "Stopped. Run the same command to resume.\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="requires /proc, which only Linux has")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_resumed_sweep_equals_undisturbed(tmp_path: Path, how: signal.Signals, here: None):
    """However the launch ends, its jobs save their state."""
    (slow := tmp_path / "slow").touch()
    words = launch_words(
        tmp_path / "sweep", "--steps", 250, "--workers", 2, launcher="local", how="slow", cause=str(slow)
    )
    jobs = jobs_of(words)
    launcher = start_session(words)
    try:
        # between their first two evaluations
        wait_until(
            lambda: sum(log_of(job).count("about to do slow") > 2 for job in jobs) == 2,
            lambda: "\n".join(map(log_of, jobs)),
        )
        workers = [pid for pid in children_of(launcher.pid) if is_alive(pid)]
        assert len(workers) >= 2
        if how == signal.SIGINT:
            os.killpg(launcher.pid, how)
        else:
            os.kill(launcher.pid, how)
        _, stderr = launcher.communicate(timeout=60)
        wait_until(lambda: not any(is_alive(pid) for pid in workers), seconds=30)
    finally:
        launcher.kill()
    assert launcher.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    assert stderr == {signal.SIGINT: STOPPING + STOPPED, signal.SIGTERM: STOPPED, signal.SIGKILL: ""}[how]
    assert sorted(state.value for state in states(jobs)) == ["incomplete", "incomplete", "not launched"]
    for job in jobs[:2]:
        assert re.fullmatch(r"stopped after \d+ of 250 steps", (job.folder / "log.txt").read_text().splitlines()[-1])
        assert not (job.folder / "lock").exists()

    slow.unlink()
    again = [*words, "--command_launcher", "here"]
    assert main(again) == 0
    for job in jobs[:2]:
        assert steps_recorded(job) == [0, 100, 200, 249]
    assert main(undisturbed := launch_words(tmp_path / "o", "--steps", 250, how="slow", cause=str(slow))) == 0
    assert [records(job) for job in jobs] == [records(job) for job in jobs_of(undisturbed)]


@pytest.mark.slow
def test_ctrl_c_while_workers_start(tmp_path: Path):
    """It reaches the launcher and its workers. The output is two lines and no traceback."""
    words = launch_words(tmp_path / "sweep", "--workers", 2, "--steps", 10**6, launcher="local", how="slow")
    launcher = start_session(words)
    try:
        assert launcher.stdout is not None
        assert launcher.stdout.readline().endswith("3 not launched\n")
        wait_until(lambda: len(children_of(launcher.pid)) >= 2)
        os.killpg(launcher.pid, signal.SIGINT)
        _, stderr = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 130
    assert stderr == STOPPING + STOPPED


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="requires /proc, which only Linux has")
def test_second_ctrl_c_kills_the_jobs(tmp_path: Path):
    """Even a job that hangs in an update."""
    words = launch_words(tmp_path / "sweep", "--workers", 1, launcher="local", how="sleep", at=1)
    jobs = jobs_of(words)
    launcher = start_session(words)
    try:
        wait_until(lambda: "about to do sleep" in log_of(jobs[0]))
        workers = [pid for pid in children_of(launcher.pid) if is_alive(pid)]
        os.killpg(launcher.pid, signal.SIGINT)
        assert launcher.stderr is not None
        assert launcher.stderr.readline() + launcher.stderr.readline() == STOPPING
        time.sleep(1)
        assert states(jobs)[0] == JobState.RUNNING
        os.killpg(launcher.pid, signal.SIGINT)
        _, stderr = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode == 130
    assert stderr == STOPPED
    wait_until(lambda: not any(is_alive(pid) for pid in workers), seconds=30)
    assert [state.value for state in states(jobs)] == ["incomplete", "not launched", "not launched"]


def log_of(job: Job) -> str:
    log = job.folder / "log.txt"
    return log.read_text() if log.exists() else ""


@pytest.mark.slow
def test_simultaneous_launches_train_each_job_once(tmp_path: Path):
    words = launch_words(tmp_path / "sweep", "--n_trials", 3, "--steps", 31, "--workers", 2, launcher="local")
    jobs = jobs_of(words)
    launchers = [start_launch(words, tmp_path / f"{i}.log") for i in range(3)]
    for launcher in launchers:
        launcher.join(200)
    logs = [(tmp_path / f"{i}.log").read_text() for i in range(3)]
    for launcher, log in zip(launchers, logs, strict=True):
        assert launcher.exitcode in (0, 3), log  # 3: another launch is still running the last job
        assert "FAILED" not in log
        assert "Traceback" not in log
    assert 0 in [launcher.exitcode for launcher in launchers]
    assert states(jobs) == [JobState.DONE] * 9
    for job in jobs:
        assert steps_recorded(job) == [0, 30]
        assert log_of(job).count("step    30") == 1
        assert {path.name for path in job.folder.iterdir()} == {"done", "log.txt", "model.pkl", "results.jsonl"}


def test_records_without_checkpoint_are_replaced(tmp_path: Path, here: None, capsys: pytest.CaptureFixture):
    folder = tmp_path / "sweep"
    words = launch_words(folder)
    jobs = jobs_of(words)
    jobs[0].folder.mkdir(parents=True)
    torn = json.dumps({"step": 100, "args": jobs[0].config.args()}) + '\n{"step": 2'
    (jobs[0].folder / "results.jsonl").write_text(torn)
    assert main(words) == 0
    assert "2 not launched, 1 incomplete" in capsys.readouterr().out
    frame, problems = read_sweep(folder)
    assert problems == []
    assert frame.groupby("folder")["step"].apply(list).tolist() == [[0, 2]] * 3


def test_failed_job_does_not_affect_others(tmp_path: Path, here: None, capsys: pytest.CaptureFixture):
    """Its folder cannot be created, because a file has its name."""
    folder = tmp_path / "sweep"
    words = launch_words(folder)
    jobs = jobs_of(words)
    folder.mkdir()
    jobs[2].folder.write_text("in the way")
    assert main(words) == 1, "although the failure cannot be recorded"
    output = capsys.readouterr()
    assert output.err == f"FAILED {jobs[2]}: {jobs[2].folder}: File exists\n"
    assert "1 not launched, 2 done after" in output.out
    jobs[2].folder.unlink()
    assert main(words) == 0


def test_launch_of_a_finished_sweep_requires_no_data(tmp_path: Path, here: None, small_mnist_dir: str):
    words = launch_words(tmp_path / "sweep", "--datasets", "ColoredMNIST", "--data_dir", small_mnist_dir)
    with pytest.warns(UserWarning, match="has 120 images"):
        assert main(words) == 0
    os.rename(small_mnist_dir, f"{small_mnist_dir} gone")
    assert main(words) == 0
    assert main(["status", "--output_dir", tmp_path / "sweep"]) == 0


def test_answer_no_launches_nothing(
    tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    words = [word for word in launch_words(tmp_path / "sweep") if word != "--skip_confirmation"]
    for answer in ("n", "", "yess", "of course not"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert main(words) == 2
        assert capsys.readouterr().err == "error: nothing was launched\n"
        assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("options", [["--command_launcher", "dummy"], ["--command_launcher", "local", "--dry_run"]])
def test_dry_run_prints_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str]):
    words = launch_words(tmp_path / "sweep", *options)
    assert main(words) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [shlex.join(job.command()) for job in jobs_of(words)]
    assert output.err == f"3 jobs in {tmp_path / 'sweep'}: 3 not launched\n"
    assert not (tmp_path / "sweep").exists()


def test_longest_jobs_start_first(tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch):
    """According to the finished jobs."""
    words = launch_words(tmp_path / "sweep", "--algorithms", "ERM", "Misbehaving", "--hparams", '{"batch_size": 4}')
    jobs = jobs_of(words)
    for job, seconds in ((jobs[0], 0.1), (jobs[3], 20.0)):
        job.folder.mkdir(parents=True)
        append_record(job.folder, {"step": 2, "step_time": seconds})
        mark_done(job.folder)
    order: list[Job] = []
    monkeypatch.setattr(LauncherHere, "launch", lambda self, jobs, *_: order.extend(jobs) or iter(()))
    assert main(words) == 3
    assert [job.config.algorithm for job in order] == ["Misbehaving"] * 2 + ["ERM"] * 2


README = Path(sweep.__file__).parents[1] / "sweep" / "README.md"


PRINT_TABLE = """
from domainbed.options import options_table
from domainbed.pruning import PruneOptions
from domainbed.scripts.sweep_parser import LaunchOptions
from domainbed.sweep.grid import Grid
from domainbed.sweep.launchers.local import LocalOptions
from domainbed.sweep.launchers.slurm import SlurmOptions
print(options_table(Grid, LaunchOptions, PruneOptions, LocalOptions, SlurmOptions), end="")
"""


def test_options_table_in_readme():
    """In a new process, in which no test has registered an algorithm."""
    marker = "<!-- options_table(Grid, LaunchOptions, PruneOptions, LocalOptions, SlurmOptions) -->\n"
    _, table, _ = README.read_text().split(marker)
    finished = subprocess.run([sys.executable, "-c", PRINT_TABLE], capture_output=True, text=True, check=True)
    assert table == finished.stdout


@pytest.mark.slow
def test_example_launcher_in_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its option works on the command line and in a configuration file, which also imports it."""
    example, _ = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_launchers.py").write_text(example)
    (tmp_path / "prefix.yaml").write_text("import: my_launchers\ncommand_launcher: prefix\nprefix: 'false'\n")
    monkeypatch.chdir(tmp_path)
    words = ["launch", *SMALL, "--steps", "3", "--n_hparams", "1", "--skip_confirmation", "--output_dir", "sweep"]
    for job in jobs_of(words)[1:]:
        fill_folder(job, JobState.DONE)

    def launch(*options: str) -> tuple[int | None, str]:
        process = start_launch([*words, *options], log := tmp_path / "log")
        process.join(200)
        return process.exitcode, log.read_text()

    status, output = launch("--launcher_config", "prefix.yaml")
    assert status == 3, output
    assert "1 not launched, 2 done after" in output
    options = ["--import", "my_launchers", "--command_launcher", "prefix", "--prefix", "env PYTHONPATH=."]
    status, output = launch(*options)
    assert status == 0, output
    assert "3 done after" in output
