"""Job folders -> a part of a sweep: a table of jobs and one of their records."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from domainbed.engine.config import PRECISIONS, TASKS
from domainbed.records import RESULTS_FILE, RUN_KEYS, SCHEMA_VERSION, read_job

# What a part tells of each job; test_envs, environments, hparams and problems are JSON.
JOBS = pa.schema(
    {
        "folder": pa.string(),
        "size": pa.int64(),  # of its records, in bytes; with the next, it tells whether they are as they were
        "written": pa.int64(),  # when they last were, in nanoseconds
        "dataset": pa.string(),
        "algorithm": pa.string(),
        "test_envs": pa.string(),
        "trial_seed": pa.int64(),
        "hparams_seed": pa.int64(),
        "environments": pa.string(),
        "steps": pa.float64(),  # how many updates were asked for; NaN where the records don't tell
        "settings": pa.string(),  # other arguments on which the result depends
        "hparams": pa.string(),
        "bad_images": pa.int64(),
        "n_records": pa.int64(),
        "last_step": pa.int64(),
        "n_environments": pa.int64(),
        "problems": pa.string(),
    }
)


# Of a job without a record of use. With nulls among them, pandas would make floats of all jobs' numbers.
NUMBERS = {"trial_seed": 0, "hparams_seed": 0}
ACCURACY = re.compile(r"env\d{1,4}_(in|out)_acc")
# What a record that can't be used raises.
UNUSABLE = (LookupError, TypeError, ValueError, OverflowError, RecursionError)


class Part(NamedTuple):
    """Some jobs of a sweep: JOBS, a row each, and their records, in the same order: `step`, and every `env…_acc`."""

    jobs: pa.Table
    records: pa.Table


class Figures(NamedTuple):
    """Some records' steps and accuracies: [records, names]."""

    names: tuple[str, ...]
    values: np.ndarray


def read_part(sweep_dir: Path, names: Sequence[str]) -> Part:
    """Read job folders. One that can't be read, or has no record of use, has problems and no records."""
    read = [
        ({"folder": name, **NUMBERS, **job}, figures) for name in names for job, figures in [_read(sweep_dir / name)]
    ]
    read.sort(key=lambda each: (each[0].get("dataset", ""), each[0].get("test_envs", "")))  # as the tables ask for them
    jobs, figures = [job for job, _ in read], [figures for _, figures in read]
    length = sum(len(f.values) for f in figures)
    columns = {
        name: np.full(length, np.nan) for name in dict.fromkeys(["step", *(n for f in figures for n in f.names)])
    }
    start = 0
    for f in figures:
        for name, values in zip(f.names, f.values.T, strict=True):
            columns[name][start : start + len(values)] = values
        start += len(f.values)
    columns["step"] = columns["step"].astype(np.int32)
    return Part(pa.Table.from_pylist(jobs, JOBS), pa.table(columns))


def _read(folder: Path) -> tuple[dict[str, Any], Figures]:
    """A job's row of JOBS, but for its folder, and the figures of its records."""
    size = written = -1
    problems: list[str] = []
    try:
        with open(folder / RESULTS_FILE, "rb") as file:
            stat = os.fstat(file.fileno())  # before it is read: what is written meanwhile makes it new again
            data = file.read()
        size, written = stat.st_size, stat.st_mtime_ns
        try:
            job, figures = _at_once(data)
        except UNUSABLE:
            records, problems = read_job(folder)
            job, figures = _one_by_one(records, problems)
        if not data:
            problems.append("empty")
    except OSError as error:
        job, figures = _one_by_one([], problems)
        problems.append(f"{error.strerror}; left out")
    job |= {"n_records": len(figures.values), "last_step": int(figures.values[-1, 0]) if len(figures.values) else -1}
    job["n_environments"] = 1 + max((int(name[3:].partition("_")[0]) for name in figures.names[1:]), default=-1)
    return {**job, "size": size, "written": written, "problems": json.dumps(problems)}, figures


def _at_once(data: bytes) -> tuple[dict[str, Any], Figures]:
    """What a job's file tells in which nothing is amiss, ten times as fast as one by one. Else raises an error."""
    last = json.loads(data.strip().rpartition(b"\n")[2])
    job = _job_of(last)
    names = _accuracies(last, json.loads(job["test_envs"]))
    records = _decoder(names).decode_lines(data)
    # The columns are step, the accuracies, bad_images and schema_version.
    figures = (figure for record in records for figure in msgspec.structs.astuple(record)[1:])
    values = np.fromiter(figures, np.float64).reshape(len(records), -1)
    if not (
        all(record.args == records[0].args for record in records)
        and data.count(b'_acc"') == len(records) * len(names)  # no record has others
        and np.isfinite(values).all()
        and values[-1, 0] <= np.iinfo(np.int32).max
        and (np.diff(values[:, 0]) > 0).all()
        and (values[:, -1] == SCHEMA_VERSION).all()
    ):
        raise ValueError("something is amiss")
    return {**job, "bad_images": int(values[:, -2].max())}, Figures(("step", *names), values[:, :-2])


@cache
def _decoder(accuracies: tuple[str, ...]) -> msgspec.json.Decoder:
    """Reads of records only what the tables need; `args` as they are written."""
    fields: list[Any] = [
        ("args", msgspec.Raw),
        ("step", int),
        *((name, float) for name in accuracies),
        ("bad_images", int, 0),
        ("schema_version", int, SCHEMA_VERSION),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Record", fields, gc=False))


def _one_by_one(records: Sequence[Mapping[str, Any]], problems: list[str]) -> tuple[dict[str, Any], Figures]:
    """What those of a job's records tell that the tables can use, all of the last one's run.

    A record that lacks an accuracy that others have has NaN for it. What is left out is added to `problems`.
    """
    job: dict[str, Any] = {}
    rows: list[dict[str, float]] = []
    bad_images = 0
    reason = ""
    for record in reversed(records):
        try:
            of_record = _job_of(record)
            if job and any(of_record[name] != job[name] for name in RUN_KEYS):
                raise ValueError("it is of another run than the last record")
            names = _accuracies(record, json.loads(of_record["test_envs"]))
            row = {"step": float(np.int32(record["step"]))} | {name: float(record[name]) for name in names}
            if not all(map(math.isfinite, row.values())):
                raise ValueError("an accuracy is no finite number")
            bad_images = max(bad_images, int(record.get("bad_images", 0)))
        except UNUSABLE as error:
            reason = f"step {record['step']} is left out: {error!r}"
            continue
        job = job or of_record
        rows.insert(0, row)
    if left_out := len(records) - len(rows):
        problems.append(reason + (f", and {left_out - 1} others likewise" if left_out > 1 else ""))
    form = tuple(dict.fromkeys(["step", *(name for row in rows for name in row)]))
    values = np.array([[row.get(name, np.nan) for name in form] for row in rows], dtype=np.float64)
    return {**job, "bad_images": bad_images}, Figures(form, values.reshape(len(rows), len(form)))


def _job_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record tells of its job. Raises one of UNUSABLE where it can't."""
    args, hparams, names = record["args"], record.get("hparams"), record.get("environments")
    for name in ("dataset", "algorithm"):
        if not isinstance(args[name], str):
            raise TypeError(f"{name} is {args[name]!r}")
        args[name].encode()  # raises where it is no text
    told = {"task": TASKS[0], **args}  # DomainBed knew no other in 2020, and did not tell
    settings = ", ".join(f"{name} {told.get(name)}" for name in ("steps", "hparams", "holdout_fraction", "task"))
    if args.get("clean_evaluation"):
        settings += ", clean_evaluation"
    if (precision := args.get("precision", PRECISIONS[0])) != PRECISIONS[0]:
        settings += f", precision {precision}"
    settings.encode()
    return {
        "dataset": args["dataset"],
        "algorithm": args["algorithm"],
        "test_envs": json.dumps(sorted(int(env) for env in args["test_envs"])),
        "trial_seed": _in_64_bits(args["trial_seed"]),
        "hparams_seed": _in_64_bits(args["hparams_seed"]),
        "steps": float(steps) if isinstance(steps := args.get("steps"), int) else np.nan,
        "settings": settings,
        "environments": json.dumps([str(name) for name in names] if isinstance(names, list) else []),
        "hparams": json.dumps(hparams if isinstance(hparams, dict) else {}),
    }


def _in_64_bits(number: Any) -> int:
    return int(np.int64(int(number)))  # raises OverflowError


def _accuracies(record: Mapping[str, Any], test_envs: Sequence[int]) -> tuple[str, ...]:
    """The names of a record's accuracies. Raises ValueError where there is none on its test environments."""
    names = tuple(filter(ACCURACY.fullmatch, record))
    if not test_envs or any(f"env{env}_{part}_acc" not in names for env in test_envs for part in ("in", "out")):
        raise ValueError(f"no accuracy on its test environments {tuple(test_envs)}")
    return names
