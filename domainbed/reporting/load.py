"""A sweep's folder, loaded into DataFrames of its runs, jobs and records."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa
from joblib import Parallel, cpu_count, delayed

from domainbed.errors import UsageError, printable
from domainbed.model_selection import CLASS_NAMES, OBJECT_COLUMNS, select_records
from domainbed.records import RESULTS_FILE, RUN_KEYS, read_job
from domainbed.reporting.checks import describe_inconsistencies, find_duplicates, find_incompatible
from domainbed.reporting.folders import scan_folders
from domainbed.reporting.frames import jobs_frame, records_frame
from domainbed.reporting.reading import SweepPart, read_part
from domainbed.reporting.record_cache import (
    MIN_JOBS,
    Signature,
    load_part,
    load_parts,
    load_snapshot,
    save_snapshot,
    state_of,
    write_part,
)
from domainbed.reporting.requested import requested_runs
from domainbed.terminal import ProgressBar

BATCH = 1000  # folders that are parsed, and cached, together


@dataclass(frozen=True)
class Sweep:
    """A sweep, as loaded from its folder.

    Attributes:
        folder: the sweep's folder.
        jobs: one row per folder with records, indexed by folder: the columns of records.RUN_KEYS, `done`, `pruned`,
            `environments`, `n_environments`, `steps` (the requested number of updates; NaN if unknown), `settings`
            (other arguments that affect the result, as text), `backbone` (such as "frozen resnet50"; "" if it is
            fine-tuned), `eval` (which accuracies the records have), `ensemble` (the name of the method that combined
            other jobs, such as "EoA"; "" if the job was trained) and `hparams` (JSON).
        runs: one row per run that was requested or has records: the columns of records.RUN_KEYS, `state` (a JobState)
            and `folder` (None without records).
        has_launch_log: whether the folder says which runs were requested. If not, all test environments, trials and
            hyperparameter draws of any algorithm on a dataset count as requested for all of them (and all pairs of test
            environments for an algorithm with any pair).
        rules: the rules by which runs were pruned, as text.
        problems: warnings, one line each.
        state: identifies the state of the job folders (`record_cache.state_of`).
        load_records: returns `records`; not called for a large sweep that has not changed.
    """

    folder: Path
    jobs: pd.DataFrame
    runs: pd.DataFrame
    has_launch_log: bool
    rules: list[str]
    problems: list[str]
    state: str
    load_records: Callable[[], pd.DataFrame] = field(repr=False)

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row per record: `folder`, `done`, `pruned`, the columns of records.RUN_KEYS (`test_envs` as a tuple),
        `step`, `environments` (a tuple of names, empty if unknown), and every `env…_acc`."""
        return self.load_records()

    def select(self, selection: str) -> pd.DataFrame:
        """Return the record that a selection method selects from each run (`model_selection.select_records`).

        The results of the built-in methods are cached for a large sweep, until any of its jobs changes.
        """
        is_cached = selection in CLASS_NAMES.values() and len(self.jobs) >= MIN_JOBS
        table = load_snapshot(self.folder, self.state, selection) if is_cached else None
        if table is not None:
            return table.to_pandas().astype(OBJECT_COLUMNS)
        selected = select_records(selection, self.records)
        if is_cached:
            save_snapshot(self.folder, self.state, selection, pa.Table.from_pandas(selected, preserve_index=False))
        return selected

    def load_hparams(self, folders: Iterable[str]) -> pd.DataFrame:
        """Return the hyperparameters of these jobs: one row per folder, one column per hyperparameter."""
        folders = list(folders)
        return pd.DataFrame([json.loads(str(self.jobs.at[f, "hparams"])) for f in folders], index=folders)

    def load_metrics(self, folders: Iterable[str]) -> pd.DataFrame:
        """Return all numbers that these jobs recorded, one row per record: `folder`, `step`, `loss`, `penalty`, …"""
        rows = []
        for folder in folders:
            for record in read_job(self.folder / folder)[0]:
                numbers = {
                    k if k.isprintable() else printable(k): v
                    for k, v in record.items()
                    if isinstance(v, float) or (type(v) is int and v.bit_length() < 64)
                }
                rows.append({**numbers, "folder": folder})
        return pd.DataFrame(rows)


def load_sweep(input_dir: str) -> Sweep:
    """Load a sweep's folder; only jobs that have changed since the last time are parsed.

    Raises:
        UsageError: the folder does not exist or contains no records.
    """
    folder = Path(input_dir)
    if not folder.is_dir():
        raise UsageError(f"--input_dir {input_dir!r} is not a folder")
    scan = scan_folders(folder)
    problems = scan.problems
    if not scan.signatures:
        raise _no_records(input_dir, problems)
    state = state_of(scan.signatures, scan.done, scan.pruned)
    parts: list[SweepPart] = []
    table = load_snapshot(folder, state, "jobs")
    if table is None:
        parts = _read_parts(folder, scan.signatures)
        table = pa.concat_tables([part.jobs for part in parts])
        if table.num_rows >= MIN_JOBS:
            save_snapshot(folder, state, "jobs", table)
    jobs = jobs_frame(table.to_pandas(), scan.done, scan.pruned)
    flawed = jobs.loc[jobs["problems"] != "[]", ["folder", "problems"]].sort_values("folder")
    for name, texts in zip(flawed["folder"], flawed["problems"], strict=True):
        problems += [f"{folder / name / RESULTS_FILE}: {problem}" for problem in json.loads(texts)]
    jobs = jobs[jobs["n_records"] > 0]
    incompatible = find_incompatible(jobs)
    problems += [f"{folder / name / RESULTS_FILE}: {reason}; skipped" for name, reason in incompatible.items()]
    jobs = jobs[~jobs["folder"].isin(list(incompatible))]
    duplicates = find_duplicates(jobs)
    problems += describe_inconsistencies(jobs, folder, duplicates)
    if jobs.empty:
        raise _no_records(input_dir, problems)
    jobs = jobs[~jobs["folder"].isin(duplicates)].set_index("folder")
    jobs = jobs[
        [
            *RUN_KEYS,
            "done",
            "pruned",
            "environments",
            "n_environments",
            "steps",
            "checkpoint_freq",
            "settings",
            "backbone",
            "eval",
            "ensemble",
            "hparams",
        ]
    ]
    runs, has_launch_log = requested_runs(folder, jobs, problems.append)

    def load_records() -> pd.DataFrame:
        records = records_frame(parts or _read_parts(folder, scan.signatures), scan.done, scan.pruned)
        parts.clear()  # to free their memory
        skipped = [*duplicates, *incompatible]
        return records[~records["folder"].isin(skipped)].reset_index(drop=True) if skipped else records

    rules = sorted(set(filter(None, scan.pruned.values())))
    return Sweep(folder, jobs, runs, has_launch_log, rules, [*map(printable, problems)], state, load_records)


def _no_records(input_dir: str, problems: Sequence[str]) -> UsageError:
    reason = f"; {problems[0]}" if problems else ""
    if not problems and (Path(input_dir) / RESULTS_FILE).exists():
        reason = "; it is the folder of a job: pass the folder that contains it"
    return UsageError(f"--input_dir {input_dir!r} has no job folders with usable records ({RESULTS_FILE}){reason}")


def _read_parts(folder: Path, signatures: Mapping[str, Signature]) -> list[SweepPart]:
    """Return all jobs in parts: those in the cache, and the others parsed."""
    parts = load_parts(folder, signatures)
    cached = {name for part in parts for name in part.jobs["folder"].to_pylist()}
    return parts + _parse_jobs(folder, [name for name in signatures if name not in cached])


def _parse_jobs(folder: Path, names: Sequence[str]) -> list[SweepPart]:
    """Parse job folders, with several processes if there are many, and cache the result."""
    batches = [names[i : i + BATCH] for i in range(0, len(names), BATCH)]
    # Processes pay off only for a large sweep; as they mostly wait for the disk, there are two per core.
    parts_or_paths = Parallel(2 * cpu_count() if len(batches) > 2 else 1, return_as="generator")(
        delayed(_parse_batch)(folder, batch, len(names) >= MIN_JOBS) for batch in batches
    )
    parts = []
    with ProgressBar(total=len(names), desc="reading", unit="job", leave=False) as bar:
        for batch, part_or_path in zip(batches, parts_or_paths, strict=True):
            part = load_part(part_or_path) if isinstance(part_or_path, Path) else part_or_path
            parts.append(part or read_part(folder, batch))
            bar.update(len(batch))
    return parts


def _parse_batch(folder: Path, names: Sequence[str], is_cached: bool) -> SweepPart | Path:
    """Return a part or, cheaper to pass between processes, the path of its file in the cache."""
    part = read_part(folder, names)
    return (write_part(folder, part) if is_cached else None) or part
