"""The data of a page's explorer: all runs that a selection method selects from, with their curves and hyperparameters.

`explorer_data` returns a block (`columns.py`); `explorer/decode.js` reads it. Its header has, for each dataset:

- `runs`: columns with a value per run; `algorithm`, `trial`, … are positions in the lists next to them.
- `selections`: for each selection method, the position of the selected record among those of the run (plus 1; 0 for
  none), the score by which the method ranks runs, and whether the run is the best of its trial, which is in a table.
- `records`: columns with a value per record, run after run: the step, the accuracies and the metrics.
- `hparams`: for each hyperparameter, its values and scale, and a column with a position among the values per run.

A column is [offset, bytes per value, number of values]. Scripts ignore entries that they do not know.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from domainbed.reporting.cells import algorithms_of, environment_names
from domainbed.reporting.formats.columns import ACCURACY_UNITS, Block, encode_accuracies, encode_floats
from domainbed.reporting.load import Sweep
from domainbed.reporting.metrics import load_metric_columns
from domainbed.reporting.plots.scatter import hparam_scale, usable_values, without_ignored
from domainbed.reporting.report import Report

VERSION = 1
MAX_VALUES = 6_000_000  # accuracies; above, only every k-th record of a run is in the block
MAX_TEXT = 100  # characters of a hyperparameter's value


def explorer_data(report: Report, folder: Path) -> str:
    """Return the block of a report; "" if no selection method selects a run.

    Args:
        report: the report.
        folder: the folder that the page will be written to.
    """
    sweep = report.sweep
    selected = {
        section.selection: sweep.select(section.selection).drop_duplicates("folder").set_index("folder")
        for section in report.sections
        if not section.why_empty
    }
    jobs = _explored_jobs(report, selected)
    if jobs.empty:
        return ""
    records = _thinned_records(sweep, jobs, selected)
    best = {section.selection: set(section.best["folder"]) for section in report.sections}
    block = Block()
    styles = algorithms_of(sweep.runs)  # an algorithm has the same color in all plots of the sweep
    header = {
        "version": VERSION,
        "units": ACCURACY_UNITS,
        "selections": list(selected),
        "algorithms": [{"title": report.titles(name), "style": styles.index(name)} for name in report.algorithms],
        "link": quote(os.fsencode(os.path.relpath(sweep.folder, folder))),
        "datasets": [
            _Dataset(report, dataset, dataset_jobs, records, selected, best).add_to(block)
            for dataset in report.environments
            if len(dataset_jobs := jobs[jobs["dataset"] == dataset])
        ],
    }
    return block.encode(header)


def _explored_jobs(report: Report, selected: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the report's jobs from which a method selects, in the order of the block, with their `test_env`."""
    rows = [frame[["dataset", "algorithm", "test_env", "trial_seed", "hparams_seed"]] for frame in selected.values()]
    if not rows:
        return pd.DataFrame()
    jobs = pd.concat(rows)
    jobs = jobs[~jobs.index.duplicated() & jobs["dataset"].isin(list(report.environments))]
    jobs = jobs[jobs["algorithm"].isin(list(report.algorithms))]
    algorithm = jobs["algorithm"].map(list(report.algorithms).index)
    # Consecutive runs share their hyperparameters: their columns compress well.
    return jobs.assign(order=algorithm).sort_values(["order", "hparams_seed", "trial_seed", "test_env"])


def _thinned_records(sweep: Sweep, jobs: pd.DataFrame, selected: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the records of these jobs by position of the job in `jobs` and step: all of them, or evenly spaced ones
    and those selected, if there are too many for a page."""
    job = jobs.index.get_indexer(pd.Index(sweep.records["folder"].array.categories))[
        pd.Categorical(sweep.records["folder"]).codes
    ]
    records = sweep.records[job >= 0].assign(job=job[job >= 0]).sort_values(["job", "step"], kind="stable")
    n_accuracies = sum(str(name).endswith("_out_acc") for name in records) + 1
    stride = -(-len(records) * n_accuracies // MAX_VALUES)
    if stride <= 1:
        return records
    number = records.groupby("job").cumcount()
    is_kept = (number % stride == 0) | ~records["job"].duplicated(keep="last")
    for frame in selected.values():
        steps = frame["step"].reindex(jobs.index).to_numpy(dtype=float)
        is_kept |= records["step"] == steps[records["job"]]
    return records[is_kept]


class _Dataset:
    """The runs on one dataset; see `explorer_data`.

    Args:
        jobs: the jobs, as returned by `_explored_jobs`.
        records: the records of all jobs, as returned by `_thinned_records`.
        selected: the rows of each selection method, by folder.
        best: the folders of the runs that each method's tables use.
    """

    def __init__(
        self,
        report: Report,
        name: str,
        jobs: pd.DataFrame,
        records: pd.DataFrame,
        selected: Mapping[str, pd.DataFrame],
        best: Mapping[str, set[str]],
    ) -> None:
        self.report, self.name, self.jobs = report, name, jobs
        self.selected, self.best = selected, best
        self.records = records[records["folder"].isin(jobs.index)]
        lengths = self.records.groupby("job", sort=True).size().to_numpy()  # every job has records
        self.first = np.concatenate([[0], np.cumsum(lengths)])
        self.environments = environment_names(report.sweep.jobs, name)

    def add_to(self, block: Block) -> dict[str, Any]:
        """Append the columns to a block, and return the dataset's part of the header."""
        jobs, titles = self.jobs, self.report.titles
        states = dict(zip(self.report.sweep.runs["folder"], self.report.sweep.runs["state"], strict=True))
        trials, trial_values = pd.factorize(jobs["trial_seed"], sort=True)
        draws, draw_values = pd.factorize(jobs["hparams_seed"], sort=True)
        state_codes, state_values = pd.factorize(jobs.index.map({name: state.value for name, state in states.items()}))
        steps = self.records["step"].to_numpy()
        step_codes, step_values = pd.factorize(steps, sort=True)
        metrics, n_omitted = load_metric_columns(self.report.sweep.folder, list(jobs.index), self.first, steps)
        runs = {
            "algorithm": jobs["order"].to_numpy(),
            "env": jobs["test_env"].to_numpy(dtype=int),
            "trial": trials,
            "draw": draws,
            "state": state_codes,
            "records": np.diff(self.first),
        }
        return {
            "title": titles(self.name),
            "environments": [titles.environment(self.name, name) for name in self.environments],
            "trials": trial_values.tolist(),
            "draws": draw_values.tolist(),
            "states": list(state_values),
            "steps": step_values.tolist(),
            "folders": [quote(os.fsencode(folder), safe="") for folder in jobs.index],
            "runs": {name: block.add(values) for name, values in runs.items()},
            "selections": [self._add_selection(block, name) for name in self.selected],
            "records": {
                "step": block.add(step_codes),
                "test": block.add(encode_accuracies(self._test_accuracies())),
                "out": [block.add(encode_accuracies(self._accuracies(env, "out"))) for env in range(self.n_envs)],
            },
            "metrics": [
                {"name": name, "column": block.add(encode_floats(values))}
                for name, values in metrics.items()
                if np.nanmin(values) < np.nanmax(values)  # mem_gb is 0 without a GPU
            ],
            "hparams": [*self._add_hparams(block)],
            "omitted_metrics": n_omitted,
        }

    @property
    def n_envs(self) -> int:
        return len(self.environments)

    def _accuracies(self, env: int, split: str) -> np.ndarray:
        name = f"env{env}_{split}_acc"
        return self.records[name].to_numpy() if name in self.records else np.full(len(self.records), np.nan)

    def _test_accuracies(self) -> np.ndarray:
        """Return the accuracy of each record on the in split of its run's test environment."""
        envs = np.repeat(self.jobs["test_env"].to_numpy(dtype=int), np.diff(self.first))
        accuracies = np.full(len(envs), np.nan)
        for env in np.unique(envs):
            np.copyto(accuracies, self._accuracies(env, "in"), where=envs == env)
        return accuracies

    def _add_selection(self, block: Block, selection: str) -> dict[str, tuple[int, int, int]]:
        rows = self.selected[selection].reindex(self.jobs.index)
        job = np.repeat(np.arange(len(self.jobs)), np.diff(self.first))
        is_selected = np.flatnonzero(self.records["step"].to_numpy() == rows["step"].to_numpy(dtype=float)[job])
        record = np.zeros(len(self.jobs), dtype=int)
        record[job[is_selected]] = 1 + is_selected - self.first[job[is_selected]]
        return {
            "record": block.add(record),
            "score": block.add(encode_accuracies(rows["val_acc"].to_numpy(dtype=float))),
            "best": block.add(np.array([folder in self.best[selection] for folder in self.jobs.index], dtype=np.uint8)),
        }

    def _add_hparams(self, block: Block) -> Sequence[dict[str, Any]]:
        hparams = without_ignored(self.report.sweep.load_hparams(self.jobs.index), self.name)
        added = []
        for name, values in hparams.items():
            usable = usable_values(values)
            if usable.dtype.kind != "f":
                usable = usable.str.slice(0, MAX_TEXT)
            levels, codes = np.unique(usable.to_numpy(), return_inverse=True)
            if not len(levels):
                continue
            positions = pd.Series(1 + codes, usable.index).reindex(values.index, fill_value=0)
            added.append(
                {
                    "name": str(name),
                    "values": levels.tolist(),
                    # The runs' own values, not draws of the registry, which would import every algorithm and torch.
                    "scale": hparam_scale(usable, levels.tolist()),
                    "column": block.add(positions.to_numpy()),
                }
            )
        return added
