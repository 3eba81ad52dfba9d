"""What was read of a sweep, in columns, kept beside it: what has not changed since need not be parsed again.

It may be deleted at any time. A file holds the jobs and the records of a part, two Arrow streams one after the other.
It is never changed: jobs that have gone on since are read anew, into files of their own once they are MANY, and a file
fewer than half of whose jobs are as they were is deleted. Of a sweep in which nothing at all has changed since, its
jobs and what each method chose are kept, too, so that no record need be looked at again.
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

from domainbed.files import atomic_write
from domainbed.records import SCHEMA_VERSION
from domainbed.reporting.reading import Part
from domainbed.sweep.job import SWEEP_FOLDER

MANY = 500  # fewer jobs are as quickly parsed again
# Of what reading.py makes of a job's folder, and model_selection.py of records.
VERSION = f"2 of schema {SCHEMA_VERSION}".encode()
WHOLE = "whole"  # the folder for what concerns a whole sweep
STALE = 3600  # seconds after which what a killed process has left half-written is removed

Signature = tuple[int, int]  # of a job's records: how many bytes, and when they were written, in nanoseconds


def cache_folder(sweep_dir: Path) -> Path:
    """Where the files lie."""
    return sweep_dir / SWEEP_FOLDER / "records"


def write_part(sweep_dir: Path, part: Part) -> Path | None:
    """Keep a part, in the file that is returned; None where the folder does not let us, which does no harm."""
    return _write(cache_folder(sweep_dir), uuid.uuid4().hex, part)


def load_parts(sweep_dir: Path, signatures: Mapping[str, Signature]) -> list[Part]:
    """The kept parts, cut down to the jobs that are still as `signatures` tell, each of them once."""
    for left in cache_folder(sweep_dir).glob("*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
    parts: list[Part] = []
    found: set[str] = set()
    paths = sorted(cache_folder(sweep_dir).glob("*.arrow"))
    with ThreadPoolExecutor(cpu_count()) as pool:  # reading and checksums don't hold Python's lock
        read_parts = list(pool.map(read, paths))
    for path, part in zip(paths, read_parts, strict=True):
        if part is None:
            _remove(path)
            continue
        names = part.jobs["folder"].to_pylist()
        then = zip(part.jobs["size"].to_pylist(), part.jobs["written"].to_pylist(), strict=True)
        counts = [
            signatures.get(name) == signature and name not in found for name, signature in zip(names, then, strict=True)
        ]
        if 2 * sum(counts) < len(names):
            _remove(path)
            continue
        found.update(name for name, does in zip(names, counts, strict=True) if does)
        parts.append(part if all(counts) else _only(part, counts))
    return parts


def _remove(path: Path) -> None:
    with suppress(OSError):  # as above: the folder may not be ours
        path.unlink()


def read(path: Path) -> Part | None:
    """A kept part; None for a file of another version, and for one that is damaged."""
    tables = _tables(path, len(Part._fields))
    return Part(*tables) if tables else None


def state_of(signatures: Mapping[str, Signature], done: Container[str]) -> str:
    """A name for how the jobs of a sweep are: where any has changed, it is another."""
    told = "\n".join(f"{name} {signature} {name in done}" for name, signature in sorted(signatures.items()))
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def save_snapshot(sweep_dir: Path, state: str, what: str, table: pa.Table) -> None:
    """Keep what was found out of a whole sweep in this state; what was, of others, is removed."""
    folder = cache_folder(sweep_dir) / WHOLE
    for path in folder.glob("*.arrow"):
        if not path.name.startswith(state):
            _remove(path)
    _write(folder, f"{state}-{what}", [table])


def load_snapshot(sweep_dir: Path, state: str, what: str) -> pa.Table | None:
    """What was found out of a whole sweep in this state, if it was kept."""
    for path in (cache_folder(sweep_dir) / WHOLE).glob(f"{state}-{what}-*.arrow"):
        if tables := _tables(path, 1):
            return tables[0]
    return None


def _write(folder: Path, stem: str, tables: Iterable[pa.Table]) -> Path | None:
    """Write tables into a file whose name ends with its checksum; None where the folder does not let us."""
    buffer = pa.BufferOutputStream()
    for table in tables:
        table = table.replace_schema_metadata({"version": VERSION})
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


def _tables(path: Path, n: int) -> list[pa.Table] | None:
    """The `n` tables in a file; None for one of another version, and for one that is damaged."""
    try:
        # Not mapped into memory: a mapped file that a network file system takes away ends this process.
        content = path.read_bytes()
    except OSError:
        return None
    if path.stem.rpartition("-")[2] != _checksum(content):  # Arrow itself would crash on some damage
        return None
    file = pa.BufferReader(content)
    tables = []
    for _ in range(n):
        with pa.ipc.open_stream(file) as stream:
            if stream.schema.metadata != {b"version": VERSION}:
                return None
            tables.append(stream.read_all())
    return tables


def _checksum(content: bytes | pa.Buffer) -> str:
    return f"{zlib.crc32(content):08x}"


def _only(part: Part, counts: Sequence[bool]) -> Part:
    """The part's jobs that count, and their records."""
    mask = np.repeat(np.array(counts), part.jobs["n_records"].to_numpy())
    return Part(part.jobs.filter(pa.array(counts)), part.records.filter(pa.array(mask)))
