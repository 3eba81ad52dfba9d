"""The one schema between a job and a table: a folder with one JSON object per evaluation and, at the end, `done`.

Each record has `step`, `epoch`, `env{i}_in_acc` and `env{i}_out_acc`, the update's figures averaged since the last
evaluation, `step_time` (seconds), `mem_gb`, `args` and `hparams`. Sweeps written by DomainBed have this form, too. Ours
add `environments` (their names) and `bad_images` (how many broken files were replaced so far).
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from domainbed.errors import UsageError
from domainbed.files import written_whole

RESULTS_FILE = "results.jsonl"
DONE_FILE = "done"
CHECKPOINT_FILE = "checkpoint.pt"  # of training that is not done, written by engine/checkpoint.py

PART = 500  # folders that are read at once

# What tells one run of a sweep from another.
RUN = ["dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"]


def append_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Add one evaluation to a job's records, for good: a power cut after this does not lose it."""
    with open(folder / RESULTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")
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
    with written_whole(folder / DONE_FILE) as file:
        file.write(b"done")


def is_done(folder: Path) -> bool:
    """Whether a job is finished."""
    return (folder / DONE_FILE).exists()


def read_job(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A job's records, and what could not be read, a line each.

    A line that is no record is left out (a job that was killed may have torn its last). Of a step that was recorded
    twice the later record counts.
    """
    path = folder / RESULTS_FILE
    by_step: dict[int, dict[str, Any]] = {}
    problems = []
    repeated = 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    decode = _Decoder()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = decode(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            problems.append(f"{path}:{number}: not a whole record; left out")
            continue
        repeated += step in by_step
        by_step[step] = record
    if repeated:
        problems.append(f"{path}: {repeated} steps recorded more than once; the later record counts")
    return list(by_step.values()), problems


class _Decoder:
    """json.loads for the lines of one job, which mostly have the same arguments: those are read once.

    They are most of a record. Records that have them in common share one object.
    """

    def __init__(self) -> None:
        self._common: dict[str, Any] = {}
        self._texts: list[str] = []

    def __call__(self, line: str) -> Any:
        rest = line
        for text in self._texts:
            before, found, after = rest.partition(text)
            if not found:
                break
            rest = before + after
        else:
            if self._texts:
                return json.loads(rest) | self._common
        record = json.loads(line)
        if isinstance(record, dict):
            self._learn(line, record)
        return record | self._common if self._common else record

    def _learn(self, line: str, record: dict[str, Any]) -> None:
        """Find what the next lines may have in common with this one."""
        rest, common, texts = line, {}, []
        for key in ("args", "environments", "hparams"):
            start = rest.find(f'"{key}": ')
            if start >= 0:
                common[key], end = json.JSONDecoder().raw_decode(rest, start + len(key) + 4)
                texts.append(rest[start:end] + ", ")
                rest = rest.replace(texts[-1], "", 1)
        try:
            is_right = json.loads(rest) | common == record
        except ValueError:
            is_right = False
        self._common, self._texts = (common, texts) if is_right else ({}, [])


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


def load_records(input_dir: str) -> tuple[pd.DataFrame, list[str]]:
    """The records of all jobs in a sweep's folder.

    Returns:
        A row a record: `folder`, `done`, the columns of RUN (`test_envs` as a tuple), `step`, `environments` (their
        names, a tuple; empty where the record has none), and every `env…_acc`; and a list of what was left out or is
        odd, a line each.

    Raises:
        UsageError: there is no such folder, or no record in it.
    """
    if not Path(input_dir).is_dir():
        raise UsageError(f"--input_dir {input_dir!r} is not a folder")
    with os.scandir(input_dir) as entries:
        folders = sorted(Path(e.path) for e in entries if e.is_dir())
    # Processes of its own are worth their start only for a large sweep.
    parts = [folders[i : i + PART] for i in range(0, len(folders), PART)]
    read = Parallel(cpu_count() if len(parts) > 3 else 1, return_as="generator")(delayed(_read)(part) for part in parts)
    frames, problems = [], []
    with tqdm(total=len(folders), desc="reading", unit="job", disable=None, leave=False) as bar:
        for part, (frame, of_part) in zip(parts, read, strict=True):
            frames.append(frame)
            problems += of_part
            bar.update(len(part))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if frame.empty:
        which = f"; {problems[0]}" if problems else ""
        raise UsageError(f"--input_dir {input_dir!r} holds no records in folder/{RESULTS_FILE}{which}")
    problems += _mixtures(frame)
    if with_bad := frame[frame["bad_images"] > 0]["folder"].nunique():
        problems.append(f"{with_bad} jobs met broken images, in whose place others stood (--on_bad_image skip)")
    frame, twice = _one_folder_a_run(frame)
    return frame.drop(columns=["written", "settings", "bad_images"]), problems + twice


def _read(folders: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
    """The records in some folders, a row each, and what was left out or is odd."""
    rows, problems = [], []
    for folder in folders:
        try:
            records, unread = read_job(folder)
            written = (folder / RESULTS_FILE).stat().st_mtime
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{folder / RESULTS_FILE}: {error.strerror}; left out")
            continue
        problems += unread
        job = {"folder": folder.name, "done": is_done(folder), "written": written}
        row_of = _Rows()
        for record in records:
            try:
                rows.append({**job, **row_of(record)})
            except (KeyError, TypeError, ValueError) as error:
                problems.append(f"{folder / RESULTS_FILE}: step {record['step']} is left out: {error!r}")
        if job["done"] and records and _is_short(records):
            problems.append(f"{folder / RESULTS_FILE}: the job is done, but its last record is missing")
    return pd.DataFrame(rows), problems


class _Rows:
    """What the tables need of one job's records, mostly of the same arguments and the same names."""

    def __init__(self) -> None:
        self._args: Any = None
        self._run: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()
        self._accuracies: list[str] = []

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One record's row. Raises KeyError, TypeError or ValueError where the record is not of our form."""
        if record["args"] is not self._args:
            self._run = _run_of(record["args"]) | {"environments": tuple(map(str, record.get("environments", ())))}
            self._args = record["args"]
        if tuple(record) != self._names:
            self._names = tuple(record)
            self._accuracies = [name for name in record if name.startswith("env") and name.endswith("_acc")]
        accuracies = {name: float(record[name]) for name in self._accuracies}
        test_envs = self._run["test_envs"]
        if not test_envs or any(
            f"env{env}_{part}_acc" not in accuracies for env in test_envs for part in ("in", "out")
        ):
            raise ValueError(f"no accuracy on its test environments {test_envs}")
        return {
            **self._run,
            "step": int(record["step"]),
            "bad_images": int(record.get("bad_images", 0)),
            **accuracies,
        }


def _run_of(args: Mapping[str, Any]) -> dict[str, Any]:
    """What a job's arguments tell the tables. Raises KeyError, TypeError or ValueError where they can't."""
    for name in ("dataset", "algorithm"):
        if not isinstance(args[name], str):
            raise TypeError(f"{name} is {args[name]!r}")
    return {
        "dataset": args["dataset"],
        "algorithm": args["algorithm"],
        "test_envs": tuple(sorted(int(env) for env in args["test_envs"])),
        "trial_seed": int(args["trial_seed"]),
        "hparams_seed": int(args["hparams_seed"]),
        "settings": ", ".join(f"{name} {args.get(name)}" for name in ("steps", "hparams", "holdout_fraction", "task"))
        + (", clean_evaluation" if args.get("clean_evaluation") else ""),
    }


def _is_short(records: list[dict[str, Any]]) -> bool:
    """Whether the record of the last step is missing (DomainBed may leave `steps` to the dataset)."""
    try:
        return max(r["step"] for r in records) < records[-1]["args"]["steps"] - 1
    except (KeyError, TypeError):
        return False


def _mixtures(frame: pd.DataFrame) -> list[str]:
    """A line for each dataset whose runs were not all made with the same settings, and so don't compare."""
    settings = frame.groupby("dataset")["settings"].unique()
    problems = [
        f"{dataset}: its runs were made with different arguments ({'; '.join(sorted(of_dataset))})"
        for dataset, of_dataset in settings.items()
        if len(of_dataset) > 1
    ]
    named = frame[frame["environments"].map(len) > 0].groupby("dataset")["environments"].unique()
    return problems + [
        f"{dataset}: its runs had different environments ({'; '.join(' '.join(names) for names in of_dataset)})"
        for dataset, of_dataset in named.items()
        if len(of_dataset) > 1
    ]


def _one_folder_a_run(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Where several folders hold the same run, the finished one, then the one that was written last."""
    folders = frame.drop_duplicates("folder").sort_values(["done", "written", "folder"])
    stale = folders[folders.duplicated(RUN, keep="last")]
    if stale.empty:
        return frame, []
    problem = (
        f"{len(stale)} folders hold a run that another folder holds too ({', '.join(stale['folder'].head(3))}, …); "
        "of each run the finished folder counts, then the one written last"
    )
    return frame[~frame["folder"].isin(stale["folder"])].reset_index(drop=True), [problem]
