"""Archives: compressed files with the records of finished and pruned jobs, which another launch can import.

On request, they also contain the jobs' predictions.
"""

import errno
import lzma
import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.engine.config import HASHED_FIELDS, recorded_args
from domainbed.errors import UsageError, one_line
from domainbed.files import MAX_JSON_SIZE, atomic_write, file_lock, open_regular, read_regular
from domainbed.hparams import parse_overrides
from domainbed.predictions import MAX_SIZE, PREDICTIONS_FILE, DamagedError, read_predictions
from domainbed.records import (
    DONE_FILE,
    MAX_RESULTS_SIZE,
    PRUNED_FILE,
    RESULTS_FILE,
    is_done,
    parse_pruned,
    parse_records,
)
from domainbed.sweep.job import SWEEP_FOLDER, Job
from domainbed.sweep.log import launch_files
from domainbed.sweep.status import JobState, Status

END_FILES = (DONE_FILE, PRUNED_FILE)  # say how a job ended; an archive contains one for each job
ARCHIVED_FILES = (*END_FILES, RESULTS_FILE)
WITH_PREDICTIONS = (*ARCHIVED_FILES, PREDICTIONS_FILE)
MAX_SIZES = {PREDICTIONS_FILE: MAX_SIZE}  # bytes; of other files MAX_RESULTS_SIZE
# The records of the sweeps in results/ are 13 to 23 times the size of their archives. Bombs would fill memory or disk.
MAX_RATIO = 500
MIN_LIMIT = MAX_RESULTS_SIZE  # bytes that any archive may have, whatever its size
PRESET = 1  # of xz; the default, 6, takes 14 times as long for an archive three quarters the size


class ImportResult(NamedTuple):
    """The jobs that were imported from an archive, and how many others it contains.

    Attributes:
        jobs: the imported jobs.
        n_not_requested: number of jobs in the archive that the launch does not request.
        n_existing: number of requested jobs in the archive that already had a folder.
        n_pruned: number of requested jobs that were not imported because they are pruned.
    """

    jobs: list[Job]
    n_not_requested: int
    n_existing: int
    n_pruned: int = 0


def export_jobs(jobs: Sequence[Job], sweep_dir: Path, archive: Path, with_predictions: bool = False) -> None:
    """Write the records of finished or pruned jobs and the launch log to a .tar.xz; equal sweeps give equal bytes.

    Args:
        jobs: the jobs.
        sweep_dir: the sweep's folder.
        archive: the file to write.
        with_predictions: whether to include the predictions of the jobs that have them.

    Raises:
        UsageError: there are no jobs, or no predictions if requested; or a job could not be imported because of its
            files. Nothing is written.
    """
    if not jobs:
        raise UsageError(f"no job in {sweep_dir} is done; {archive} was not written")
    predicting = {job for job in jobs if with_predictions and (job.folder / PREDICTIONS_FILE).exists()}
    if with_predictions and not predicting:
        raise UsageError(f"--predictions: no finished job in {sweep_dir} has {PREDICTIONS_FILE}; export without it")
    with (
        atomic_write(archive) as file,
        lzma.open(file, "wb", preset=PRESET) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        # Launches are ordered by modification time, so members have times in the same order.
        times = {path: time for time, path in enumerate(launch_files(sweep_dir))}
        for path, time in sorted(times.items()):
            _add(tar, path.relative_to(sweep_dir).as_posix(), read_regular(path, MAX_JSON_SIZE), time)
        for job in sorted(jobs, key=lambda job: job.folder.name):
            names = [DONE_FILE if is_done(job.folder) else PRUNED_FILE, RESULTS_FILE]
            if job in predicting:
                names.append(PREDICTIONS_FILE)
            if links := [job.folder / name for name in names if (job.folder / name).is_symlink()]:
                raise UsageError(f"{links[0]} is a symbolic link, which may lead to any file; replace it with a copy")
            try:
                contents = {
                    name: read_regular(job.folder / name, MAX_SIZES.get(name, MAX_RESULTS_SIZE)) for name in names
                }
            except FileNotFoundError as error:
                if error.filename == str(job.folder / PRUNED_FILE):
                    raise UsageError(f"{job} was resumed in the meantime; export again") from None
                raise UsageError(f"{error.filename} is missing; delete the folder and launch again") from None
            if problem := find_problem(job, contents):
                is_newer = "schema version" in problem
                remedy = "export with that version" if is_newer else "delete the folder and launch again"
                raise UsageError(f"{job.folder / RESULTS_FILE}: {problem}; {remedy}")
            if problem := find_damage(contents.get(PREDICTIONS_FILE)):
                raise UsageError(f"{job.folder / PREDICTIONS_FILE}: {problem}; delete the file to export without it")
            for name, data in contents.items():
                _add(tar, f"{job.folder.name}/{name}", data)


def _add(tar: tarfile.TarFile, name: str, data: bytes, time: int = 0) -> None:
    member = tarfile.TarInfo(name)  # of user and group 0, without their names
    member.size, member.mtime = len(data), time
    tar.addfile(member, BytesIO(data))


def find_damage(predictions: bytes | None) -> str:
    """Return why the content of a file of predictions cannot be used; "" if it can, or if there is no file."""
    try:
        if predictions is not None:
            read_predictions(BytesIO(predictions))
    except DamagedError as error:
        return one_line(error)
    return ""


def import_jobs(
    archive: Path,
    statuses: Mapping[Job, Status],
    with_predictions: bool = False,
    with_pruned: bool = False,
    only_check: bool = False,
) -> ImportResult:
    """Import those of the requested jobs that have not been launched and that an archive contains.

    The whole archive is checked first. Each job's folder then appears complete or not at all.

    Args:
        archive: the file.
        statuses: the requested jobs and their statuses.
        with_predictions: whether to import the predictions of the jobs that have them.
        with_pruned: whether to import pruned jobs as well.
        only_check: whether to return what would be imported, without importing it.

    Raises:
        UsageError: the archive cannot be read, is damaged, has an unsafe member, or has records that do not belong to
            the requested job. Nothing is written.
    """
    requested = {job.folder.name for job in statuses}
    missing = {job.folder.name: job for job, status in statuses.items() if status.state == JobState.NOT_LAUNCHED}
    try:
        file = open_regular(archive)
    except OSError as error:
        raise UsageError(f"--import_results {archive}: {error.strerror}") from error
    names = WITH_PREDICTIONS if with_predictions else ARCHIVED_FILES
    with file:
        found, pruned = _check_archive(file, archive, missing, names)
        skipped = set() if with_pruned else pruned & missing.keys()
        selected = {name: job for name, job in missing.items() if name in found - skipped}
        imported = list(selected.values())
        if imported and not only_check:
            imported = _extract(file, archive, selected, names)
    n_requested = len(found & requested)
    return ImportResult(imported, len(found) - n_requested, n_requested - len(imported) - len(skipped), len(skipped))


def last_records(archive: Path) -> Iterator[dict[str, Any]]:
    """Yield the last record of each job in an archive that `import_jobs` has checked."""
    with open_regular(archive) as file:
        for _, name, data in _read_members(file, archive, None):
            if name == RESULTS_FILE and data and (records := parse_records(data)[0]):
                yield records[-1]


def _check_archive(
    file: BinaryIO, archive: Path, selected: Mapping[str, Job], names: Collection[str]
) -> tuple[set[str], set[str]]:
    """Return the folder names of all jobs in an archive, and of those that are pruned. Check the selected ones."""
    found: dict[str, set[str]] = defaultdict(set)
    contents: dict[str, dict[str, bytes]] = defaultdict(dict)  # of jobs that are not complete yet
    for folder, name, data in _read_members(file, archive, selected, names):
        if data is not None and name in found[folder]:
            raise _bad_job(archive, selected[folder], f"it has {name} twice")
        found[folder].add(name)
        if data is None:
            continue
        if name == PREDICTIONS_FILE:
            if problem := find_damage(data):
                raise _bad_job(archive, selected[folder], f"{PREDICTIONS_FILE}: {problem}")
            continue
        contents[folder][name] = data
        is_complete = RESULTS_FILE in contents[folder] and len(contents[folder]) > 1
        if is_complete and (problem := find_problem(selected[folder], contents.pop(folder))):
            raise _bad_job(archive, selected[folder], problem)
    if not found:
        raise UsageError(f"--import_results {archive} contains no jobs: members must be named FOLDER/{RESULTS_FILE}")
    for folder in sorted(found.keys() & selected.keys()):
        for name, files in ((DONE_FILE, END_FILES), (RESULTS_FILE, [RESULTS_FILE])):
            if found[folder].isdisjoint(files):
                raise _bad_job(archive, selected[folder], f"{name} is missing")
    return set(found), {name for name, files in found.items() if PRUNED_FILE in files and DONE_FILE not in files}


def _bad_job(archive: Path, job: Job, problem: str) -> UsageError:
    return UsageError(
        f"--import_results {archive}: {job.folder.name} ({job}): {problem}; fix that job or remove it from the archive"
    )


def find_problem(job: Job, contents: Mapping[str, bytes]) -> str:
    """Return why the contents of files are not those of the finished or pruned job; "" if they are.

    Arguments that records of older versions lack are taken to have been at their defaults. Without the job's classes
    (`has_known_hparams`), the hyperparameters must equal the overrides and those of the last record.

    Args:
        job: the job.
        contents: the contents of its RESULTS_FILE and, of a pruned job, its PRUNED_FILE.
    """
    last_step = job.config.steps - 1
    is_complete = True
    if DONE_FILE not in contents and PRUNED_FILE in contents:
        if (decision := parse_pruned(contents[PRUNED_FILE])) is None:
            return f"{PRUNED_FILE} is damaged"
        last_step, is_complete = decision.step, False
    records, problems = parse_records(contents[RESULTS_FILE])
    if problems:
        return one_line(problems[0].partition(";")[0])  # what follows concerns tables only
    if not records or (records[-1]["step"] != last_step and not (is_complete and records[-1].get("ended_early"))):
        last = f"the last record is of step {records[-1]['step']}" if records else "there are no records"
        return f"the records do not reach step {last_step}: {last}"
    for record in records:
        if not isinstance(record.get("args"), dict) or not isinstance(record.get("hparams"), dict):
            return f"the record of step {record['step']} lacks args and hparams"
    args = job.config.args()
    if has_known_hparams(job):
        hparams = job.config.resolved_hparams()
    else:
        hparams = records[-1]["hparams"] | parse_overrides(job.config.hparams)
    for record in records:
        step = record["step"]
        for name, value in recorded_args(record["args"], HASHED_FIELDS).items():
            if value != args[name]:
                return f"the record of step {step} has {name} {value!r}, not {args[name]!r}"
        for name, value in record["hparams"].items():
            if name not in hparams or value != hparams[name]:
                return f"the record of step {step} has {name} {value!r}, not {hparams.get(name)!r}"
    return ""


def has_known_hparams(job: Job) -> bool:
    """Return whether the classes that declare the job's hyperparameters are registered."""
    return job.config.dataset in DATASETS and job.config.algorithm in ALGORITHMS


def _extract(file: BinaryIO, archive: Path, selected: Mapping[str, Job], names: Collection[str]) -> list[Job]:
    """Extract jobs to a temporary folder, then move each into place. Return those whose place was still free."""
    sweep_folder = next(iter(selected.values())).folder.parent / SWEEP_FOLDER
    sweep_folder.mkdir(parents=True, exist_ok=True)
    temporary = sweep_folder / "importing"
    message = f"Another launch is importing into {sweep_folder.parent}; waiting for it"
    with file_lock(sweep_folder / "importing.lock", message):
        if temporary.exists():  # an import was killed
            shutil.rmtree(temporary)
        try:
            for folder, name, data in _read_members(file, archive, selected, names):
                if data is not None:
                    (temporary / folder).mkdir(parents=True, exist_ok=True)
                    (temporary / folder / name).write_bytes(data)
            os.sync()  # once for thousands of files: after a power cut, folders in place must be complete
            return [job for folder, job in selected.items() if _move(temporary / folder, job.folder)]
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, target: Path) -> bool:
    """Move a folder and return whether the target was free (did not exist or was an empty folder)."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _read_members(
    file: BinaryIO, archive: Path, selected: Container[str] | None, names: Collection[str] = ARCHIVED_FILES
) -> Iterator[tuple[str, str, bytes | None]]:
    """Yield the folder and file name of each file with one of these names, with the content for selected folders.

    All folders are selected if `selected` is None.

    Raises:
        UsageError: the archive is damaged, has an unsafe member, or is much larger than its compressed file.
    """
    limit = MIN_LIMIT + MAX_RATIO * file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with _LimitedFile(file, limit, archive) as decompressed:
            with tarfile.open(fileobj=decompressed, mode="r|") as tar:
                for member in tar:
                    parts = _safe_parts(member, archive)
                    if member.isreg() and len(parts) == 2 and parts[0] != SWEEP_FOLDER and parts[1] in names:
                        content = tar.extractfile(member) if selected is None or parts[0] in selected else None
                        yield parts[0], parts[1], content.read() if content else None
            while decompressed.read(1 << 20):  # up to the end, where xz verifies its checksum
                pass
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UsageError(
            f"--import_results {archive} is not a complete .tar.xz ({one_line(error)}); download or copy it again"
        ) from error


class _LimitedFile(lzma.LZMAFile):
    """An .xz file opened for reading, whose content may not exceed a limit in bytes."""

    def __init__(self, file: BinaryIO, limit: int, archive: Path) -> None:
        super().__init__(file, format=lzma.FORMAT_XZ)
        self._limit, self._archive = limit, archive

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > self._limit:
            raise UsageError(
                f"--import_results {self._archive} is unsafe: it contains more than {self._limit:,} bytes, over "
                f"{MAX_RATIO} times its size"
            )
        return data


def _safe_parts(member: tarfile.TarInfo, archive: Path) -> tuple[str, ...]:
    """Return the parts of a member's name. Raises UsageError if it is not a small file or folder within the archive."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        problem = "is outside its folder"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        problem = "is neither a file nor a folder"
    elif member.size > (limit := MAX_SIZES.get(path.name, MAX_RESULTS_SIZE)):
        problem = f"is larger than {limit:,} bytes"
    else:
        return path.parts
    raise UsageError(f"--import_results {archive} is unsafe: its member {member.name!r} {problem}")
