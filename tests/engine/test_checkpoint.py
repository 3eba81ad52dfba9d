"""Checkpoints that are damaged, another job's, or find no room: what is told, what is kept, and that jobs end equal."""

import errno
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbed.engine import checkpoint
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import is_locked, locked
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import read_job
from tests.engine import test_resume
from tests.engine.test_resume import FINISHED, Crash, crash_at, make, remembered, result, run_to_the_end, stop_at

LAST, BEFORE = checkpoint.CHECKPOINT_NAMES
registered = test_resume.registered


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory, registered) -> Path:
    """A job that died after its second record: of its checkpoints the one before was written in this evaluation."""

    def die(step: int) -> None:
        raise Crash

    folder = tmp_path_factory.mktemp("unfinished") / "job"
    with pytest.raises(Interrupted):
        train(make(folder), should_stop=stop_at(1 + 6 + 3 + 3))
    with pytest.raises(Crash):
        train(make(folder), on_record=die)
    read = {name: torch.load(folder / name, weights_only=False) for name in (LAST, BEFORE)}
    assert [(saved["step"], saved["is_evaluated"]) for saved in read.values()] == [(4, True), (4, False)]
    assert [r["step"] for r in read_job(folder)[0]] == [0, 3]
    assert {path.name for path in folder.iterdir()} == {LAST, BEFORE, "results.jsonl"}
    return folder


@pytest.fixture
def job(unfinished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(unfinished, tmp_path / "job")


def goes_on(folder: Path, capsys: pytest.CaptureFixture) -> str:
    """Train the job to its end, which must be as if nothing had happened; returns what was told."""
    capsys.readouterr()
    train(make(folder))
    assert result(folder) == remembered()
    assert {path.name for path in folder.iterdir()} == FINISHED
    return capsys.readouterr().out


@pytest.mark.parametrize("part", [0, 1e-4, 0.3, 0.7, 0.999, 1])
def test_a_truncated_checkpoint_is_told_and_the_one_before_used(job: Path, capsys: pytest.CaptureFixture, part: float):
    whole = (job / LAST).read_bytes()
    (job / LAST).write_bytes(whole[: min(int(part * len(whole)), len(whole) - 1)])
    out = goes_on(job, capsys)
    assert f"{job / LAST} is damaged and can't be used: " in out
    assert "This job goes on from its checkpoint after 4 steps." in out


@pytest.mark.parametrize("what", ["zeros", "words", "another pickle", "another zip"])
def test_so_is_what_is_no_checkpoint(job: Path, capsys: pytest.CaptureFixture, what: str):
    size = (job / LAST).stat().st_size
    if what == "another pickle":
        torch.save([1, 2], job / LAST, _use_new_zipfile_serialization=False)
    elif what == "another zip":
        shutil.make_archive(str(job / "x"), "zip", job.parent)
        (job / "x.zip").rename(job / LAST)
    else:
        (job / LAST).write_bytes(b"\0" * size if what == "zeros" else b"hello")
    assert f"{job / LAST} is damaged and can't be used: " in goes_on(job, capsys)


def test_no_bit_that_falls_over_comes_into_a_result(unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Where it lies in what nobody reads, nothing is told."""
    whole = (unfinished / LAST).read_bytes()
    folders = (tmp_path / str(n) for n in itertools.count())
    told = []

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 7))
    def fall_over(place: int, bit: int) -> None:
        folder = shutil.copytree(unfinished, next(folders))
        with open(folder / LAST, "r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << bit]))
        told.append("is damaged" in goes_on(folder, capsys))

    fall_over()
    assert sum(told) > len(told) / 4


def test_where_both_are_damaged_the_job_is_begun_anew(job: Path, capsys: pytest.CaptureFixture):
    for name in (LAST, BEFORE):
        (job / name).write_bytes((job / name).read_bytes()[:-100])
    out = goes_on(job, capsys)
    assert f"{job / LAST} is damaged" in out
    assert f"{job / BEFORE} is damaged" in out
    assert "An unfinished run of this job was here, without a checkpoint; it is begun anew." in out


def test_a_damaged_checkpoint_never_takes_the_good_ones_place(job: Path, capsys: pytest.CaptureFixture):
    (job / LAST).write_bytes(b"")
    with pytest.raises(Interrupted):
        train(make(job), should_stop=stop_at(1))
    for name in (LAST, BEFORE):
        assert checkpoint._read(job / name)["step"] == 4
    (job / LAST).unlink()  # as if it had died between moving the old one away and the new one to its place
    assert "goes on from its checkpoint after 4 steps" in goes_on(job, capsys)


def test_a_last_line_torn_behind_the_checkpoint_is_cut(job: Path, capsys: pytest.CaptureFixture):
    with open(job / "results.jsonl", "ab") as file:
        file.write(b'{"step": 6, "torn\xff')
    assert "is damaged" not in goes_on(job, capsys)


@pytest.mark.parametrize("lost", [1, "a record", "all"])
def test_a_checkpoint_whose_records_are_lost_is_refused(job: Path, capsys: pytest.CaptureFixture, lost):
    """Of two records the last byte, the second, or both: there the checkpoint before misses one, too."""
    results = job / "results.jsonl"
    first, second = results.read_bytes().splitlines(keepends=True)
    results.write_bytes({1: first + second[:-1], "a record": first, "all": b""}[lost])
    out = goes_on(job, capsys)
    assert f"{job / LAST} is damaged and can't be used: results.jsonl lacks records that were there" in out
    assert ("goes on from its checkpoint after 4 steps" in out) == (lost != "all")


def test_records_without_a_checkpoint_are_begun_anew(job: Path, capsys: pytest.CaptureFixture):
    for name in (LAST, BEFORE):
        (job / name).unlink()
    (job / "checkpoint.pt.0123.part").write_bytes(b"a process that was killed has left this")
    assert "without a checkpoint; it is begun anew" in goes_on(job, capsys)


@pytest.mark.parametrize("has_records", [True, False])
@pytest.mark.parametrize("other", [{"seed": 1}, {"steps": 8}, {"hparams": '{"batch_size": 5}'}], ids=str)
def test_another_jobs_checkpoint_is_refused_and_kept(job: Path, has_records: bool, other: dict):
    if not has_records:  # it stopped before its first
        shutil.rmtree(job)
        with pytest.raises(Interrupted):
            train(make(job), should_stop=stop_at(1))
    kept = {path.name: path.read_bytes() for path in job.iterdir()}
    with pytest.raises(UsageError, match=r"holds another, unfinished run \(.*steps 7, .*choose another --output_dir"):
        train(make(job, **other))
    assert {path.name: path.read_bytes() for path in job.iterdir()} == kept
    train(make(job))
    assert result(job) == remembered()


def test_arguments_that_lie_beside_the_result_may_change(job: Path):
    more = {"save_every": 3.0, "deterministic": False, "cache_gb": 7.0, "save_model_every_checkpoint": True}
    train(make(job, **more))
    assert {path.name for path in job.iterdir()} == FINISHED | {"model_step6.pkl"}


def test_another_versions_checkpoint_is_told(job: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "versions", lambda: "domainbed 9, Python 4, torch 3")
    out = goes_on(job, capsys)
    assert f"{job / LAST} was written by domainbed " in out
    assert "; the last digits may come out otherwise" in out


def mount(*words: object) -> None:
    finished = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if finished.returncode:
        pytest.skip(f"no file system can be mounted here: {finished.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 KB. (A checkpoint takes 20.)"""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no file system can be mounted here: there is no mount")
    mount("-t", "tmpfs", "-o", "size=400k", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, room: int) -> None:
    """Fill a disk but for some room."""
    (disk / "room").write_bytes(b"x" * room)
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    (disk / "room").unlink()


@pytest.mark.parametrize("save_every", [1e-9, 10.0], ids=["at any step", "at an evaluation"])
@pytest.mark.parametrize("room", [0, 4096, 8192, 16384])
def test_a_full_disk_ends_the_job_and_harms_nothing(small_disk: Path, save_every: float, room: int):
    """The room is enough for some of a checkpoint; a record finds it in its file's last block, or does not."""
    folder = small_disk / "job"
    with pytest.raises(OSError, match="No space left on device") as error:
        train(make(folder, save_every=save_every), on_record=lambda step: fill(small_disk, room) if step == 3 else None)
    assert error.value.errno == errno.ENOSPC
    assert {path.name for path in folder.iterdir()} == {LAST, BEFORE, "results.jsonl"}
    for name in (LAST, BEFORE):
        assert checkpoint._read(folder / name)["step"] <= 5
    assert [r["step"] for r in read_job(folder)[0]][:2] == [0, 3]
    if not room:
        with pytest.raises(OSError, match="No space left on device"):  # not even for a lock, which is not left behind
            train(make(folder))
        assert not is_locked(folder)
    (small_disk / "filler").unlink()
    train(make(folder))
    assert result(folder) == remembered()
    assert {path.name for path in folder.iterdir()} == FINISHED


def test_a_model_that_finds_no_room_is_written_when_it_does(small_disk: Path):
    folder = small_disk / "job"
    with pytest.raises(OSError, match="No space left on device"):
        train(make(folder), on_record=lambda step: fill(small_disk, 0) if step == 6 else None)
    assert {path.name for path in folder.iterdir()} == {LAST, BEFORE, "results.jsonl"}
    (small_disk / "filler").unlink()
    train(make(folder))
    assert result(folder) == remembered()


def test_a_heart_beats_on_a_full_disk(small_disk: Path):
    with locked(small_disk) as lock:
        fill(small_disk, 0)
        for step in (5, 10**9):
            lock.begin(step)
            told = Path(small_disk / "lock").read_bytes()
            assert f'"first_step": {step}'.encode() in told
    assert not is_locked(small_disk)


def test_a_folder_that_may_not_be_written_to(small_disk: Path):
    run_to_the_end(make(small_disk / "other", steps=1), [])
    with pytest.raises(Crash):
        train(make(small_disk / "job"), should_stop=crash_at(12))
    mount("-o", "remount,ro", small_disk)
    before = {path.name: path.read_bytes() for path in (small_disk / "job").iterdir()}
    for name in ("job", "another"):
        with pytest.raises(UsageError, match=rf"^--output_dir .*/{name}: Read-only file system$"):
            train(make(small_disk / name))
    assert {path.name: path.read_bytes() for path in (small_disk / "job").iterdir()} == before
    mount("-o", "remount,rw", small_disk)
    train(make(small_disk / "job"))
    assert result(small_disk / "job") == remembered()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert"), torch.OutOfMemoryError("full")])
def test_what_is_no_fault_of_the_file_costs_no_checkpoint(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: Exception
):
    """A GPU that fails as the checkpoint comes back to it: on the CPU it has proved good."""
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
    goes_on(job, capsys)


def test_a_checkpoint_of_another_version_is_refused_and_kept(job: Path):
    saved = torch.load(job / LAST, weights_only=False)
    del saved["seconds"]
    torch.save(saved, job / LAST)
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    with pytest.raises(UsageError, match="was written by another version of domainbed; delete the folder"):
        train(make(job))
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before


def test_a_checkpoint_that_does_not_fit_the_algorithm_any_more_is_refused_and_kept(job: Path):
    saved = torch.load(job / LAST, weights_only=False)
    saved["algorithm"]["modules"]["another"] = torch.zeros(1)
    torch.save(saved, job / LAST)
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    with pytest.raises(UsageError, match=r"does not fit the algorithm as it is now; delete the folder .*another"):
        train(make(job))
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before
