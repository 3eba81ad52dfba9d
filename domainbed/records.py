"""The one schema between a job and a table: a folder with one JSON object per evaluation and, at the end, `done`.

Each record has `step`, `epoch`, `env{i}_in_acc` and `env{i}_out_acc`, the update's figures averaged since the last
evaluation, `step_time` (seconds), `mem_gb`, `args` and `hparams`. Sweeps written by DomainBed have this form, too. Ours
add `environments` (their names), `bad_images` (how many broken files were replaced so far) and `schema_version`.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from domainbed.files import atomic_write

RESULTS_FILE = "results.jsonl"
DONE_FILE = "done"
CHECKPOINT_FILE = "checkpoint.pt"  # of training that is not done, written by engine/checkpoint.py

# Of the records that this module writes. DomainBed's, and ours of before, don't tell theirs, and are of this one.
SCHEMA_VERSION = 1

# What tells one run of a sweep from another.
RUN_KEYS = ["dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"]


def append_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Add one evaluation to a job's records, for good: a power cut after this does not lose it."""
    with open(folder / RESULTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "schema_version": SCHEMA_VERSION}, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def records_length(folder: Path) -> int:
    """How many bytes of records a job's folder holds."""
    try:
        with open(folder / RESULTS_FILE, "rb") as file:  # opened anew: a network file system then asks its server
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return 0


def cut_records(folder: Path, length: int) -> None:
    """Keep a job's first records, `length` bytes of them, for good; the job goes on from behind these."""
    if not length:
        (folder / RESULTS_FILE).unlink(missing_ok=True)
    else:
        with open(folder / RESULTS_FILE, "r+b") as file:
            file.truncate(min(length, os.fstat(file.fileno()).st_size))
            os.fsync(file.fileno())


def mark_done(folder: Path) -> None:
    """Say that a job is finished; written last, when everything else is on disk, and whole or not at all."""
    with atomic_write(folder / DONE_FILE) as file:
        file.write(b"done")


def is_done(folder: Path) -> bool:
    """Whether a job is finished."""
    return (folder / DONE_FILE).exists()


def read_job(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A job's records, by ascending step, and what could not be read or is odd, a line each.

    A line that is no record is left out (a job that was killed may have torn its last). Where a job was run again in
    the same folder, the last run counts: a record takes the place of all earlier ones of its step and of later steps.
    """
    return parse_records((folder / RESULTS_FILE).read_bytes())


def parse_records(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """As `read_job`, of what stands in the file."""
    records: list[dict[str, Any]] = []
    torn, versions, replaced = [], set(), 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode(errors="replace"))
            step = record["step"] = int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            torn.append(number)
            continue
        if record.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            versions.add(str(record["schema_version"]))
            continue
        while records and records[-1]["step"] >= step:
            records.pop()
            replaced += 1
        records.append(record)
    problems = []
    if torn:
        more = f", nor are {len(torn) - 1} others" if len(torn) > 1 else ""
        problems.append(f"line {torn[0]} is not a whole record{more}; left out")
    if versions:
        known = f"this domainbed knows {SCHEMA_VERSION}"
        problems.append(f"records of schema version {', '.join(sorted(versions))} are left out; {known}")
    if replaced:
        problems.append(f"the job was run again in its folder; of the earlier run, {replaced} records don't count")
    return records, problems


def last_record(folder: Path) -> dict[str, Any] | None:
    """A job's last whole record, or None; only the end of the file is read."""
    try:
        with open(folder / RESULTS_FILE, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                return record
    return None
