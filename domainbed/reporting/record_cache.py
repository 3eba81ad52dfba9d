"""A cache of parsed records in the sweep's folder: jobs that have not changed are not parsed again.

The cache may be deleted at any time. A part file contains the jobs and the records of a `SweepPart`, two consecutive
Arrow streams, and is never modified: jobs that have changed are parsed again, and written to a file of their own once
there are MIN_JOBS of them; a file is deleted when fewer than half of its jobs are current. Snapshots hold the jobs of a
whole sweep, and the records that each method selected from it, until any of its jobs changes.
"""

import hashlib
import time
import uuid
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from joblib import cpu_count

from domainbed.files import atomic_write, read_regular
from domainbed.records import SCHEMA_VERSION
from domainbed.reporting.reading import SweepPart
from domainbed.sweep.job import SWEEP_FOLDER

MIN_JOBS = 500  # for fewer jobs, parsing is as fast as reading the cache
# The version of what reading.py extracts from a job's folder and model_selection.py from records.
CACHE_VERSION = f"9 of schema {SCHEMA_VERSION}".encode()
SNAPSHOTS_FOLDER = "whole"
MAX_SIZE = 2**29  # bytes of a file; 500,000 jobs take about as many
MAX_AGE = 3600  # seconds after which the unfinished file of a killed process is deleted

Signature = tuple[int, int]  # of a job's records: their size in bytes and modification time in nanoseconds


def cache_folder(sweep_dir: Path) -> Path:
    return sweep_dir / SWEEP_FOLDER / "records"


def write_part(sweep_dir: Path, part: SweepPart) -> Path | None:
    """Write a part to the cache and return its file, or None if the folder is not writable."""
    return _write(cache_folder(sweep_dir), uuid.uuid4().hex, part)


def load_parts(sweep_dir: Path, signatures: Mapping[str, Signature]) -> list[SweepPart]:
    """Return the cached parts, with only the jobs that have not changed, each once."""
    for unfinished in cache_folder(sweep_dir).glob("*.part"):
        with suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > MAX_AGE:
                unfinished.unlink()
    parts: list[SweepPart] = []
    found: set[str] = set()
    paths = sorted(cache_folder(sweep_dir).glob("*.arrow"))
    with ThreadPoolExecutor(cpu_count()) as pool:  # reading and checksums release the GIL
        cached_parts = list(pool.map(load_part, paths))
    for path, part in zip(paths, cached_parts, strict=True):
        if part is None:
            _delete(path)
            continue
        folders, *signature = (part.jobs[name].to_pylist() for name in ("folder", "size", "mtime_ns"))
        is_current = [
            signatures.get(folder) == cached and folder not in found
            for folder, cached in zip(folders, zip(*signature, strict=True), strict=True)
        ]
        if 2 * sum(is_current) < len(folders):
            _delete(path)
            continue
        found.update(folder for folder, current in zip(folders, is_current, strict=True) if current)
        parts.append(part if all(is_current) else _filter_jobs(part, is_current))
    return parts


def load_part(path: Path) -> SweepPart | None:
    """Return a cached part, or None if its file has another version or is damaged."""
    tables = _read(path, len(SweepPart._fields))
    return SweepPart(*tables) if tables else None


def state_of(signatures: Mapping[str, Signature], done: Container[str], pruned: Container[str] = ()) -> str:
    """Return a hash of the state of all jobs of a sweep; it changes when any job does."""
    lines = "\n".join(
        f"{name} {signature} {name in done} {name in pruned}" for name, signature in sorted(signatures.items())
    )
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def save_snapshot(sweep_dir: Path, state: str, name: str, table: pa.Table) -> None:
    """Save a table computed from a whole sweep in this state, and delete the snapshots of other states."""
    folder = cache_folder(sweep_dir) / SNAPSHOTS_FOLDER
    for path in folder.glob("*.arrow"):
        if not path.name.startswith(state):
            _delete(path)
    _write(folder, f"{state}-{name}", [table])


def load_snapshot(sweep_dir: Path, state: str, name: str) -> pa.Table | None:
    """Return the table saved under this name for a sweep in this state, or None if there is none."""
    for path in (cache_folder(sweep_dir) / SNAPSHOTS_FOLDER).glob(f"{state}-{name}-*.arrow"):
        if tables := _read(path, 1):
            return tables[0]
    return None


def _delete(path: Path) -> None:
    with suppress(OSError):  # the folder may be read-only
        path.unlink()


def _write(folder: Path, stem: str, tables: Iterable[pa.Table]) -> Path | None:
    """Write tables to a file named after its checksum. Return None if the folder is not writable."""
    buffer = pa.BufferOutputStream()
    for table in tables:
        table = table.replace_schema_metadata({"version": CACHE_VERSION})
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table)
    content = buffer.getvalue()
    path = folder / f"{stem}-{_checksum(content)}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError:
        return None
    return path


def _read(path: Path, n: int) -> list[pa.Table] | None:
    """Return the `n` tables in a file, or None if it has another version or is damaged."""
    try:
        # Not memory-mapped: a mapped file that disappears from a network file system kills the process.
        content = read_regular(path, MAX_SIZE)
    except OSError:
        return None
    if path.stem.rpartition("-")[2] != _checksum(content):  # some damage would crash Arrow
        return None
    file = pa.BufferReader(content)
    tables = []
    try:
        for _ in range(n):
            with pa.ipc.open_stream(file) as stream:
                if stream.schema.metadata != {b"version": CACHE_VERSION}:
                    return None
                tables.append(stream.read_all())
    except (pa.ArrowException, OSError):  # not such a file, although its name has its checksum
        return None
    return tables


def _checksum(content: bytes | pa.Buffer) -> str:
    return f"{zlib.crc32(content):08x}"


def _filter_jobs(part: SweepPart, mask: Sequence[bool]) -> SweepPart:
    """Return a part's jobs for which `mask` is true, and their records."""
    records_mask = np.repeat(np.array(mask), part.jobs["n_records"].to_numpy())
    return SweepPart(part.jobs.filter(pa.array(mask)), part.records.filter(pa.array(records_mask)))
