"""The one schema between a job and a table: a folder with one JSON object per evaluation and, at the end, `done`.

Each record has `step`, `epoch`, `env{i}_in_acc` and `env{i}_out_acc`, the update's figures averaged since the last
evaluation, `step_time` (seconds), `mem_gb`, `args` and `hparams`. Sweeps written by DomainBed have this form, too.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from domainbed.errors import UsageError

RESULTS_FILE = "results.jsonl"
DONE_FILE = "done"

# What tells one run of a sweep from another.
RUN = ["dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"]


def append_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Add one evaluation to a job's records."""
    with open(folder / RESULTS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, sort_keys=True) + "\n")


def mark_done(folder: Path) -> None:
    """Say that a job is finished; written last, when everything else is on disk."""
    (folder / DONE_FILE).write_text("done", encoding="utf-8")


def is_done(folder: Path) -> bool:
    """Whether a job is finished."""
    return (folder / DONE_FILE).exists()


def read_job(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A job's records, and what could not be read, a line each.

    A line that is not JSON is left out (a job that was killed may have torn its last). Of a step that was recorded
    twice the later record counts.
    """
    path = folder / RESULTS_FILE
    by_step: dict[int, dict[str, Any]] = {}
    problems = []
    repeated = 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            problems.append(f"{path}:{number}: not a whole record; left out")
            continue
        repeated += step in by_step
        by_step[step] = record
    if repeated:
        problems.append(f"{path}: {repeated} steps recorded more than once; the later record counts")
    return list(by_step.values()), problems


def load_records(input_dir: str) -> tuple[pd.DataFrame, list[str]]:
    """The records of all jobs in a sweep's folder.

    Returns:
        A row a record: `folder`, `done`, the columns of RUN (`test_envs` as a tuple), `step`, and every `env…_acc`;
        and a list of what was left out or is odd, a line each.

    Raises:
        UsageError: there is no such folder, or no record in it.
    """
    if not Path(input_dir).is_dir():
        raise UsageError(f"--input_dir {input_dir!r} is not a folder")
    rows, problems = [], []
    with os.scandir(input_dir) as entries:
        folders = sorted(Path(e.path) for e in entries if e.is_dir())
    for folder in tqdm(folders, desc="reading", unit="job", disable=None, leave=False):
        if not (folder / RESULTS_FILE).is_file():
            continue
        records, unread = read_job(folder)
        problems += unread
        written = (folder / RESULTS_FILE).stat().st_mtime
        job = {"folder": folder.name, "done": is_done(folder), "written": written}
        for record in records:
            try:
                rows.append({**job, **_row(record)})
            except (KeyError, TypeError) as error:
                problems.append(f"{folder / RESULTS_FILE}: step {record['step']} is no record of ours ({error!r})")
    if not rows:
        raise UsageError(f"--input_dir {input_dir!r} holds no records (no folder with a {RESULTS_FILE} in it)")
    frame, twice = _latest_runs(pd.DataFrame(rows))
    return frame, problems + twice


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    args = record["args"]
    return {
        "dataset": args["dataset"],
        "algorithm": args["algorithm"],
        "test_envs": tuple(sorted(args["test_envs"])),
        "trial_seed": args["trial_seed"],
        "hparams_seed": args["hparams_seed"],
        "step": record["step"],
        **{name: value for name, value in record.items() if name.startswith("env") and name.endswith("_acc")},
    }


def _latest_runs(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Where two folders hold the same run, the one that was written last, and a line about each such run."""
    folders = frame.drop_duplicates("folder").sort_values(["written", "folder"])
    stale = folders[folders.duplicated(RUN, keep="last")]
    problems = []
    for _, run in stale.iterrows():
        what = ", ".join(f"{name} {run[name]}" for name in RUN)
        problems.append(f"{run['folder']}: the same run ({what}) was written to another folder later, which counts")
    return frame[~frame["folder"].isin(stale["folder"])].drop(columns="written").reset_index(drop=True), problems
