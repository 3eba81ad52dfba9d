"""Conversion of a sweep's parts to DataFrames."""

import json
import re
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count

from domainbed.records import RUN_KEYS
from domainbed.reporting.reading import SweepPart

# Text that a spreadsheet takes for a formula; numbers such as -90% (an environment) are none.
FORMULA = re.compile(r"(?![+-][\d.]+%?$)[=+@\t\r-]")


def to_csv(frame: pd.DataFrame) -> str:
    """Return a table as CSV, with a single quote before names and text that spreadsheets would run as a formula."""

    def quoted(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value

    # The dtype object preserves integers in a column with missing values.
    columns = {i: pd.Series(list(map(quoted, frame.iloc[:, i])), dtype=object) for i in range(frame.shape[1])}
    return pd.DataFrame(columns).set_axis([quoted(name) for name in frame], axis=1).to_csv(index=False)


def jobs_frame(jobs: pd.DataFrame, done: Container[str], pruned: Container[str]) -> pd.DataFrame:
    """Convert the jobs of parts.

    Adds the columns `done` and `pruned`, decodes environments to tuples, and makes repeated values categorical.
    """
    for name in ("test_envs", "environments"):
        texts = pd.Categorical(jobs[name])
        values = pd.Index([tuple(json.loads(text)) for text in texts.categories], tupleize_cols=False)
        jobs[name] = pd.Categorical.from_codes(texts.codes, values)
    for name in ("dataset", "algorithm"):
        jobs[name] = pd.Categorical(jobs[name])
    return jobs.assign(
        **{
            name: [folder in folders for folder in jobs["folder"]]
            for name, folders in (("done", done), ("pruned", pruned))
        }
    )


def records_frame(parts: Sequence[SweepPart], done: Container[str], pruned: Container[str]) -> pd.DataFrame:
    """Return the records of all parts, as in `load.Sweep.records`.

    The records of a dataset's runs with the same number of test environments are consecutive: a selection method reads
    a slice, without a copy. Columns with the same value in all records of a job are categorical.
    """
    # pandas would turn the integer columns of an empty frame into floats.
    jobs = pd.concat([part.jobs.to_pandas() for part in parts if part.jobs.num_rows])
    jobs["start"] = jobs["n_records"].cumsum() - jobs["n_records"]
    jobs["n_test_envs"] = jobs["test_envs"].str.count(",")
    jobs = jobs_frame(jobs.sort_values(["dataset", "n_test_envs", "start"], ignore_index=True), done, pruned)
    job_of_record = np.repeat(np.arange(len(jobs)), jobs["n_records"])
    offset = jobs["start"] - (jobs["n_records"].cumsum() - jobs["n_records"])
    source_rows = np.arange(len(job_of_record)) + offset.to_numpy()[job_of_record]

    def gather(name: str) -> np.ndarray:
        """Return a column of all records; NaN where a part lacks it."""
        columns = [
            part.records[name].to_numpy() if name in part.records.column_names else np.full(len(part.records), np.nan)
            for part in parts
        ]
        return np.concatenate(columns)[source_rows]

    columns: dict[str, Any] = {"folder": pd.Categorical.from_codes(job_of_record, pd.Index(jobs["folder"]))}
    for name in ("done", "pruned", *RUN_KEYS, "environments"):
        columns[name] = jobs[name].take(job_of_record).array
    accuracies = {name for part in parts for name in part.records.column_names} - {"step"}
    names = ["step", *sorted(accuracies)]
    with ThreadPoolExecutor(cpu_count()) as pool:  # NumPy releases the GIL
        columns |= dict(zip(names, pool.map(gather, names), strict=True))
    return pd.DataFrame(columns, copy=False)
