"""A sweep's folder -> its records and its jobs, as tables."""

import json
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from domainbed.datasets import DATASETS
from domainbed.errors import UsageError
from domainbed.records import RESULTS_FILE, RUN, read_job
from domainbed.reporting.cache import MANY, keep, kept, read
from domainbed.reporting.folders import look
from domainbed.reporting.reading import Part, read_part
from domainbed.reporting.runs import runs_of
from domainbed.reporting.tables import AVERAGE, RANK

LOT = 1000  # folders that are parsed, and kept, together
RESERVED = {AVERAGE, RANK, "Averages"}


@dataclass(frozen=True)
class Sweep:
    """What the job folders of a sweep tell.

    Attributes:
        folder: the sweep's.
        records: a row a record: `folder`, `done`, the columns of records.RUN (`test_envs` as a tuple), `step`,
            `environments` (their names, a tuple; empty where the record has none), and every `env…_acc`.
        jobs: a row a folder with records, which is its index: the columns of records.RUN, `done`, `environments`,
            `steps` (how many updates it was asked for; NaN where it does not tell), `settings` (other arguments on
            which the result depends, as text) and `hparams` (JSON).
        runs: a row a run that was asked for, or is there: the columns of records.RUN, `state` (a JobState) and `folder`
            (None where there are no records).
        is_remembered: whether the folder tells what was asked for. Otherwise taken for it are, for each dataset, all
            test environments, trials and draws that any algorithm has (and all pairs for one that has a pair).
        problems: what was left out or is odd, a line each.
    """

    folder: Path
    records: pd.DataFrame
    jobs: pd.DataFrame
    runs: pd.DataFrame
    is_remembered: bool
    problems: list[str]

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
    signatures, done, problems = look(folder)
    parts = kept(folder, signatures)
    known = {name for part in parts for name in part.jobs["folder"].to_pylist()}
    parts += _read_new(folder, [name for name in signatures if name not in known])
    if not parts:
        raise _no_records(input_dir, problems)
    jobs, records = _joined(parts, done)
    problems += [
        f"{folder / name / RESULTS_FILE}: {problem}"
        for name, told in zip(jobs["folder"], jobs["problems"], strict=True)
        if told != "[]"
        for problem in json.loads(told)
    ]
    jobs = jobs[jobs["n_records"] > 0]
    if jobs.empty:
        raise _no_records(input_dir, problems)
    misfits = _misfits(jobs)
    problems += [f"{folder / name / RESULTS_FILE}: {why}; left out" for name, why in misfits.items()]
    jobs = jobs[~jobs["folder"].isin(list(misfits))]
    stale = _stale(jobs)
    problems += _oddities(jobs, folder, stale)
    if jobs.empty:
        raise _no_records(input_dir, problems)
    if stale or misfits:
        records = records[~records["folder"].isin([*stale, *misfits])].reset_index(drop=True)
        jobs = jobs[~jobs["folder"].isin(stale)]
    jobs = jobs.set_index("folder")[[*RUN, "done", "environments", "steps", "settings", "hparams"]]
    runs, is_remembered = runs_of(folder, jobs, records, problems.append)
    return Sweep(folder, records, jobs, runs, is_remembered, problems)


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
    return (shall_be_kept and keep(folder, part)) or part


def _joined(parts: Sequence[Part], done: Container[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All parts' jobs, with `done`, and their records, both as in Sweep.

    The records of a dataset's runs, with one test environment and with two, lie together, so that a selection method
    needs no copy of them. What is the same for all of a job's records is categorical: a code a record.
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
    for name in ("test_envs", "environments"):
        texts = pd.Categorical(jobs[name])
        values = pd.Index([tuple(json.loads(text)) for text in texts.categories], tupleize_cols=False)
        jobs[name] = pd.Categorical.from_codes(texts.codes, values)
    for name in ("dataset", "algorithm"):
        jobs[name] = pd.Categorical(jobs[name])
    jobs["done"] = [name in done for name in jobs["folder"]]
    of_record = np.repeat(np.arange(len(jobs)), jobs["n_records"])
    columns: dict[str, Any] = {"folder": pd.Categorical.from_codes(of_record, jobs["folder"])}
    for name in ("done", *RUN, "environments"):
        columns[name] = jobs[name].take(of_record).array
    stretches = _stretches(jobs)
    names = {name for part in parts for name in part.records.column_names}
    order = ["step", *sorted(names - {"step"})]
    with ThreadPoolExecutor(cpu_count()) as pool:  # NumPy copies without holding Python's lock
        filled = pool.map(partial(_column, parts, stretches, len(of_record)), order)
    return jobs, pd.DataFrame(columns | dict(zip(order, filled, strict=True)), copy=False)


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
    ranked = jobs[jobs.duplicated(RUN, keep=False)].sort_values(["done", "written", "folder"])
    return ranked.loc[ranked.duplicated(RUN, keep="last"), "folder"].tolist()
