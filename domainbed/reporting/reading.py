"""Parsing of job folders into Arrow tables: one of jobs, one of their records."""

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from domainbed.engine.config import PRECISIONS, TASKS
from domainbed.errors import printable
from domainbed.files import open_regular
from domainbed.records import (
    ACCURACY,
    MAX_RESULTS_SIZE,
    RESULTS_FILE,
    RUN_KEYS,
    SCHEMA_VERSION,
    SELECTIVE,
    algorithm_name,
    parse_records,
)

# The columns of SweepPart.jobs; test_envs, environments, hparams and problems are JSON.
JOB_SCHEMA = pa.schema(
    {
        "folder": pa.string(),
        "size": pa.int64(),  # bytes of records; together with mtime_ns, detects changes
        "mtime_ns": pa.int64(),  # last modification of the records, in nanoseconds
        "dataset": pa.string(),
        "algorithm": pa.string(),
        "test_envs": pa.string(),
        "trial_seed": pa.int64(),
        "hparams_seed": pa.int64(),
        "environments": pa.string(),
        "steps": pa.float64(),  # requested number of updates; NaN if unknown
        "checkpoint_freq": pa.float64(),  # updates between evaluations; NaN if unknown
        "settings": pa.string(),  # other arguments that affect the result
        "code": pa.string(),  # the hash of users' code; "" if there is none
        "backbone_weights": pa.string(),  # the hash of a frozen backbone; "" if there is none, or it is not recorded
        "eval": pa.string(),  # which accuracies the records have, as the argument of this name
        "ensemble": pa.string(),  # the name in tables of the method that combined other jobs; "" if the job was trained
        "backbone": pa.string(),  # such as "frozen resnet50"; "" if the backbone is fine-tuned
        "hparams": pa.string(),
        "bad_images": pa.int64(),
        "n_records": pa.int64(),
        "last_step": pa.int64(),
        "ended_early": pa.bool_(),  # the last record is that of a job that ended before its last step, as it should
        "n_environments": pa.int64(),
        "problems": pa.string(),
    }
)
# Seeds of a job without usable records: nulls would make pandas convert the column to floats.
NO_SEEDS = {"trial_seed": 0, "hparams_seed": 0}
RECORD_ERRORS = (LookupError, TypeError, ValueError, OverflowError, RecursionError)  # raised by an unusable record


class SweepPart(NamedTuple):
    """Some jobs of a sweep.

    Attributes:
        jobs: one row per job, with the columns of JOB_SCHEMA.
        records: one row per record, in the order of `jobs`: `step` and every `env…_acc`, NaN if missing.
    """

    jobs: pa.Table
    records: pa.Table


class RecordArray(NamedTuple):
    """The steps and accuracies of a job's records: `values` is [records, columns], its first column is `step`."""

    columns: tuple[str, ...]
    values: np.ndarray


def read_part(sweep_dir: Path, names: Sequence[str]) -> SweepPart:
    """Read job folders. A job without usable records has problems and no records."""
    jobs = [({"folder": name, **NO_SEEDS, **job}, array) for name in names for job, array in [_read(sweep_dir / name)]]
    # The order in which selection methods read them.
    jobs.sort(key=lambda job: (job[0].get("dataset", ""), job[0].get("test_envs", "")))
    arrays = [array for _, array in jobs]
    n_records = sum(len(array.values) for array in arrays)
    column_names = dict.fromkeys(["step", *(name for array in arrays for name in array.columns)])
    columns = {name: np.full(n_records, np.nan) for name in column_names}
    start = 0
    for array in arrays:
        for name, values in zip(array.columns, array.values.T, strict=True):
            columns[name][start : start + len(values)] = values
        start += len(array.values)
    columns["step"] = columns["step"].astype(np.int32)
    return SweepPart(pa.Table.from_pylist([job for job, _ in jobs], JOB_SCHEMA), pa.table(columns))


def _read(folder: Path) -> tuple[dict[str, Any], RecordArray]:
    """Return a job's row of JOB_SCHEMA, without `folder`, and its records."""
    size = mtime_ns = -1
    try:
        with open_regular(folder / RESULTS_FILE) as file:
            stat = os.fstat(file.fileno())  # before reading: a record appended meanwhile makes the job count as changed
            if stat.st_size > MAX_RESULTS_SIZE:
                raise OSError(errno.EFBIG, f"Larger than {MAX_RESULTS_SIZE:,} bytes")
            data = file.read(MAX_RESULTS_SIZE)
    except OSError as error:
        job, array, problems = *_parse_leniently([], []), [f"{error.strerror}; skipped"]
    else:
        size, mtime_ns = stat.st_size, stat.st_mtime_ns
        job, array, problems = _parse(data)
    return {
        **job,
        "size": size,
        "mtime_ns": mtime_ns,
        "n_records": len(array.values),
        "last_step": int(array.values[-1, 0]) if len(array.values) else -1,
        "n_environments": _count_environments(job, array.columns[1:]),
        "problems": json.dumps(problems),
    }, array


def _environment(name: str) -> int:
    """Return the number of the environment of an accuracy."""
    return int(name[3:].partition("_")[0])


def _count_environments(job: Mapping[str, Any], accuracies: Sequence[str]) -> int:
    """Return 1 + the highest number of an environment with an accuracy, or of a test environment without any yet."""
    envs = [*map(_environment, accuracies)]
    if job.get("eval") in SELECTIVE:
        envs += json.loads(job["test_envs"])
    return 1 + max(envs, default=-1)


def _parse(data: bytes) -> tuple[dict[str, Any], RecordArray, list[str]]:
    """Parse the contents of a results file; the last value lists its problems."""
    try:
        return *_parse_strictly(data), []
    except RECORD_ERRORS:
        records, problems = parse_records(data)
        job, array = _parse_leniently(records, problems)
        return job, array, problems if data else ["empty file"]


def _parse_strictly(data: bytes) -> tuple[dict[str, Any], RecordArray]:
    """Parse flawless records, ten times as fast as `_parse_leniently`. Raise one of RECORD_ERRORS on any flaw."""
    last = json.loads(data.strip().rpartition(b"\n")[2])
    job = _job_row(last)
    test_envs = json.loads(job["test_envs"])
    names = _accuracy_names(last, test_envs)
    optional = frozenset(name for name in names if job["eval"] in SELECTIVE and _environment(name) in test_envs)
    records = _decoder(names, optional).decode_lines(data)
    # All fields except for `args`: step, the accuracies, bad_images and schema_version.
    fields = (field for record in records for field in msgspec.structs.astuple(record)[1:])
    values = np.fromiter(fields, np.float64).reshape(len(records), -1)
    is_finite = np.isfinite(values)
    is_required = [True, *(name not in optional for name in names), True, True]
    if not (
        all(record.args == records[0].args for record in records)
        and data.count(b'_acc"') == is_finite[:, 1:-2].sum()  # no record has other accuracies
        and is_finite[:, is_required].all()
        and values[-1, 0] <= np.iinfo(np.int32).max
        and (np.diff(values[:, 0]) > 0).all()
        and (values[:, -1] == SCHEMA_VERSION).all()
    ):
        raise ValueError("the records require lenient parsing")
    return {**job, "bad_images": int(values[:, -2].max())}, RecordArray(("step", *names), values[:, :-2])


@cache
def _decoder(accuracies: tuple[str, ...], optional: frozenset[str]) -> msgspec.json.Decoder:
    """Return a decoder of the fields that the tables need; it leaves `args` unparsed.

    Accuracies that are `optional` are NaN where they are missing.
    """
    required: list[Any] = [("args", msgspec.Raw), ("step", int)]
    fields: list[Any] = [
        *((name, float, math.nan) if name in optional else (name, float) for name in accuracies),
        ("bad_images", int, 0),
        ("schema_version", int, SCHEMA_VERSION),
    ]
    # Keyword-only: a required field may follow an optional one.
    return msgspec.json.Decoder(msgspec.defstruct("Record", [*required, *fields], gc=False, kw_only=True))


def _parse_leniently(records: Sequence[Mapping[str, Any]], problems: list[str]) -> tuple[dict[str, Any], RecordArray]:
    """Return what is usable in a job's records, and append the reasons for what is not to `problems`.

    All records returned belong to the run of the last usable one. Missing accuracies are NaN.
    """
    job: dict[str, Any] = {}
    rows: list[dict[str, float]] = []
    bad_images = 0
    reason = ""
    for record in reversed(records):
        try:
            row_job = _job_row(record)
            if job and any(row_job[name] != job[name] for name in RUN_KEYS):
                raise ValueError("it belongs to a different run than the last record")
            names = _accuracy_names(record, json.loads(row_job["test_envs"]))
            row = {"step": float(np.int32(record["step"]))} | {name: float(record[name]) for name in names}
            if not all(map(math.isfinite, row.values())):
                raise ValueError("an accuracy is not a finite number")
            bad_images = max(bad_images, int(record.get("bad_images", 0)))
        except RECORD_ERRORS as error:
            reason = f"skipped the record of step {record['step']}: {error!r}"
            continue
        job = job or row_job
        rows.insert(0, row)
    if n_skipped := len(records) - len(rows):
        problems.append(reason + (f", and {n_skipped - 1} more" if n_skipped > 1 else ""))
    columns = tuple(dict.fromkeys(["step", *(name for row in rows for name in row)]))
    values = np.array([[row.get(name, np.nan) for name in columns] for row in rows], dtype=np.float64)
    return {**job, "bad_images": bad_images}, RecordArray(columns, values.reshape(len(rows), len(columns)))


def _job_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record contains about its job. Raise one of RECORD_ERRORS if it is unusable."""
    args, environments = record["args"], record.get("environments")
    hparams = record["hparams"] if isinstance(record.get("hparams"), dict) else {}
    for name in ("dataset", "algorithm"):
        if not isinstance(args[name], str):
            raise TypeError(f"{name} is {args[name]!r}")
        args[name].encode()  # raises if it contains a surrogate
    with_task = {"task": TASKS[0], **args}  # DomainBed's records of 2020 lack the task; only one existed
    settings = ", ".join(f"{name} {with_task.get(name)}" for name in ("steps", "hparams", "holdout_fraction", "task"))
    if fraction := args.get("uda_holdout_fraction"):
        settings += f", uda_holdout_fraction {fraction}"
    if args.get("clean_evaluation"):
        settings += ", clean_evaluation"
    if (precision := args.get("precision", PRECISIONS[0])) != PRECISIONS[0]:
        settings += f", precision {precision}"
    for name in ("columns", "split_by"):
        if args.get(name):
            settings += f", {name} {args[name]}"
    if (protocol := args.get("protocol", "2021")) != "2021":
        settings += f", protocol {protocol}"
    if digest := args.get("init_digest"):
        settings += f", initial weights {str(digest)[:8]}"
    settings.encode()
    return {
        "dataset": printable(args["dataset"]),
        "algorithm": printable(algorithm_name(args)),
        "test_envs": json.dumps(sorted(int(env) for env in args["test_envs"])),
        "trial_seed": _to_int64(args["trial_seed"]),
        "hparams_seed": _to_int64(args["hparams_seed"]),
        "steps": float(steps) if isinstance(steps := args.get("steps"), int) else np.nan,
        "checkpoint_freq": float(freq) if isinstance(freq := args.get("checkpoint_freq"), int) else np.nan,
        "settings": printable(settings),
        "code": printable(str(record.get("code", ""))),
        "backbone_weights": printable(str(record.get("backbone_weights", ""))),
        "eval": printable(str(args.get("eval", "all"))),
        "ensemble": printable(str(args.get("ensemble") or "")),
        "backbone": printable(_frozen_backbone(hparams)),
        "environments": _to_json(list(map(str, environments)) if isinstance(environments, list) else []),
        "hparams": _to_json(hparams),
        "ended_early": record.get("ended_early") is True,
    }


def _frozen_backbone(hparams: Mapping[str, Any]) -> str:
    """Return "frozen" and the name of the backbone if it is frozen, otherwise ""."""
    if hparams.get("frozen") is not True:
        return ""
    # dinov2 first: resnet50_augmix, true by default with --protocol head, does not apply to it.
    flags = [name for name in ("dinov2", "resnet18", "resnet50_augmix") if hparams.get(name) is True]
    return f"frozen {flags[0] if flags else hparams.get('backbone')}"


def _to_json(value: Any) -> str:
    """Return a value as JSON, with all strings printable: tables, pages and plots show them."""
    text = json.dumps(value)
    return json.dumps(_printable(value)) if "\\" in text or "\x7f" in text else text


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _to_int64(number: Any) -> int:
    return int(np.int64(int(number)))  # raises OverflowError


def _accuracy_names(record: Mapping[str, Any], test_envs: Sequence[int]) -> tuple[str, ...]:
    """Return the names of a record's accuracies.

    Raise ValueError if those on its test environments are missing, unless the job omits them.
    """
    names = tuple(filter(ACCURACY.fullmatch, record))
    required = [f"env{env}_{split}_acc" for env in test_envs for split in ("in", "out")]
    if record["args"].get("eval") in SELECTIVE:
        required = []
    if not test_envs or not names or not set(required) <= set(names):
        raise ValueError(f"no accuracy on its test environments {tuple(test_envs)}")
    return names
