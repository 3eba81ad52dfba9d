"""A sweep's folder -> its records and its jobs, as tables."""

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from domainbed.datasets import DATASETS
from domainbed.errors import UsageError
from domainbed.model_selection import CLASS_NAMES, PLAIN, choose
from domainbed.records import RESULTS_FILE, RUN_KEYS, read_job
from domainbed.reporting.cells import AVERAGE, RANK
from domainbed.reporting.folders import scan_folders
from domainbed.reporting.layout import AVERAGES
from domainbed.reporting.reading import Part, read_part
from domainbed.reporting.record_cache import (
    MANY,
    Signature,
    load_parts,
    load_snapshot,
    read,
    save_snapshot,
    state_of,
    write_part,
)
from domainbed.reporting.requested import runs_of

LOT = 1000  # folders that are parsed, and kept, together
RESERVED = {AVERAGE, RANK, AVERAGES}  # what the tables call their own


@dataclass(frozen=True)
class Sweep:
    """What the job folders of a sweep tell.

    Attributes:
        folder: the sweep's.
        jobs: a row a folder with records, which is its index: the columns of records.RUN, `done`, `environments`,
            `n_environments`, `steps` (how many updates it was asked for; NaN where it does not tell), `settings`
            (other arguments on which the result depends, as text) and `hparams` (JSON).
        runs: a row a run that was asked for, or is there: the columns of records.RUN, `state` (a JobState) and `folder`
            (None where there are no records).
        is_remembered: whether the folder tells what was asked for. Otherwise taken for it are, for each dataset, all
            test environments, trials and draws that any algorithm has (and all pairs for one that has a pair).
        problems: what was left out or is odd, a line each.
        state: names how the jobs' folders were (`cache.state_of`).
        load_records: makes `records`, which a large sweep does without where nothing has changed.
    """

    folder: Path
    jobs: pd.DataFrame
    runs: pd.DataFrame
    is_remembered: bool
    problems: list[str]
    state: str
    load_records: Callable[[], pd.DataFrame] = field(repr=False)

    @cached_property
    def records(self) -> pd.DataFrame:
        """A row a record: `folder`, `done`, the columns of records.RUN (`test_envs` as a tuple), `step`, `environments`
        (their names, a tuple; empty where the record has none), and every `env…_acc`."""
        return self.load_records()

    def chosen(self, selection: str) -> pd.DataFrame:
        """The record that a selection method chooses from each run (`model_selection.choose`).

        What our own methods choose is kept with a large sweep: in the same state, they choose the same.
        """
        is_kept = selection in CLASS_NAMES.values() and len(self.jobs) >= MANY
        table = load_snapshot(self.folder, self.state, selection) if is_kept else None
        if table is not None:
            return table.to_pandas().astype(PLAIN)
        chosen = choose(selection, self.records)
        if is_kept:
            save_snapshot(self.folder, self.state, selection, pa.Table.from_pandas(chosen, preserve_index=False))
        return chosen

    def hparams(self, folders: Iterable[str]) -> pd.DataFrame:
        """The hyperparameters of these jobs: a row a folder, which is the index, a column a hyperparameter."""
        folders = list(folders)
        return pd.DataFrame([json.loads(str(self.jobs.at[f, "hparams"])) for f in folders], index=folders)

    def figures(self, folders: Iterable[str]) -> pd.DataFrame:
        """Every figure that these jobs recorded: `folder`, `step`, and a column a figure (`loss`, `penalty`, …)."""
        rows = []
        for folder in folders:
            for record in read_job(self.folder / folder)[0]:
                figures = {
                    k: v for k, v in record.items() if isinstance(v, float) or (type(v) is int and v.bit_length() < 64)
                }
                rows.append({**figures, "folder": folder})
        return pd.DataFrame(rows)


def load_sweep(input_dir: str) -> Sweep:
    """Read a sweep's folder, of which only what has changed since the last time is parsed.

    Raises:
        UsageError: there is no such folder, or no record in it.
    """
    folder = Path(input_dir)
    if not folder.is_dir():
        raise UsageError(f"--input_dir {input_dir!r} is not a folder")
    signatures, done, problems = scan_folders(folder)
    if not signatures:
        raise _no_records(input_dir, problems)
    state = state_of(signatures, done)
    parts: list[Part] = []
    table = load_snapshot(folder, state, "jobs")
    if table is None:
        parts = _parts(folder, signatures)
        table = pa.concat_tables([part.jobs for part in parts])
        if table.num_rows >= MANY:
            save_snapshot(folder, state, "jobs", table)
    jobs = _categorical(table.to_pandas(), done)
    problems += sorted(
        f"{folder / name / RESULTS_FILE}: {problem}"
        for name, told in zip(jobs["folder"], jobs["problems"], strict=True)
        if told != "[]"
        for problem in json.loads(told)
    )
    jobs = jobs[jobs["n_records"] > 0]
    misfits = _misfits(jobs)
    problems += [f"{folder / name / RESULTS_FILE}: {why}; left out" for name, why in misfits.items()]
    jobs = jobs[~jobs["folder"].isin(list(misfits))]
    stale = _stale(jobs)
    problems += _oddities(jobs, folder, stale)
    if jobs.empty:
        raise _no_records(input_dir, problems)
    jobs = jobs[~jobs["folder"].isin(stale)]
    jobs = jobs.set_index("folder")[
        [*RUN_KEYS, "done", "environments", "n_environments", "steps", "settings", "hparams"]
    ]
    runs, is_remembered = runs_of(folder, jobs, problems.append)

    def load_records() -> pd.DataFrame:
        records = _joined(parts or _parts(folder, signatures), done)
        parts.clear()  # which are as large
        left_out = [*stale, *misfits]
        return records[~records["folder"].isin(left_out)].reset_index(drop=True) if left_out else records

    return Sweep(folder, jobs, runs, is_remembered, problems, state, load_records)


def _parts(folder: Path, signatures: Mapping[str, Signature]) -> list[Part]:
    """All jobs in parts, those that were kept and those that are read anew."""
    parts = load_parts(folder, signatures)
    known = {name for part in parts for name in part.jobs["folder"].to_pylist()}
    return parts + _read_new(folder, [name for name in signatures if name not in known])


def _no_records(input_dir: str, problems: Sequence[str]) -> UsageError:
    which = f"; {problems[0]}" if problems else ""
    return UsageError(f"--input_dir {input_dir!r} holds no records in folder/{RESULTS_FILE}{which}")


def _read_new(folder: Path, names: Sequence[str]) -> list[Part]:
    """Parse job folders, by several processes where there are many, and keep what was read."""
    lots = [names[i : i + LOT] for i in range(0, len(names), LOT)]
    # Processes are worth their start only for a large sweep; twice the cores, for they wait for the disk, too.
    parts_or_files = Parallel(2 * cpu_count() if len(lots) > 2 else 1, return_as="generator")(
        delayed(_read_and_keep)(folder, lot, len(names) >= MANY) for lot in lots
    )
    parts = []
    with tqdm(total=len(names), desc="reading", unit="job", disable=None, leave=False) as bar:
        for lot, part in zip(lots, parts_or_files, strict=True):
            kept_part = read(part) if isinstance(part, Path) else part
            parts.append(kept_part or read_part(folder, lot))
            bar.update(len(lot))
    return parts


def _read_and_keep(folder: Path, names: Sequence[str], shall_be_kept: bool) -> Part | Path:
    """A part, or the file in which it is kept, which is less to hand from process to process."""
    part = read_part(folder, names)
    return (shall_be_kept and write_part(folder, part)) or part


def _categorical(jobs: pd.DataFrame, done: Container[str]) -> pd.DataFrame:
    """The jobs of parts, with `done`; what many have in common is categorical, environments are in tuples."""
    for name in ("test_envs", "environments"):
        texts = pd.Categorical(jobs[name])
        values = pd.Index([tuple(json.loads(text)) for text in texts.categories], tupleize_cols=False)
        jobs[name] = pd.Categorical.from_codes(texts.codes, values)
    for name in ("dataset", "algorithm"):
        jobs[name] = pd.Categorical(jobs[name])
    return jobs.assign(done=[name in done for name in jobs["folder"]])


def _joined(parts: Sequence[Part], done: Container[str]) -> pd.DataFrame:
    """All parts' records, as in Sweep.

    Those of a dataset's runs, with one test environment and with two, lie together, so that a selection method needs no
    copy of them. What is the same for all of a job's records is categorical: a code a record.
    """
    jobs = pd.concat(
        [
            part.jobs.to_pandas().assign(part=i, start=np.cumsum([0, *part.jobs["n_records"].to_pylist()])[:-1])
            for i, part in enumerate(parts)
            if part.jobs.num_rows  # pandas makes floats of the columns of a frame without rows
        ]
    )
    jobs["n_test_envs"] = jobs["test_envs"].str.count(",")
    jobs = jobs.sort_values(["dataset", "n_test_envs", "part", "start"], ignore_index=True)
    jobs = _categorical(jobs, done)
    of_record = np.repeat(np.arange(len(jobs)), jobs["n_records"])
    columns: dict[str, Any] = {"folder": pd.Categorical.from_codes(of_record, pd.Index(jobs["folder"]))}
    for name in ("done", *RUN_KEYS, "environments"):
        columns[name] = jobs[name].take(of_record).array
    stretches = _stretches(jobs)
    figures = {name for part in parts for name in part.records.column_names}
    order = ["step", *sorted(figures - {"step"})]
    with ThreadPoolExecutor(cpu_count()) as pool:  # NumPy copies without holding Python's lock
        filled = pool.map(partial(_column, parts, stretches, len(of_record)), order)
    return pd.DataFrame(columns | dict(zip(order, filled, strict=True)), copy=False)


def _column(
    parts: Sequence[Part], stretches: Sequence[tuple[int, int, int, int]], length: int, name: str
) -> np.ndarray:
    """A column of all records, from the `stretches` of the parts; NaN where a part has none of this name."""
    column = np.empty(length, np.int32 if name == "step" else np.float64)
    of_parts = [p.records[name].to_numpy() if name in p.records.column_names else None for p in parts]
    for i, start, end, to in stretches:
        figures = of_parts[i]
        column[to : to + end - start] = np.nan if figures is None else figures[start:end]
    return column


def _stretches(jobs: pd.DataFrame) -> list[tuple[int, int, int, int]]:
    """What to copy of which part: the part's number, from which record to which, and to where."""
    stretches: list[tuple[int, int, int, int]] = []
    to = 0
    for i, start, n in zip(jobs["part"], jobs["start"], jobs["n_records"], strict=True):
        if stretches and stretches[-1][0] == i and stretches[-1][2] == start:
            stretches[-1] = (*stretches[-1][:2], start + n, stretches[-1][3])
        else:
            stretches.append((i, start, start + n, to))
        to += n
    return stretches


def _oddities(jobs: pd.DataFrame, folder: Path, stale: Sequence[str]) -> list[str]:
    """What is odd about the jobs, a line each."""
    is_short = jobs["done"] & (jobs["last_step"] < jobs["steps"] - 1)  # DomainBed may leave `steps` to the dataset
    problems = [
        f"{folder / name / RESULTS_FILE}: the job is done, but its last record is missing"
        for name in jobs.loc[is_short, "folder"]
    ]
    for column, what in (
        ("settings", "were made with different arguments"),
        ("environments", "had different environments"),
    ):
        for dataset, values in jobs.groupby("dataset", observed=True)[column].unique().items():
            told = sorted(value if isinstance(value, str) else " ".join(value) for value in values if len(value))
            if len(told) > 1:
                problems.append(f"{dataset}: its runs {what} ({'; '.join(told)})")
    if with_bad := (jobs["bad_images"] > 0).sum():
        problems.append(f"{with_bad} jobs met broken images, in whose place others stood (--on_bad_image skip)")
    if stale:
        problems.append(
            f"{len(stale)} folders hold a run that another folder holds too ({', '.join(stale[:5])}"
            f"{', …' if len(stale) > 5 else ''}); of each run the finished folder counts, then the one written last"
        )
    return problems


def _misfits(jobs: pd.DataFrame) -> dict[str, str]:
    """The folders whose records can't stand in a table with those of the other jobs on their dataset, and why."""
    misfits: dict[str, str] = {}
    for dataset in map(str, jobs["dataset"].unique()):
        of_dataset = jobs[jobs["dataset"] == dataset]
        if dataset in RESERVED:
            misfits |= dict.fromkeys(of_dataset["folder"], f"a dataset can't be called {dataset} in the tables")
            continue
        # As many as the dataset has, or else as most jobs have.
        known = DATASETS[dataset].ENVIRONMENTS if dataset in DATASETS else []
        n = len(known) or of_dataset["n_environments"].mode().max()
        for folder, its_n, names in zip(
            *(of_dataset[c] for c in ("folder", "n_environments", "environments")), strict=True
        ):
            if its_n != n:
                misfits[folder] = f"it has {its_n} environments, {dataset} has {n}"
            elif names and len(names) != n:
                misfits[folder] = f"it names {len(names)} environments, and has {n}"
    return misfits


def _stale(jobs: pd.DataFrame) -> list[str]:
    """The folders whose run another folder holds as well, which is finished, or was written later."""
    ranked = jobs[jobs.duplicated(RUN_KEYS, keep=False)].sort_values(["done", "written", "folder"])
    return ranked.loc[ranked.duplicated(RUN_KEYS, keep="last"), "folder"].tolist()
