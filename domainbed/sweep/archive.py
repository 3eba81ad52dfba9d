"""A sweep's records in one compressed archive: kept there, and taken from there by another launch."""

import errno
import lzma
import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from domainbed.datasets.publishers.unpack import inside
from domainbed.engine.config import JobConfig, recorded_args
from domainbed.errors import UsageError, one_line
from domainbed.files import atomic_write, file_lock
from domainbed.records import DONE_FILE, RESULTS_FILE, parse_records
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.log import launch_files
from domainbed.sweep.status import JobState, Status

KEPT = (DONE_FILE, RESULTS_FILE)  # of each job's folder
DETERMINING = [f for f in fields(JobConfig) if f.compare]
PRESET = 1  # of xz; the usual one, 6, takes 14 times as long for an archive three quarters the size
END = 1024  # bytes of zeros, at least, behind the last member of a tar


class Imported(NamedTuple):
    """How many jobs of an archive were imported, were not asked for, and were left alone, for something was there."""

    jobs: int
    not_asked_for: int
    there_already: int


def export_jobs(jobs: Sequence[Job], sweep_dir: Path, archive: Path) -> None:
    """Write the records of jobs that are done, and what was asked for, as a .tar.xz; the same give the same bytes.

    Raises:
        UsageError: there is no job, or one's records are such that no launch would import them. Nothing is written.
    """
    if not jobs:
        raise UsageError(f"{sweep_dir} has no job that is done, and {archive} would hold nothing; it is not written")
    # Launches are read in the order of their times, so those of the members keep it.
    times = {path: time for time, path in enumerate(launch_files(sweep_dir))}
    with (
        atomic_write(archive) as file,
        lzma.open(file, "wb", preset=PRESET) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path, time in sorted(times.items()):
            _add(tar, path.relative_to(sweep_dir).as_posix(), path.read_bytes(), time)
        for job in sorted(jobs, key=lambda job: job.folder.name):
            try:
                kept = {name: (job.folder / name).read_bytes() for name in KEPT}
            except FileNotFoundError as error:
                raise UsageError(f"{error.filename} is missing; delete the folder and launch again") from None
            if problem := problem_of(job, kept[RESULTS_FILE]):
                is_readable_elsewhere = "schema version" in problem
                way_out = "export with that version" if is_readable_elsewhere else "delete the folder and launch again"
                raise UsageError(f"{job.folder / RESULTS_FILE}: {problem}; {way_out}")
            for name, data in kept.items():
                _add(tar, f"{job.folder.name}/{name}", data)


def _add(tar: tarfile.TarFile, name: str, data: bytes, time: int = 0) -> None:
    member = tarfile.TarInfo(name)  # of user and group 0, without names
    member.size, member.mtime = len(data), time
    tar.addfile(member, BytesIO(data))
    tar.members.clear()  # type: ignore[attr-defined]  # all of which it would remember


def import_jobs(archive: Path, statuses: Mapping[Job, Status]) -> Imported:
    """Take from an archive the jobs that are asked for, `statuses`' keys, and not launched yet.

    Each job's folder appears whole or not at all, and none does before all have been looked at.

    Raises:
        UsageError: it can't be read, or is damaged, or has a member that leads elsewhere, or a job's records are not
            those of the job that is asked for. Nothing is imported, and nothing written.
    """
    asked_for = {job.folder.name for job in statuses}
    wanted = {job.folder.name: job for job, status in statuses.items() if status.state == JobState.NOT_LAUNCHED}
    try:
        file = open(archive, "rb")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"--import_results {archive}: {error.strerror}") from error
    with file:  # read twice, so that the first time nothing need be written
        found = _checked(file, archive, wanted)
        take = {name: job for name, job in wanted.items() if name in found}
        moved = _move_in(file, archive, take) if take else 0
    n_asked_for = len(found & asked_for)
    return Imported(moved, len(found) - n_asked_for, n_asked_for - moved)


def _checked(file: BinaryIO, archive: Path, wanted: Mapping[str, Job]) -> set[str]:
    """The names of all jobs in the archive, of which those that are wanted are as they must be.

    Raises:
        UsageError: as `import_jobs`.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name, kept, data in _read(file, archive, wanted):
        found[name].add(kept)
        if data is not None and kept == RESULTS_FILE and (problem := problem_of(wanted[name], data)):
            raise _refusal(archive, wanted[name], problem)
    if not found:
        raise UsageError(f"--import_results {archive} holds no job: its members must be named as FOLDER/{RESULTS_FILE}")
    for name in sorted(found.keys() & wanted.keys()):
        for kept in KEPT:
            if kept not in found[name]:
                raise _refusal(archive, wanted[name], f"{kept} is missing")
    return set(found)


def _refusal(archive: Path, job: Job, problem: str) -> UsageError:
    return UsageError(
        f"--import_results {archive}: {job.folder.name} ({job}): {problem}; nothing is imported before that job is "
        "mended or left out of the archive"
    )


def problem_of(job: Job, data: bytes) -> str:
    """Why these can't be all the records of the job, in words; nothing where they can.

    What records of older versions do not tell, later arguments and hyperparameters, was as it is by default.
    """
    records, problems = parse_records(data)
    if problems:
        return one_line(problems[0].partition(";")[0])  # behind it stands what tables make of that
    if not records or records[-1]["step"] != job.config.steps - 1:
        last = f"the last one is of step {records[-1]['step']}" if records else "there is none"
        return f"the records do not reach step {job.config.steps - 1}, {last}"
    args, hparams = job.config.args(), job.config.resolved_hparams()
    for record in records:
        if not isinstance(record.get("args"), dict) or not isinstance(record.get("hparams"), dict):
            return f"the record of step {record['step']} does not tell args and hparams"
        for name, value in recorded_args(record["args"], DETERMINING).items():
            if value != args[name]:
                return f"the record of step {record['step']} is of {name} {value!r}, not {args[name]!r}"
        for name, value in record["hparams"].items():
            if name not in hparams or value != hparams[name]:
                return f"the record of step {record['step']} is of {name} {value!r}, not {hparams.get(name)!r}"
    return ""


def _move_in(file: BinaryIO, archive: Path, take: Mapping[str, Job]) -> int:
    """Unpack jobs beside the jobs' folders, then move each into its place, unless that was taken meanwhile.

    Returns:
        How many were moved.
    """
    ours = next(iter(take.values())).folder.parent / SWEEP_FOLDER
    ours.mkdir(parents=True, exist_ok=True)
    aside = ours / "importing"
    with file_lock(ours / "importing.lock", f"Another launch imports into {ours.parent}; waiting for it."):
        if aside.exists():  # an import was killed
            shutil.rmtree(aside)
        try:
            for name, kept, data in _read(file, archive, take):
                if data is not None:
                    (aside / name).mkdir(parents=True, exist_ok=True)
                    (aside / name / kept).write_bytes(data)
            os.sync()  # once, for thousands of files: what a power cut leaves in its place must be whole
            return sum(_moved(aside / name, job.folder) for name, job in take.items())
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _moved(aside: Path, folder: Path) -> bool:
    """Move a folder into its place; False where something is there. (An empty folder is nothing.)"""
    try:
        os.rename(aside, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _read(file: BinaryIO, archive: Path, wanted: Container[str]) -> Iterator[tuple[str, str, bytes | None]]:
    """The name of a job's folder and of a file in it, for all KEPT of all jobs; of those wanted the content, too.

    Raises:
        UsageError: the archive is damaged, or has a member that leads elsewhere.
    """
    file.seek(0)
    try:
        with _Watched(file, format=lzma.FORMAT_XZ) as watched:
            with tarfile.open(fileobj=watched, mode="r|") as tar:
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]  # all of which it would remember
                    parts = inside(Path(), member.name, archive, member.isreg() or member.isdir()).parts
                    if member.isreg() and len(parts) == 2 and parts[0] != SWEEP_FOLDER and parts[1] in KEPT:
                        data = tar.extractfile(member).read() if parts[0] in wanted else None  # type: ignore[union-attr]
                        yield *parts, data
            while watched.read(1 << 20):  # on to the end: only there xz compares its checksum
                pass
            # tarfile takes a header that it can't read, or that is cut off, for the end.
            if not watched.size - watched.zeros <= tar.offset <= watched.size - END:
                raise tarfile.ReadError("its end is missing")
    except UsageError:
        raise
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise UsageError(f"--import_results {archive} is no whole .tar.xz ({one_line(error)}); get it again") from error


class _Watched(lzma.LZMAFile):
    """An unpacked file that counts what is read of it.

    Attributes:
        size: how many bytes.
        zeros: how many of these, the last ones, are zeros.
    """

    size = zeros = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        others = len(data.rstrip(b"\0"))
        self.size += len(data)
        self.zeros = len(data) - others + (0 if others else self.zeros)
        return data
