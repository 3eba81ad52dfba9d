"""The runs that a sweep requested, and the state of each, even if the folder has no launch log."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from domainbed.records import RUN_KEYS
from domainbed.reporting.cells import environment_names, testable_names
from domainbed.sweep.grid import RunKey, all_test_envs
from domainbed.sweep.log import run_states
from domainbed.sweep.status import JobState


def requested_runs(sweep_dir: Path, jobs: pd.DataFrame, warn: Callable[[str], object]) -> tuple[pd.DataFrame, bool]:
    """Return `runs` and `has_launch_log` of a `load.Sweep`, given its `jobs`.

    `warn` is called with a message for each launch that cannot be read.
    """
    # Lists of Python objects: iterating over pandas' columns is slow.
    runs = list(map(RunKey._make, zip(*(jobs[name].astype(object).tolist() for name in RUN_KEYS), strict=True)))
    folders = dict(zip(runs, jobs.index.tolist(), strict=True))
    recorded = {
        run: JobState.DONE if done else JobState.PRUNED if pruned else JobState.INCOMPLETE
        for run, done, pruned in zip(runs, jobs["done"].tolist(), jobs["pruned"].tolist(), strict=True)
    }
    done = {run for run, state in recorded.items() if state == JobState.DONE}
    requested = run_states(sweep_dir, done, warn)
    has_launch_log = bool(requested)
    if not requested:
        requested = dict.fromkeys(_implied_runs(jobs), JobState.NOT_LAUNCHED) | recorded
    states = recorded | requested  # includes runs with records that no launch requested
    columns: dict[str, Any] = dict(zip(RUN_KEYS, map(list, zip(*states, strict=True)), strict=True))
    columns |= {"state": list(states.values()), "folder": [folders.get(run) for run in states]}
    # Python's own strings, which are faster to iterate over and to look up in a set than pandas'.
    columns |= {name: pd.Series(columns[name], dtype=object) for name in ("dataset", "algorithm", "folder")}
    return pd.DataFrame(columns), has_launch_log


def _implied_runs(jobs: pd.DataFrame) -> Iterator[RunKey]:
    """Yield every combination of the algorithms, trials and draws on a dataset, and all its test environments."""
    for dataset, dataset_jobs in jobs.groupby("dataset", observed=True):
        n = len(environment_names(jobs, str(dataset)))
        n_testable = len(testable_names(jobs, str(dataset)))
        for algorithm, algorithm_jobs in dataset_jobs.groupby("algorithm", observed=True):
            with_pairs = bool((algorithm_jobs["test_envs"].map(len) == 2).any())
            for test_envs, trial_seed, hparams_seed in itertools.product(
                all_test_envs(n, with_pairs, n_testable),
                dataset_jobs["trial_seed"].unique(),
                dataset_jobs["hparams_seed"].unique(),
            ):
                yield RunKey(str(dataset), str(algorithm), test_envs, trial_seed, hparams_seed)
