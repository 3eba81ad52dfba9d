"""Checkpoints that are damaged, of another job, or on a full disk: messages, kept files, and equal results."""

import errno
import itertools
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.algorithms import ALGORITHMS
from domainbed.engine import checkpoint
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import is_locked, locked
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import read_job
from tests.engine import test_resume
from tests.engine.test_resume import (
    FINISHED,
    Crash,
    cached_undisturbed,
    crash_at,
    make,
    result,
    stop_at,
    train_disturbed,
)

LAST, PREVIOUS = checkpoint.CHECKPOINT_FILES


class Evil:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


class KeepsObjects(test_resume.DrawsRandomly):
    """An algorithm whose state has an object that only pickle can save."""

    def training_state(self):
        return {**super().training_state(), "object": Fraction(1, 3)}


registered = test_resume.registered


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory, registered) -> Path:
    """A job that crashed after its second record. Its previous checkpoint was saved during that evaluation."""

    def crash(step: int) -> None:
        raise Crash

    folder = tmp_path_factory.mktemp("unfinished") / "job"
    with pytest.raises(Interrupted):
        train(make(folder), JobControl(should_stop=stop_at(1 + 6 + 3 + 3)))
    with pytest.raises(Crash):
        train(make(folder), JobControl(on_record=crash))
    saved = {name: torch.load(folder / name, weights_only=False) for name in (LAST, PREVIOUS)}
    assert [(state["step"], state["is_evaluated"]) for state in saved.values()] == [(4, True), (4, False)]
    assert [r["step"] for r in read_job(folder)[0]] == [0, 3]
    assert {path.name for path in folder.iterdir()} == {LAST, PREVIOUS, "results.jsonl"}
    return folder


@pytest.fixture
def job(unfinished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(unfinished, tmp_path / "job")


def resume(folder: Path, capsys: pytest.CaptureFixture) -> str:
    """Train the job to its end, check that it equals an undisturbed one, and return the output."""
    capsys.readouterr()
    train(make(folder))
    assert result(folder) == cached_undisturbed()
    assert {path.name for path in folder.iterdir()} == FINISHED
    return capsys.readouterr().out


@pytest.mark.parametrize("fraction", [0, 1e-4, 0.3, 0.7, 0.999, 1])
def test_truncated_checkpoint_is_reported_and_the_previous_one_used(
    job: Path, capsys: pytest.CaptureFixture, fraction: float
):
    content = (job / LAST).read_bytes()
    (job / LAST).write_bytes(content[: min(int(fraction * len(content)), len(content) - 1)])
    out = resume(job, capsys)
    assert f"{job / LAST} is damaged and cannot be used: " in out
    assert "Resuming from checkpoint at step 4." in out


@pytest.mark.parametrize("content", ["zeros", "text", "another pickle", "another zip"])
def test_other_file_in_place_of_a_checkpoint_is_reported(job: Path, capsys: pytest.CaptureFixture, content: str):
    size = (job / LAST).stat().st_size
    if content == "another pickle":
        torch.save([1, 2], job / LAST, _use_new_zipfile_serialization=False)
    elif content == "another zip":
        shutil.make_archive(str(job / "x"), "zip", job.parent)
        (job / "x.zip").rename(job / LAST)
    else:
        (job / LAST).write_bytes(b"\0" * size if content == "zeros" else b"hello")
    assert f"{job / LAST} is damaged and cannot be used: " in resume(job, capsys)


def test_flipped_bit_never_changes_a_result(unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """It is not reported if it is in a part of the file that is never read."""
    content = (unfinished / LAST).read_bytes()
    folders = (tmp_path / str(n) for n in itertools.count())
    reported: list[bool] = []

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.integers(0, len(content) - 1), st.integers(0, 7))
    def flip(position: int, bit: int) -> None:
        folder = shutil.copytree(unfinished, next(folders))
        with open(folder / LAST, "r+b") as file:
            file.seek(position)
            file.write(bytes([content[position] ^ 1 << bit]))
        reported.append("is damaged" in resume(folder, capsys))

    flip()
    assert sum(reported) > len(reported) / 4


def test_job_starts_over_if_both_checkpoints_are_damaged(job: Path, capsys: pytest.CaptureFixture):
    for name in (LAST, PREVIOUS):
        (job / name).write_bytes((job / name).read_bytes()[:-100])
    out = resume(job, capsys)
    assert f"{job / LAST} is damaged" in out
    assert f"{job / PREVIOUS} is damaged" in out
    assert "Unfinished run found, but no checkpoint; starting over." in out


def test_damaged_checkpoint_never_replaces_a_valid_one(job: Path, capsys: pytest.CaptureFixture):
    (job / LAST).write_bytes(b"")
    with pytest.raises(Interrupted):
        train(make(job), JobControl(should_stop=stop_at(1)))
    for name in (LAST, PREVIOUS):
        assert checkpoint._read(job / name, is_trusted=False)["step"] == 4
    (job / LAST).unlink()  # as if killed between moving the old checkpoint away and the new one into place
    assert "Resuming from checkpoint at step 4." in resume(job, capsys)


def test_incomplete_record_after_the_checkpoint_is_removed(job: Path, capsys: pytest.CaptureFixture):
    with open(job / "results.jsonl", "ab") as file:
        file.write(b'{"step": 6, "torn\xff')
    assert "is damaged" not in resume(job, capsys)


@pytest.mark.parametrize("lost", [1, "a record", "all"])
def test_checkpoint_whose_records_are_lost_is_not_used(job: Path, capsys: pytest.CaptureFixture, lost):
    """The last byte, the second record, or both records are lost. In the last case, neither checkpoint is used."""
    results = job / "results.jsonl"
    first, second = results.read_bytes().splitlines(keepends=True)
    results.write_bytes({1: first + second[:-1], "a record": first, "all": b""}[lost])
    out = resume(job, capsys)
    assert f"{job / LAST} is damaged and cannot be used: results.jsonl lacks records that were written before" in out
    assert ("Resuming from checkpoint at step 4." in out) == (lost != "all")


@pytest.mark.parametrize("record", [0, 1])
def test_flipped_bit_in_a_record_is_reported(job: Path, capsys: pytest.CaptureFixture, record: int):
    """The previous checkpoint is used if the records before it are intact; otherwise the job starts over."""
    results = job / "results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    position = sum(map(len, lines[:record])) + lines[record].index(b'"loss": ') + len(b'"loss": ')
    content = bytearray(results.read_bytes())
    content[position] ^= 1
    results.write_bytes(content)
    out = resume(job, capsys)
    assert f"{job / LAST} is damaged and cannot be used: records in results.jsonl have changed since the check" in out
    assert ("Resuming from checkpoint at step 4." in out) == (record == 1)


def test_checkpoint_without_checksum_is_used(job: Path, capsys: pytest.CaptureFixture):
    """As written by earlier versions."""
    saved = torch.load(job / LAST, weights_only=False)
    del saved["records_checksum"]
    torch.save(saved, job / LAST)
    assert "is damaged" not in resume(job, capsys)


def test_job_starts_over_if_there_is_no_checkpoint(job: Path, capsys: pytest.CaptureFixture):
    for name in (LAST, PREVIOUS):
        (job / name).unlink()
    for name in ("checkpoint.pt", "model_step4.pkl", "records.csv", "mlflow_run.txt"):
        (job / f"{name}.{32 * '0'}.part").write_bytes(b"left by a killed process")
    assert "no checkpoint; starting over" in resume(job, capsys)
    assert not list(job.glob("*.part"))


def test_partial_files_of_other_programs_are_kept(job: Path):
    """Such as an export of the model, or a download."""
    (job / f"model.onnx.{32 * '0'}.part").write_bytes(b"export")
    (job / f"model.pkl.{32 * '0'}.part").mkdir()
    (job / "linux.iso.part").write_bytes(b"download")
    train(make(job))
    assert {path.name.partition(".")[0] for path in job.glob("*.part")} == {"model", "linux"}
    assert len(list(job.glob("*.part"))) == 3


@pytest.mark.parametrize("has_records", [True, False])
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"seed": 1}, "seed is 0 there, not 1"),
        ({"steps": 8, "seed": 1}, "seed is 0 there, not 1; steps is 7 there, not 8"),
        ({"hparams": '{"batch_size": 5}'}, 'hparams is {"batch_size": 4} there, not {"batch_size": 5}'),
    ],
    ids=str,
)
def test_checkpoint_of_another_job_is_kept(
    job: Path, has_records: bool, other: dict, difference: str, monkeypatch: pytest.MonkeyPatch
):
    if not has_records:  # it was stopped before the first
        shutil.rmtree(job)
        with pytest.raises(Interrupted):
            train(make(job), JobControl(should_stop=stop_at(1)))
    kept = {path.name: path.read_bytes() for path in job.iterdir()}
    with monkeypatch.context() as patch:
        if has_records:  # it is refused before anything is loaded
            patch.setattr("domainbed.engine.train.set_up", None)
        with pytest.raises(UsageError) as error:
            train(make(job, **other))
    assert str(error.value) == f"{job} contains another, unfinished run ({difference}); choose another --output_dir"
    assert {path.name: path.read_bytes() for path in job.iterdir()} == kept
    train(make(job))
    assert result(job) == cached_undisturbed()


def test_arguments_that_do_not_determine_results_may_change(job: Path):
    more = {"save_every": 3.0, "deterministic": False, "cache_gb": 7.0, "save_model_every_checkpoint": True}
    train(make(job, **more))
    assert {path.name for path in job.iterdir()} == FINISHED | {"model_step6.pkl"}


def test_other_software_versions_are_reported(
    job: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoint, "software_versions", lambda: "domainbed 9, Python 4, torch 3")
    out = resume(job, capsys)
    assert f"{job / LAST} was written by domainbed " in out
    assert "; results may differ in the last digits" in out


def mount(*args: object) -> None:
    process = subprocess.run(["mount", *map(str, args)], capture_output=True, text=True)
    if process.returncode:
        pytest.skip(f"cannot mount a file system: {process.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 KB. A checkpoint takes 20 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("cannot mount a file system: mount is not installed")
    mount("-t", "tmpfs", "-o", "size=400k", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, free: int) -> None:
    """Fill a disk except for some bytes."""
    (disk / "reserve").write_bytes(b"x" * free)
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    (disk / "reserve").unlink()


@pytest.mark.parametrize("save_every", [1e-9, 10.0], ids=["after every update", "at evaluations"])
@pytest.mark.parametrize("free", [0, 4096, 8192, 16384])
def test_job_on_a_full_disk_fails_and_can_be_resumed(small_disk: Path, save_every: float, free: int):
    """Part of a checkpoint fits on the disk. A record may fit into the last block of its file."""
    folder = small_disk / "job"

    def fill_disk(step: int) -> None:
        if step == 3:
            fill(small_disk, free)

    with pytest.raises(OSError, match="No space left on device") as error:
        train(make(folder, save_every=save_every), JobControl(on_record=fill_disk))
    assert error.value.errno == errno.ENOSPC
    assert {path.name for path in folder.iterdir()} == {LAST, PREVIOUS, "results.jsonl"}
    for name in (LAST, PREVIOUS):
        assert checkpoint._read(folder / name)["step"] <= 5
    assert [r["step"] for r in read_job(folder)[0]][:2] == [0, 3]
    if not free:
        with pytest.raises(OSError, match="No space left on device"):  # not even for a lock
            train(make(folder))
        assert not is_locked(folder)
    (small_disk / "filler").unlink()
    train(make(folder))
    assert result(folder) == cached_undisturbed()
    assert {path.name for path in folder.iterdir()} == FINISHED


def test_model_is_saved_by_a_resumed_job_after_the_disk_was_full(small_disk: Path):
    folder = small_disk / "job"
    with pytest.raises(OSError, match="No space left on device"):
        train(make(folder), JobControl(on_record=lambda step: fill(small_disk, 0) if step == 6 else None))
    assert {path.name for path in folder.iterdir()} == {LAST, PREVIOUS, "results.jsonl"}
    (small_disk / "filler").unlink()
    train(make(folder))
    assert result(folder) == cached_undisturbed()


def test_heartbeat_continues_on_a_full_disk(small_disk: Path):
    with locked(small_disk) as lock:
        fill(small_disk, 0)
        for step in (5, 10**9):
            lock.start_from(step)
            assert f'"first_step": {step}'.encode() in (small_disk / "lock").read_bytes()
    assert not is_locked(small_disk)


def test_read_only_folder_is_reported(small_disk: Path):
    train_disturbed(make(small_disk / "other", steps=1), [])
    with pytest.raises(Crash):
        train(make(small_disk / "job"), JobControl(should_stop=crash_at(12)))
    mount("-o", "remount,ro", small_disk)
    before = {path.name: path.read_bytes() for path in (small_disk / "job").iterdir()}
    for name in ("job", "another"):
        with pytest.raises(UsageError, match=rf"^--output_dir .*/{name}: Read-only file system$"):
            train(make(small_disk / name))
    assert {path.name: path.read_bytes() for path in (small_disk / "job").iterdir()} == before
    mount("-o", "remount,rw", small_disk)
    train(make(small_disk / "job"))
    assert result(small_disk / "job") == cached_undisturbed()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert"), torch.OutOfMemoryError("full")])
def test_failing_gpu_does_not_count_as_a_damaged_checkpoint(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: Exception
):
    """A GPU fails while a checkpoint, already read on the CPU, is loaded to it."""
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    load = torch.load

    def failing(path, map_location=None, **kwargs):
        if map_location is None:
            raise error
        return load(path, map_location=map_location, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch, "load", failing)
        with pytest.raises(type(error), match=str(error)):
            checkpoint.load_checkpoint(job)
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before
    resume(job, capsys)


def test_checkpoint_of_another_version_is_kept(job: Path):
    saved = torch.load(job / LAST, weights_only=False)
    del saved["seconds"]
    torch.save(saved, job / LAST)
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    with pytest.raises(UsageError, match="was written by another version of domainbed; delete the folder"):
        train(make(job))
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before


@pytest.mark.parametrize(
    "raised", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: uncorrectable ECC error")]
)
def test_failing_device_is_not_blamed_on_the_checkpoint(
    job: Path, monkeypatch: pytest.MonkeyPatch, raised: RuntimeError
):
    def fail(*args):
        raise raised

    monkeypatch.setattr("domainbed.algorithms.base.Algorithm.load_training_state", fail)
    with pytest.raises((RuntimeError, UsageError)) as error:
        train(make(job))
    assert "delete" not in str(error.value)
    assert (job / LAST).exists()


def test_checkpoint_that_does_not_match_the_algorithm_is_kept(job: Path):
    saved = torch.load(job / LAST, weights_only=False)
    saved["algorithm"]["modules"]["another"] = torch.zeros(1)
    torch.save(saved, job / LAST)
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    with pytest.raises(UsageError, match=r"does not match the current algorithm; delete the folder .*another"):
        train(make(job))
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before


@pytest.mark.parametrize("name", [LAST, PREVIOUS])
@pytest.mark.parametrize("where", ["args", "figures", "algorithm", "generators", "something else", "the whole file"])
def test_code_in_a_checkpoint_is_not_run(job: Path, tmp_path: Path, name: str, where: str):
    saved = torch.load(job / LAST, weights_only=True)
    evil = Evil(tmp_path / "executed")
    torch.save(evil if where == "the whole file" else saved | {where: evil}, job / name)
    if name == PREVIOUS:
        (job / LAST).unlink()
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    with pytest.raises(UsageError) as raised:
        train(make(job))
    message = str(raised.value)
    assert message.startswith(f"{job / name} contains objects of '{os.mkdir.__module__}.mkdir', and loading these can ")
    assert "--trust_checkpoint" in message
    assert "\n" not in message
    assert not (tmp_path / "executed").exists()
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"\x80", b"c", b"0", b"}}R.", b"\x80\x02(KBs.", b"\x80\x04\x95.", b"K\x01."])
def test_nonsense_in_an_intact_checkpoint_is_reported(job: Path, content: bytes, capsys: pytest.CaptureFixture):
    with zipfile.ZipFile(job / LAST) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(job / LAST, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("/data.pkl") else data)
    (job / PREVIOUS).unlink()
    try:
        loaded, message = checkpoint.load_checkpoint(job), capsys.readouterr().out
    except UsageError as error:
        loaded, message = None, str(error)
    assert loaded is None
    reasons = "is damaged and cannot be used|contains |was written by another version"
    assert re.match(f"{re.escape(str(job / LAST))} ({reasons})", message)


def test_state_that_could_not_be_loaded_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """But it is with --trust_checkpoint, if the file belongs to this user."""
    with ALGORITHMS.temporarily("KeepsObjects", KeepsObjects):
        config = make(tmp_path / "job", algorithm="KeepsObjects")
        with pytest.raises(UsageError, match=r"^training_state\(\)\['object'\] is of type Fraction, and"):
            train(config)
        assert not (tmp_path / "job").exists()
        trusting = make(tmp_path / "trusting", algorithm="KeepsObjects", trust_checkpoint=True)
        with pytest.raises(Interrupted):
            train(trusting, JobControl(should_stop=stop_at(3)))
        untrusting = make(tmp_path / "trusting", algorithm="KeepsObjects")
        with pytest.raises(UsageError, match="is of type Fraction, and loading it from a checkpoint could run code"):
            train(untrusting)
        with pytest.raises(UsageError, match=r"checkpoint\.pt contains objects of 'fractions\.Fraction', and"):
            checkpoint.load_checkpoint(tmp_path / "trusting")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
            with pytest.raises(UsageError, match="belongs to another user, so loading it could run their code"):
                train(trusting)
        train(trusting)
        assert [record["step"] for record in read_job(tmp_path / "trusting")[0]] == [0, 3, 6]
