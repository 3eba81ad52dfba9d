"""Checks of a sweep's jobs: which ones the tables skip, and which inconsistencies they report."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from domainbed.datasets import DATASETS
from domainbed.errors import list_some
from domainbed.records import RESULTS_FILE, RUN_KEYS
from domainbed.reporting.cells import AVERAGE, RANK
from domainbed.reporting.layout import AVERAGES

RESERVED_NAMES = {AVERAGE, RANK, AVERAGES}  # names that the tables use themselves


def find_incompatible(jobs: pd.DataFrame) -> dict[str, str]:
    """Return the folders with other environments than the other jobs on their dataset, and the reason for each."""
    reasons: dict[str, str] = {}
    for dataset in map(str, jobs["dataset"].unique()):
        dataset_jobs = jobs[jobs["dataset"] == dataset]
        if dataset in RESERVED_NAMES:
            reasons |= dict.fromkeys(dataset_jobs["folder"], f"the dataset name {dataset!r} is reserved by the tables")
            continue
        # The number of environments of a registered dataset, or that of most jobs.
        expected = len(DATASETS[dataset].ENVIRONMENTS) if dataset in DATASETS else 0
        expected = expected or dataset_jobs["n_environments"].mode().max()
        for folder, n, names in zip(
            *(dataset_jobs[column] for column in ("folder", "n_environments", "environments")), strict=True
        ):
            if n != expected:
                reasons[folder] = f"the records have {n} environments, but {dataset} has {expected}"
            elif names and len(names) != n:
                reasons[folder] = f"the records name {len(names)} environments, but have {n}"
    return reasons


def find_duplicates(jobs: pd.DataFrame) -> list[str]:
    """Return the folders of runs that another folder also contains: one that is done, or was written later."""
    ranked = jobs[jobs.duplicated(RUN_KEYS, keep=False)].sort_values(["done", "mtime_ns", "folder"])
    return ranked.loc[ranked.duplicated(RUN_KEYS, keep="last"), "folder"].tolist()


def describe_inconsistencies(jobs: pd.DataFrame, sweep_dir: Path, duplicates: Sequence[str]) -> list[str]:
    """Return a warning for each kind of inconsistency between jobs, and for each job that lacks its last record."""
    # Never for NaN: DomainBed may not record steps.
    lacks_last = jobs["done"] & (jobs["last_step"] < jobs["steps"] - 1) & (jobs["ended_early"] != True)  # noqa: E712
    warnings = [
        f"{sweep_dir / folder / RESULTS_FILE}: the job is done, but its last record is missing"
        for folder in jobs.loc[lacks_last, "folder"]
    ]
    for column, what in (("settings", "arguments"), ("environments", "environments")):
        for dataset, values in jobs.groupby("dataset", observed=True)[column].unique().items():
            variants = sorted(value if isinstance(value, str) else " ".join(value) for value in values if len(value))
            if len(variants) > 1:
                warnings.append(f"{dataset}: its runs used different {what} ({'; '.join(variants)})")
    for (dataset, _), runs in jobs[jobs["backbone_weights"] != ""].groupby(["dataset", "settings"]):
        if (n := runs["backbone_weights"].nunique()) > 1:
            warnings.append(
                f"{dataset}: the features of its runs come from frozen backbones with {n} different weights"
            )
    for (dataset, algorithm), runs in jobs.groupby(["dataset", "algorithm"], observed=True):
        if (n := runs["code"].nunique()) > 1:
            warnings.append(f"{dataset}: runs of {algorithm} were trained with {n} versions of its code")
        intervals = [f"{value:,.0f}" for value in sorted(runs["checkpoint_freq"].dropna().unique())]
        if len(intervals) > 1:
            warnings.append(f"{dataset}: runs of {algorithm} were evaluated every {' or '.join(intervals)} steps")
    if n := int((jobs["bad_images"] > 0).sum()):
        warnings.append(f"{n} job{'s' * (n > 1)} replaced broken images with others (--on_bad_image skip)")
    if n := len(duplicates):
        warnings.append(
            f"skipping {n} folder{'s' * (n > 1)} with a run that another folder also contains "
            f"({list_some(duplicates, 5)}): a finished job takes precedence, then the one written last"
        )
    return warnings
