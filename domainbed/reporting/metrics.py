"""The metrics in records, such as `loss`, which tables do not need."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from domainbed.errors import printable
from domainbed.files import read_regular
from domainbed.records import MAX_RESULTS_SIZE, RESULTS_FILE, parse_records
from domainbed.reporting.reading import ACCURACY
from domainbed.terminal import ProgressBar

NO_METRICS = {"step", "epoch", "bad_images", "schema_version"}
MAX_METRICS = 40  # with different names, of one dataset


def load_metric_columns(
    sweep_dir: Path, folders: Sequence[str], first: np.ndarray, steps: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """Load the metrics of some records.

    Args:
        sweep_dir: the sweep's folder.
        folders: the jobs' folders, relative to it.
        first: the position in `steps` of the first record of each job, and the number of records.
        steps: the step of each record.

    Returns:
        An array with a value per record for each metric (NaN where it was not recorded), and the number of metrics that
        are omitted, because there are more than MAX_METRICS.
    """
    columns: dict[str, np.ndarray] = {}
    omitted: set[str] = set()
    for i, folder in enumerate(ProgressBar(folders, "reading metrics", unit=" jobs", leave=False)):
        all_records = _read_records(sweep_dir / folder)
        by_step = {step: record for record in all_records if type(step := record.get("step")) is int}
        records = [by_step.get(step, {}) for step in steps[first[i] : first[i + 1]].tolist()]
        for name in dict.fromkeys(name for record in records for name in record):
            if not _is_metric(name):
                continue
            values = [_to_float(record.get(name)) for record in records]
            if all(value != value for value in values):
                continue
            title = printable(name)
            if title not in columns and len(columns) == MAX_METRICS:
                omitted.add(title)
                continue
            columns.setdefault(title, np.full(len(steps), np.nan))[first[i] : first[i + 1]] = values
    return columns, len(omitted)


def _read_records(folder: Path) -> Sequence[Mapping[str, Any]]:
    """Return the records of a job; empty if they cannot be read."""
    try:
        data = read_regular(folder / RESULTS_FILE, MAX_RESULTS_SIZE)
    except OSError:  # deleted in the meantime
        return []
    try:
        return _decoder.decode_lines(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # for example NaN, which is not JSON, or an incomplete line
        return parse_records(data)[0]


_decoder = msgspec.json.Decoder(dict[str, Any])


@cache
def _is_metric(name: str) -> bool:
    return name not in NO_METRICS and not ACCURACY.fullmatch(name)


def _to_float(value: Any) -> float:
    """Return a number as a float, and NaN for anything else."""
    if type(value) is float:
        return value
    return float(value) if type(value) is int and value.bit_length() < 64 else np.nan
