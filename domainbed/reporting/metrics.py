"""The metrics in records, such as `loss`, which tables do not need."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from joblib import Parallel, cpu_count, delayed

from domainbed.errors import printable
from domainbed.files import read_regular
from domainbed.records import ACCURACY, MAX_RESULTS_SIZE, RESULTS_FILE, parse_records
from domainbed.terminal import ProgressBar

NO_METRICS = {"step", "epoch", "bad_images", "schema_version"}
MAX_METRICS = 40  # with different names, of one dataset
BATCH = 250  # jobs that a process reads at a time


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
    batches = [range(i, min(i + BATCH, len(folders))) for i in range(0, len(folders), BATCH)]
    # Processes pay off only for a large sweep.
    parts = Parallel(cpu_count() if len(batches) > 2 else 1, return_as="generator")(
        delayed(_read_batch)(sweep_dir, [(folders[i], steps[first[i] : first[i + 1]]) for i in batch])
        for batch in batches
    )
    with ProgressBar(total=len(folders), desc="reading metrics", unit="job", leave=False) as bar:
        for batch, part in zip(batches, parts, strict=True):
            for i, metrics in zip(batch, part, strict=True):
                for name, values in metrics.items():
                    if name not in columns and len(columns) == MAX_METRICS:
                        omitted.add(name)
                        continue
                    if name not in columns:
                        columns[name] = np.full(len(steps), np.nan)
                    columns[name][first[i] : first[i + 1]] = values
            bar.update(len(batch))
    return columns, len(omitted)


def _read_batch(sweep_dir: Path, jobs: Sequence[tuple[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Return the metrics of jobs, given by their folders and the steps of their records: a value per record."""
    result = []
    for folder, steps in jobs:
        all_records = _read_records(sweep_dir / folder)
        by_step = {step: record for record in all_records if type(step := record.get("step")) is int}
        records = [by_step.get(step, {}) for step in steps.tolist()]
        metrics = {}
        for name in dict.fromkeys(name for record in records for name in record):
            if _is_metric(name):
                values = np.array([_to_float(record.get(name)) for record in records])
                if not np.isnan(values).all():
                    metrics[printable(name)] = values
        result.append(metrics)
    return result


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
