"""Archives: exporting the records of a sweep, and importing them in another launch."""

import io
import json
import lzma
import multiprocessing
import os
import re
import signal
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from domainbed.engine.lock import locked
from domainbed.errors import UsageError
from domainbed.predictions import save_predictions
from domainbed.records import append_record, mark_done
from domainbed.scripts import collect_results
from domainbed.sweep.archive import ImportResult, import_jobs
from domainbed.sweep.job import Job
from domainbed.sweep.log import launch_files, read_launches
from domainbed.sweep.status import JobState, survey
from tests.conftest import make_record
from tests.sweep.helpers import fill_folder, jobs_of, launch_words, log_only, main, start_launch, states, steps_recorded
from tests.test_predictions import example

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "results" / "quickstart" / "records.tar.xz"


def finish(job: Job, **others) -> Job:
    """Create the folder of a finished job, with plausible records in which `others` are replaced."""
    job.folder.mkdir(parents=True)
    for step in (0, job.config.steps - 1):
        c = job.config
        record = make_record(c.dataset, c.algorithm, c.test_envs, c.trial_seed, c.hparams_seed, step)
        append_record(job.folder, record | {"args": c.args(), "hparams": c.resolved_hparams(), **others})
    mark_done(job.folder)
    return job


def launched(folder: Path, *words: str, n_done: int = 10**6) -> list[Job]:
    """Log a launch whose first `n_done` jobs are done, and return its jobs."""
    jobs = log_only(launch_words(folder, *words))
    for job in jobs[:n_done]:
        finish(job)
    return jobs


def export(folder: Path, archive: Path) -> int:
    return main(["export", "--output_dir", folder, "--archive", archive])


def tree(folder: Path) -> dict[str, bytes]:
    """Return the relative path and content of everything in a folder."""
    paths = folder.rglob("*") if folder.is_dir() else ()
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


def collected(folder: Path, capsys: pytest.CaptureFixture) -> tuple[str, str]:
    capsys.readouterr()
    collect_results.main(["--input_dir", str(folder)])
    output = capsys.readouterr()
    return output.out, output.err.replace(str(folder), "FOLDER")


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def pack(archive: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> None:
    """Create an archive as by hand: of files and then of other members."""
    with tarfile.open(archive, "w:xz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in others:
            tar.addfile(member, io.BytesIO(bytes(member.size)))


# --- export


def test_unpacked_archive_gives_the_same_tables(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = launched(tmp_path / "sweep", "--n_trials", "2", n_done=4)
    (jobs[0].folder / "model.pkl").write_text("heavy")
    archive = tmp_path / "records.tar.xz"
    capsys.readouterr()
    assert export(tmp_path / "sweep", archive) == 3
    size = archive.stat().st_size
    assert capsys.readouterr().out == (f"4 jobs written to {archive} ({size:,} bytes); 2 jobs are not done\n")
    done = sorted(job.folder.name for job in jobs[:4])
    names = [f"{name}/{file}" for name in done for file in ("done", "results.jsonl")]
    (launch,) = launch_files(tmp_path / "sweep")
    with tarfile.open(archive) as tar:
        assert tar.getnames() == [f".sweep/launches/{launch.name}", *names]
        tar.extractall(tmp_path / "unpacked", filter="data")
    output = collected(tmp_path / "unpacked", capsys)
    assert "6 runs requested: 4 done, 2 not launched" in output[0]
    assert output == collected(tmp_path / "sweep", capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "unpacked", "records.tar.xz"}


def test_equal_sweeps_give_equal_bytes(tmp_path: Path):
    jobs = launched(tmp_path / "sweep")
    assert export(tmp_path / "sweep", tmp_path / "1.tar.xz") == 0
    for i, path in enumerate(tmp_path.rglob("*")):
        os.utime(path, (i, i))
        path.chmod(0o700)
    os.rename(jobs[0].folder, tmp_path / "x")  # may change the order of the listing
    os.rename(tmp_path / "x", jobs[0].folder)
    assert export(tmp_path / "sweep", tmp_path / "2.tar.xz") == 0
    assert (tmp_path / "1.tar.xz").read_bytes() == (tmp_path / "2.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "1.tar.xz") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


@pytest.mark.parametrize("reverse", [False, True])
def test_order_of_launches_is_kept(tmp_path: Path, reverse: bool):
    """Whatever the names of their files."""
    folder = tmp_path / "sweep"
    for trials in range(1, 6):
        jobs = log_only(launch_words(folder, "--n_trials", trials))
    files = sorted(launch_files(folder), reverse=reverse)
    for i, path in enumerate(files):
        os.utime(path, (1e9 + i, 1e9 + i))
    finish(jobs[0])
    assert export(folder, tmp_path / "a.tar.xz") == 3
    with tarfile.open(tmp_path / "a.tar.xz") as tar:
        assert tar.getnames() == sorted(tar.getnames())
        tar.extractall(tmp_path / "unpacked", filter="data")
    order = [json.loads(path.read_bytes())["n_trials"] for path in files]
    assert [grid.n_trials for grid, _ in read_launches(tmp_path / "unpacked")] == order


def test_exit_status_of_export(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = launched(tmp_path / "sweep", n_done=1)
    assert export(tmp_path / "sweep", tmp_path / "a.tar.xz") == 3
    fill_folder(jobs[1], JobState.FAILED)
    assert export(tmp_path / "sweep", tmp_path / "a.tar.xz") == 1
    assert "1 jobs written to " in capsys.readouterr().out


def test_export_without_finished_jobs_keeps_existing_archive(tmp_path: Path, capsys: pytest.CaptureFixture):
    launched(tmp_path / "sweep", n_done=0)
    (archive := tmp_path / "a.tar.xz").write_text("previous content")
    assert export(tmp_path / "sweep", archive) == 2
    assert " is done; " in capsys.readouterr().err
    assert archive.read_text() == "previous content"


def test_failed_export_keeps_existing_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    launched(tmp_path / "sweep")
    archive = tmp_path / "a.tar.xz"
    archive.write_text("previous content")
    monkeypatch.setattr(tarfile.TarFile, "addfile", fail_at(3, OSError(28, "No space left on device")))
    assert export(tmp_path / "sweep", archive) == 2
    assert capsys.readouterr().err == f"error: {archive}: No space left on device\n"
    assert archive.read_text() == "previous content"
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "a.tar.xz"}


def fail_at(n: int, error: BaseException) -> Callable:
    """Return a replacement for a function whose n-th call raises an error."""
    calls = []

    def stand_in(*args, **kwargs) -> None:
        calls.append(args)
        if len(calls) == n:
            raise error

    return stand_in


def test_jobs_that_could_not_be_imported_are_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = launched(tmp_path / "sweep")
    results = jobs[1].folder / "results.jsonl"
    whole = results.read_bytes()
    for content, problem in (
        (whole[:-9], "line 2 is not a complete record"),
        (whole.splitlines(keepends=True)[0], "the records do not reach step 2: the last record is of step 0"),
        (None, "is missing"),
    ):
        results.write_bytes(content) if content else results.unlink()
        assert export(tmp_path / "sweep", tmp_path / "a.tar.xz") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {results}")
        assert problem in error
        assert error.endswith("; delete the folder and launch again\n")
        assert error.count("\n") == 1
        assert not (tmp_path / "a.tar.xz").exists()


def test_invalid_archive_paths(tmp_path: Path, capsys: pytest.CaptureFixture):
    launched(tmp_path / "sweep")
    (tmp_path / "folder.tar.xz").mkdir()
    for name, problem in (
        ("a.tar.gz", "the name must end in .tar.xz"),
        ("no/a.tar.xz", f"folder {tmp_path}/no does not exist"),
        ("folder.tar.xz", "is a folder; specify a file"),
    ):
        assert export(tmp_path / "sweep", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --archive {tmp_path / name}")
        assert error.endswith(f"{problem}\n")
    assert main(["export", "--output_dir", tmp_path / "none", "--archive", tmp_path / "a.tar.xz"]) == 2
    assert "contains no sweep" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "folder.tar.xz"}


# --- import


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The archive of the sweep `tmp_path / "sweep"`, whose three jobs are done."""
    launched(tmp_path / "sweep")
    assert export(tmp_path / "sweep", tmp_path / "records.tar.xz") == 0
    return tmp_path / "records.tar.xz"


def import_words(folder: Path, archive: Path, *words: object) -> list[str]:
    return launch_words(folder, "--import_results", archive, *words)


def test_imported_jobs_are_done(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture):
    words = import_words(tmp_path / "o", archive)
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out == (
        f"3 jobs imported from {archive}; skipped 0 that were not requested, 0 that already exist\n"
        f"3 jobs in {tmp_path / 'o'}: 3 done\n"
    )
    for imported, original in zip(jobs_of(words), jobs_of(launch_words(tmp_path / "sweep")), strict=True):
        assert tree(imported.folder) == tree(original.folder)
    assert {path.name for path in (tmp_path / "o" / ".sweep").iterdir()} == {"launches", "importing.lock"}
    assert collected(tmp_path / "o", capsys) == collected(tmp_path / "sweep", capsys)
    assert main(["status", "--output_dir", tmp_path / "o"]) == 0
    assert export(tmp_path / "o", tmp_path / "again.tar.xz") == 0
    assert members(tmp_path / "again.tar.xz") == members(archive)


def test_only_other_jobs_are_trained(tmp_path: Path, capsys: pytest.CaptureFixture):
    """With real jobs. The tables are the same as without an archive."""
    assert main(launch_words(tmp_path / "sweep")) == 0
    assert export(tmp_path / "sweep", tmp_path / "a.tar.xz") == 0
    words = import_words(tmp_path / "o", tmp_path / "a.tar.xz", "--n_trials", 2)
    capsys.readouterr()
    assert main(words) == 0
    output = capsys.readouterr().out
    assert output.startswith("3 jobs imported from ")
    assert f"6 jobs in {tmp_path / 'o'}: 3 not launched, 3 done" in output
    jobs = jobs_of(words)
    assert [(job.folder / "log.txt").exists() for job in jobs] == [False] * 3 + [True] * 3
    assert [steps_recorded(job) for job in jobs] == [[0, 2]] * 6
    assert main(launch_words(tmp_path / "sweep", "--n_trials", 2)) == 0
    assert collected(tmp_path / "o", capsys) == collected(tmp_path / "sweep", capsys)


def test_existing_jobs_are_not_imported(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture):
    """Incomplete, failed and running ones."""
    launched(tmp_path / "more", "--n_trials", "2")
    assert export(tmp_path / "more", archive) == 0
    words = import_words(tmp_path / "o", archive, "--n_hparams", 2)
    jobs = {job.folder.name: job for job in jobs_of(words)}
    existing = [jobs[job.folder.name] for job in jobs_of(launch_words(tmp_path / "o"))]
    for job, state in zip(existing, (JobState.INCOMPLETE, JobState.FAILED, JobState.RUNNING), strict=True):
        fill_folder(job, state)
    before = tree(tmp_path / "o")
    statuses = survey(jobs.values())
    assert import_jobs(archive, statuses) == ([], 3, 3, 0)
    assert tree(tmp_path / "o") == before
    existing[0].folder.joinpath("log.txt").unlink()  # an empty folder may be replaced
    assert import_jobs(archive, survey(jobs.values())) == ([existing[0]], 3, 2, 0)
    assert states(existing) == [JobState.DONE, JobState.FAILED, JobState.RUNNING]


def test_jobs_that_appear_during_the_import_are_kept(tmp_path: Path, archive: Path):
    """A running job, a file and a link, which appear after the survey."""
    jobs = jobs_of(launch_words(tmp_path / "o"))
    statuses = survey(jobs)
    jobs[0].folder.mkdir(parents=True)
    jobs[1].folder.write_text("in the way")
    (tmp_path / "elsewhere").mkdir()
    jobs[2].folder.symlink_to(tmp_path / "elsewhere")
    with locked(jobs[0].folder):
        assert import_jobs(archive, statuses) == ([], 0, 3, 0)
        assert {path.name for path in jobs[0].folder.iterdir()} == {"lock"}
    assert jobs[1].folder.read_text() == "in the way"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_import_is_logged_even_if_the_launch_is_not_confirmed(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
):
    words = import_words(tmp_path / "o", archive, "--n_trials", 2)
    words.remove("--skip_confirmation")
    monkeypatch.setattr("builtins.input", lambda question: "no")
    assert main(words) == 2
    assert main(["status", "--output_dir", tmp_path / "o"]) == 3
    assert states(jobs_of(words)) == [JobState.DONE] * 3 + [JobState.NOT_LAUNCHED] * 3


def test_dry_run_cannot_import(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture):
    for how in (["--command_launcher", "dummy"], ["--command_launcher", "slurm", "--dry_run"], ["--dry_run"]):
        capsys.readouterr()
        assert main(import_words(tmp_path / "o", archive, *how)) == 2
        assert capsys.readouterr().err == ("error: --import_results cannot be combined with --dry_run\n")
    assert not (tmp_path / "o").exists()


def test_archives_created_by_hand(tmp_path: Path, archive: Path):
    """With names that start with ./, folders, other files, and jobs that are not requested or not done."""
    files = {f"./{name}": data for name, data in members(archive).items() if not name.startswith(".sweep")}
    folder = tarfile.TarInfo("./")
    folder.type = tarfile.DIRTYPE
    foreign = {"./log.txt": b"", "./x/results.jsonl": b"?", "./x/log.txt": b"", "x/y/done": b"", ".sweep/done": b""}
    pack(archive, foreign | files, folder)
    jobs = jobs_of(launch_words(tmp_path / "o"))
    assert import_jobs(archive, survey(jobs)) == ImportResult(jobs, 1, 0)


def test_quickstart_records(tmp_path: Path, capsys: pytest.CaptureFixture):
    """With the command in their README. They are older than --precision."""
    text = (QUICKSTART.parent / "README.md").read_text().replace("\\\n", " ")
    (words,) = re.findall(r"domainbed\.scripts\.sweep (launch .*) --output_dir runs/quickstart", text)
    command = [*words.split(), "--output_dir", tmp_path / "o", "--import_results", QUICKSTART]
    assert main(command) == 0
    assert capsys.readouterr().out == (
        f"84 jobs imported from {QUICKSTART}; skipped 0 that were not requested, 0 that already exist\n"
        f"84 jobs in {tmp_path / 'o'}: 84 done\n"
    )
    assert collected(tmp_path / "o", capsys) == ((QUICKSTART.parent / "results.txt").read_text(), "")


# --- invalid archives


def import_error(folder: Path, archive: Path, capsys: pytest.CaptureFixture) -> str:
    """Return the error message of an import into a folder, which must not change."""
    before = tree(folder)
    existed = folder.exists()
    capsys.readouterr()
    assert main(import_words(folder, archive, "--n_trials", 2)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"error: .+\n", output.err)
    assert archive.name in output.err
    assert folder.exists() == existed
    assert tree(folder) == before
    return output.err


def test_damaged_archive(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture):
    """Truncated anywhere, or with any byte changed."""
    whole = archive.read_bytes()
    statuses = survey(jobs_of(launch_words(tmp_path / "o")))
    for i in [*range(0, len(whole), 7), *range(len(whole) - 40, len(whole))]:
        for damaged in (whole[:i], whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :]):
            archive.write_bytes(damaged)
            with pytest.raises(UsageError, match=r"records.tar.xz is not a complete .tar.xz \(.+\); download"):
                import_jobs(archive, statuses)
    assert not (tmp_path / "o").exists()
    archive.write_bytes(whole[:-20])
    launched(tmp_path / "existing", n_done=1)
    for folder in ("o", "existing"):
        assert "is not a complete .tar.xz" in import_error(tmp_path / folder, archive, capsys)


def test_archive_truncated_before_compression(tmp_path: Path, archive: Path):
    """In the content of a member. (tarfile takes a truncated header for the end.)"""
    tar = lzma.decompress(archive.read_bytes())
    statuses = survey(jobs_of(launch_words(tmp_path / "o")))
    with tarfile.open(archive) as opened:
        contents = [member.offset_data for member in opened if member.name.endswith("results.jsonl")]
    for offset in contents:
        archive.write_bytes(lzma.compress(tar[: offset + 100]))
        with pytest.raises(UsageError, match=r"is not a complete .tar.xz|is missing"):
            import_jobs(archive, statuses)
    assert not (tmp_path / "o").exists()


def test_not_an_archive(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture):
    assert "No such file" in import_error(tmp_path / "o", tmp_path / "no.tar.xz", capsys)
    (tmp_path / "folder.tar.xz").mkdir()
    assert "Is a directory" in import_error(tmp_path / "o", tmp_path / "folder.tar.xz", capsys)
    tar = lzma.decompress(archive.read_bytes())
    for data in (b"", b"no archive", tar, lzma.compress(tar, format=lzma.FORMAT_ALONE), lzma.compress(b"no tar")):
        archive.write_bytes(data)
        assert "is not a complete .tar.xz" in import_error(tmp_path / "o", archive, capsys)
    for files in ({}, {"runs/x/results.jsonl": b""}):
        pack(archive, files)
        assert "contains no jobs: members must be named FOLDER/results.jsonl" in import_error(
            tmp_path / "o", archive, capsys
        )


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = "/etc/passwd"
    return member


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (tarfile.TarInfo("../x"), "is outside its folder"),
        (tarfile.TarInfo("a/../../x"), "is outside its folder"),
        (tarfile.TarInfo("/tmp/x"), "is outside its folder"),
        (special("x", tarfile.SYMTYPE), "is neither a file nor a folder"),
        (special("x", tarfile.LNKTYPE), "is neither a file nor a folder"),
        (special("x", tarfile.CHRTYPE), "is neither a file nor a folder"),
        (special("x", tarfile.FIFOTYPE), "is neither a file nor a folder"),
        (special("x", tarfile.GNUTYPE_SPARSE), "is neither a file nor a folder"),
    ],
    ids=lambda x: f"{x.name} {x.type.decode()}" if isinstance(x, tarfile.TarInfo) else "-",
)
def test_unsafe_members(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture, member: tarfile.TarInfo, problem: str
):
    pack(archive, members(archive), member)
    error = import_error(tmp_path / "o", archive, capsys)
    assert f"records.tar.xz is unsafe: its member {member.name!r} {problem}" in error


def with_changes(data: bytes, i: int, part: str | None = None, **values) -> bytes:
    """Return records with values changed in the i-th, or in its args or hparams."""
    records = [json.loads(line) for line in data.splitlines()]
    (records[i][part] if part else records[i]).update(values)
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


OTHERS = [
    *({name: value} for name, value in [("dataset", "RotatedDigits"), ("algorithm", "ERM"), ("test_envs", [2])]),
    *({name: value} for name, value in [("hparams_seed", 1), ("trial_seed", 1), ("seed", 1), ("steps", 4)]),
    *({name: value} for name, value in [("checkpoint_freq", 7), ("eval", "splits"), ("precision", "bf16")]),
    {"hparams": None},
    {"holdout_fraction": 0.3},
    {"task": "two\nlines"},
]


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("others", OTHERS, ids=lambda others: next(iter(others)))
def test_records_of_another_job(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture, others: dict, i: int):
    error = records_error(tmp_path, archive, capsys, lambda data: with_changes(data, i, "args", **others))
    ((name, value),) = others.items()
    assert f"the record of step {2 * i} has {name} {value!r}, not " in error


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda d: with_changes(d, 0, "hparams", lr=0.5), "the record of step 0 has lr 0.5, not 0.001"),
        (lambda d: with_changes(d, 1, "hparams", irm_lambda=2), "the record of step 2 has irm_lambda 2, not None"),
        (lambda d: with_changes(d, 1, hparams=[]), "the record of step 2 lacks args and hparams"),
        (lambda d: with_changes(d, 1, args=None), "the record of step 2 lacks args and hparams"),
        (lambda d: with_changes(d, 0, args={}), "the record of step 0 has dataset None, not "),
        (lambda d: with_changes(d, 1, step=1), "the records do not reach step 2: the last record is of step 1"),
        (lambda d: with_changes(d, 1, step=3), "the records do not reach step 2: the last record is of step 3"),
        (lambda d: with_changes(d, 0, step=2), "the job was run more than once in its folder"),
        (lambda d: with_changes(d, 0, schema_version=99), "records of unsupported schema version 99"),
        (lambda d: with_changes(d, 0, schema_version="of\ntwo"), "records of unsupported schema version of two"),
        (lambda d: d[:-5], "line 2 is not a complete record"),
        (lambda d: d[:30] + b"\n" + d[30:], "line 1 is not a complete record"),
        (lambda d: d + b'{"step', "line 3 is not a complete record"),
        (lambda d: b"", "the records do not reach step 2: there are no records"),
        (lambda d: b"\xff\x00" * 30, "line 1 is not a complete record"),
    ],
)
def test_invalid_records(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture, edit: Callable[[bytes], bytes], problem: str
):
    error = records_error(tmp_path, archive, capsys, edit)
    assert f": {problem}" in error


def records_error(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture, edit: Callable[[bytes], bytes]) -> str:
    """Return the error message of importing an archive with changed records of the middle job."""
    files = members(archive)
    job = jobs_of(launch_words(tmp_path / "o"))[1]
    name = f"{job.folder.name}/results.jsonl"
    pack(archive, files | {name: edit(files[name])})
    error = import_error(tmp_path / "o", archive, capsys)
    assert error.startswith(f"error: --import_results {archive}: {job.folder.name} ({job}): ")
    pack(archive, files)
    assert import_jobs(archive, survey([job])) == ImportResult([job], 2, 0), "the original records are valid"
    return error


@pytest.mark.parametrize("missing", ["done", "results.jsonl"])
def test_incomplete_jobs(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture, missing: str):
    files = members(archive)
    name = sorted(job.folder.name for job in jobs_of(launch_words(tmp_path / "o")))[-1]
    del files[f"{name}/{missing}"]
    folder = tarfile.TarInfo(f"{name}/{missing}")
    folder.type = tarfile.DIRTYPE
    for others in ((), (folder,)):
        pack(archive, files, *others)
        error = import_error(tmp_path / "o", archive, capsys)
        assert f"{archive}: {name} (Misbehaving on ColoredDigits" in error
        assert f": {missing} is missing; fix that job or remove it from the archive" in error


# --- killed and simultaneous imports


def killed_import(words: Sequence[str], module: str, function: str, n: int) -> None:
    """Run an import in a new process that is killed at the n-th call of a function."""
    process = multiprocessing.get_context("forkserver").Process(target=_killed, args=(words, module, function, n))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def _killed(words: Sequence[str], module: str, function: str, n: int) -> None:
    at = {"os": os, "Path": Path}[module]
    real, calls = getattr(at, function), []

    def stand_in(*args, **kwargs):
        calls.append(args)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(at, function, stand_in)
    main(words)


@pytest.mark.parametrize(
    ("module", "function", "n", "n_done"),
    [("Path", "write_bytes", 4, 0), ("os", "sync", 1, 0), ("os", "rename", 1, 0), ("os", "rename", 3, 2)],
)
def test_import_after_a_killed_import(tmp_path: Path, archive: Path, module: str, function: str, n: int, n_done: int):
    words = import_words(tmp_path / "o", archive, "--command_launcher", "local")
    jobs = jobs_of(words)
    killed_import(words, module, function, n)
    assert sorted(state.value for state in states(jobs)) == ["done"] * n_done + ["not launched"] * (3 - n_done)
    names = {job.folder.name for job in jobs}
    for folder in (tmp_path / "o").iterdir():
        if folder.name != ".sweep":
            assert folder.name in names
            assert {path.name for path in folder.iterdir()} == {"done", "results.jsonl"}
    assert (tmp_path / "o" / ".sweep" / "importing").is_dir()
    left = tmp_path / "o" / ".sweep" / "importing" / jobs[0].folder.name / "of another version"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    assert main(words) == 0
    assert not (tmp_path / "o" / ".sweep" / "importing").exists()
    for imported, original in zip(jobs, jobs_of(launch_words(tmp_path / "sweep")), strict=True):
        assert tree(imported.folder) == tree(original.folder)


def test_import_on_full_disk_removes_temporary_files(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "write_bytes", fail_at(4, OSError(28, "No space left on device")))
    words = import_words(tmp_path / "o", archive)
    assert main(words) == 2
    assert {path.name for path in (tmp_path / "o").iterdir()} == {".sweep"}
    assert {path.name for path in (tmp_path / "o" / ".sweep").iterdir()} == {"importing.lock"}


@pytest.mark.slow
def test_simultaneous_imports(tmp_path: Path):
    archive = tmp_path / "a.tar.xz"
    jobs = launched(tmp_path / "sweep", "--n_trials", "60")
    assert export(tmp_path / "sweep", archive) == 0
    words = import_words(tmp_path / "o", archive, "--n_trials", 60, "--command_launcher", "local")
    processes = [start_launch(words, tmp_path / f"{i}.log") for i in range(4)]
    for process in processes:
        process.join(120)
    logs = [(tmp_path / f"{i}.log").read_text() for i in range(4)]
    assert [process.exitcode for process in processes] == [0] * 4, logs
    assert sum(int(re.search(r"^(\d+) jobs imported", log, re.MULTILINE)[1]) for log in logs) == len(jobs) == 180  # type: ignore[index]
    for imported, original in zip(jobs_of(words), jobs, strict=True):
        assert tree(imported.folder) == tree(original.folder)
    assert {path.name for path in (tmp_path / "o" / ".sweep").iterdir()} == {"launches", "importing.lock"}


def add_zeros(archive: Path, name: str, size: int, type: bytes = tarfile.REGTYPE) -> None:
    """Create an archive with a member of this size that is all zeros."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, type
    with lzma.open(archive, "wb", preset=0) as file:
        file.write(member.tobuf())
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))


@pytest.mark.parametrize(
    ("member", "size", "type", "message"),
    [
        ("results.jsonl", 100, tarfile.REGTYPE, "is larger than 52,428,800 bytes"),
        ("other.txt", 100, tarfile.REGTYPE, "is larger than 52,428,800 bytes"),
        ("done", 100, tarfile.XHDTYPE, "it contains more than"),  # read by tarfile itself
        ("results.jsonl", 40, tarfile.REGTYPE, "it contains more than"),
    ],
)
def test_bombs_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    member: str,
    size: int,
    type,
    message,
):
    monkeypatch.setattr("domainbed.sweep.archive.MAX_RESULTS_SIZE", 50 << 20)
    monkeypatch.setattr("domainbed.sweep.archive.MIN_LIMIT", 20 << 20)
    words = launch_words(tmp_path / "s", "--import_results", tmp_path / "a.tar.xz")
    (job, *_) = jobs_of(words)
    add_zeros(tmp_path / "a.tar.xz", f"{job.folder.name}/{member}", size << 20, type)
    assert (tmp_path / "a.tar.xz").stat().st_size < 40_000
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert tree(tmp_path / "s") == {}


def test_archive_that_is_a_pipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    os.mkfifo(tmp_path / "a.tar.xz")
    assert main(launch_words(tmp_path / "s", "--import_results", tmp_path / "a.tar.xz")) == 2
    assert "a.tar.xz: Not a regular file" in capsys.readouterr().err


def test_job_that_ended_early_is_archived(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A job whose average was complete before its last step; the tables do not miss the later steps."""
    words = ("--averaging", "swad", "--steps", 9)
    for job in log_only(launch_words(tmp_path / "sweep", *words)):
        finish(job)
        path = job.folder / "results.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        records[-1] |= {"step": 4, "ended_early": True}
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert export(tmp_path / "sweep", tmp_path / "a.tar.xz") == 0
    assert main(launch_words(tmp_path / "o", *words, "--import_results", tmp_path / "a.tar.xz")) == 0
    for folder in ("sweep", "o"):
        capsys.readouterr()
        collect_results.main(["--input_dir", str(tmp_path / folder), "--import", "tests.sweep.misbehaving"])
        output = capsys.readouterr()
        assert "Misbehaving+SWAD" in output.out
        assert "last record is missing" not in output.out + output.err
    records[-1].pop("ended_early")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert export(tmp_path / "sweep", tmp_path / "b.tar.xz") == 2
    assert "the records do not reach step 8: the last record is of step 4" in capsys.readouterr().err


def test_predictions_are_carried_on_request(tmp_path: Path, capsys: pytest.CaptureFixture):
    jobs = launched(tmp_path / "a", n_done=2)
    assert main(["export", "--output_dir", tmp_path / "a", "--archive", tmp_path / "none.tar.xz", "--predictions"]) == 2
    assert "no finished job in" in capsys.readouterr().err
    save_predictions(jobs[0].folder, example())
    export(tmp_path / "a", tmp_path / "without.tar.xz")
    assert main(["export", "--output_dir", tmp_path / "a", "--archive", tmp_path / "with.tar.xz", "--predictions"]) == 3
    name = f"{jobs[0].folder.name}/predictions.npz"
    assert members(tmp_path / "with.tar.xz").keys() - members(tmp_path / "without.tar.xz").keys() == {name}
    for archive, is_requested, expected in (("with", True, 1), ("with", False, 0), ("without", True, 0)):
        folder = tmp_path / f"{archive} {is_requested}"
        imported = jobs_of(launch_words(folder))
        assert import_jobs(tmp_path / f"{archive}.tar.xz", survey(imported), is_requested).jobs == imported[:2]
        assert len(list(folder.glob("*/predictions.npz"))) == expected
    content = members(tmp_path / "with.tar.xz")
    damaged = content | {name: content[name][:-300]}
    pack(tmp_path / "damaged.tar.xz", damaged)
    folder = tmp_path / "damaged"
    with pytest.raises(UsageError, match=r"predictions\.npz: it is damaged"):
        import_jobs(tmp_path / "damaged.tar.xz", survey(jobs_of(launch_words(folder))), True)
    assert not list(folder.glob("*/done"))
    (jobs[0].folder / "predictions.npz").write_bytes(b"oops")
    assert main(["export", "--output_dir", tmp_path / "a", "--archive", tmp_path / "bad.tar.xz", "--predictions"]) == 2
    assert "predictions.npz: it is damaged" in capsys.readouterr().err
    assert not (tmp_path / "bad.tar.xz").exists()
