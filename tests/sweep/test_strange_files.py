"""Files of a sweep that were replaced by pipes, folders, devices, loops, huge files or other content."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from domainbed import cli
from domainbed.scripts import collect_results, list_top_hparams, sweep, train
from domainbed.sweep.job import LOG_FILE, Job
from domainbed.sweep.status import JobState
from tests.conftest import make_record
from tests.sweep.helpers import log_only, make_job, run_here

DEEP = "[" * 100_000
MEMORY = 256 << 20  # bytes that the commands may need in addition; reading the zeros would need 1 GB


def reset_peak_memory() -> int:
    """Make the present memory of this process its peak, and return it in bytes; 0 on systems without /proc."""
    with suppress(FileNotFoundError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_zeros(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**9)


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "pipe": make_pipe,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to(path.with_name("absent")),
    "zeros": make_zeros,
    "deep": lambda path: path.write_text(DEEP),
    "list": lambda path: path.write_text("[1, 2]"),
    "types": lambda path: path.write_text(
        json.dumps({"reason": 5, "times": "x", "host": [], "pid": "1", "n_trials": "3", "step": {}, "12": 7})
    ),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 10),
}
FILES = ["results.jsonl", "lock", "failed.json", "attempt.json", "done", ".sweep/slurm/12/tasks.json"]
GRID = ["--datasets", "ColoredDigits", "--algorithms", "ERM", "--n_hparams", "1", "--n_trials", "1", "--steps", "3"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Job]]:
    """Return a sweep of three jobs with records, of which the last one is not done."""
    folder = tmp_path_factory.mktemp("template") / "sweep"
    jobs = log_only(["launch", *GRID, "--output_dir", str(folder), "--skip_confirmation"])
    for job in jobs:
        record = make_record(test_envs=job.config.test_envs, step=2)
        record |= {"args": job.config.args(), "hparams": job.config.resolved_hparams()}
        job.folder.mkdir(parents=True)
        (job.folder / "results.jsonl").write_text(json.dumps(record) + "\n")
        (job.folder / "log.txt").write_text("log")
    for job in jobs[:-1]:
        (job.folder / "done").write_text("done")
    return folder, jobs


@pytest.fixture
def copied(template: tuple[Path, list[Job]], tmp_path: Path) -> tuple[Path, Path]:
    """Return a copy of the sweep, and the folder of its last job."""
    folder = tmp_path / "sweep"
    shutil.copytree(template[0], folder)
    return folder, folder / template[1][-1].folder.name


def run(module: object, *words: object) -> int:
    """Run a command as `cli.run` does, and return its exit status."""
    with pytest.raises(SystemExit) as end:
        cli.run(lambda _: module.main([str(word) for word in words]))  # type: ignore[attr-defined]
    return int(end.value.code or 0)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_reading_commands(
    file: str, replacement: str, copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys
):
    folder, job = copied
    monkeypatch.setattr("domainbed.engine.lock.TAKEOVER_DELAY", 0.1)
    path = folder / file if "/" in file else job / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    REPLACEMENTS[replacement](path)
    before = reset_peak_memory()
    commands = [
        (sweep, "status", "--output_dir", folder, "--failed"),
        (collect_results, "--input_dir", folder),
        (list_top_hparams, "--input_dir", folder, "--dataset", "ColoredDigits", "--algorithm", "ERM", "--test_env", 0),
        (sweep, "export", "--output_dir", folder, "--archive", folder.parent / "results.tar.xz"),
        (sweep, "cancel", "--output_dir", folder, "--skip_confirmation"),
        (sweep, "launch", *GRID, "--output_dir", folder, "--dry_run"),
    ]
    for module, *words in commands:
        assert run(module, *words) in (0, 1, 2, 3)
    assert peak_memory() - before < MEMORY
    assert os.path.lexists(path)
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("folder", ["", "whole"])
def test_cache(folder: str, replacement: str, copied: tuple[Path, Path], monkeypatch, capsys):
    monkeypatch.setattr("domainbed.reporting.load.MIN_JOBS", 1)
    assert run(collect_results, "--input_dir", copied[0]) == 0
    before = capsys.readouterr()
    (cached, *_) = (copied[0] / ".sweep" / "records" / folder).glob("*.arrow")
    cached.unlink()
    REPLACEMENTS[replacement](cached)
    assert run(collect_results, "--input_dir", copied[0]) == 0
    assert capsys.readouterr() == before


def test_log_that_is_a_pipe_fails_the_job(tmp_path: Path):
    job = make_job(tmp_path)
    job.folder.mkdir(parents=True)
    os.mkfifo(job.folder / LOG_FILE)
    (event,) = run_here(job)
    assert event.state == JobState.FAILED
    assert str(job.folder / LOG_FILE) in event.reason


@pytest.mark.parametrize("file", ["results.jsonl", "lock", "attempt.json"])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_deleting_ends_in_words(file: str, replacement: str, copied: tuple[Path, Path], monkeypatch):
    folder, job = copied
    monkeypatch.setattr("domainbed.engine.lock.TAKEOVER_DELAY", 0.1)
    (job / file).unlink(missing_ok=True)
    REPLACEMENTS[replacement](job / file)
    os.utime(job / file, (0, 0), follow_symlinks=False)
    done = sorted(path for path in folder.iterdir() if path != job)
    assert run(sweep, "delete_incomplete", "--output_dir", folder, "--skip_confirmation") in (2, 3)
    assert sorted(path for path in folder.iterdir() if path != job) == done


@pytest.mark.parametrize("replacement", ["pipe", "folder", "device", "loop"])
def test_resuming_training_ends_in_words(replacement: str, copied: tuple[Path, Path], monkeypatch, capsys):
    _, job = copied
    path = job / "results.jsonl"
    path.unlink()
    REPLACEMENTS[replacement](path)
    args = ["--dataset", "ColoredDigits", "--algorithm", "ERM", "--test_envs", 0, "--steps", 3, "--output_dir", job]
    status = run(train, *args)
    assert status == 2
    assert "results.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_launch_files(replacement: str, copied: tuple[Path, Path], capsys):
    folder, _ = copied
    REPLACEMENTS[replacement](folder / ".sweep" / "launches" / "other.json")
    assert run(sweep, "status", "--output_dir", folder) == 3
    out, err = capsys.readouterr()
    assert "2 of 3 jobs done" in out
    assert "other.json" in err
