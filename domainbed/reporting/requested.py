"""The runs that a sweep was asked for, and how far each is, also where nobody remembers what was asked."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from domainbed.records import RUN_KEYS
from domainbed.reporting.cells import environment_names
from domainbed.sweep.grid import Run, all_test_envs
from domainbed.sweep.requested import runs_asked_for
from domainbed.sweep.status import JobState


def runs_of(folder: Path, jobs: pd.DataFrame, tell: Callable[[str], object]) -> tuple[pd.DataFrame, bool]:
    """`runs` and `is_remembered` of a load.Sweep, given its jobs; `tell` as in `runs_asked_for`."""
    # Python's own objects, which are quicker to walk through one by one.
    runs = list(map(Run._make, zip(*(jobs[name].astype(object).tolist() for name in RUN_KEYS), strict=True)))
    there = dict(zip(runs, jobs.index.tolist(), strict=True))
    seen = {
        run: JobState.DONE if done else JobState.INCOMPLETE
        for run, done in zip(runs, jobs["done"].tolist(), strict=True)
    }
    asked = runs_asked_for(folder, {run for run, state in seen.items() if state == JobState.DONE}, tell)
    is_remembered = bool(asked)
    if not asked:
        asked = dict.fromkeys(_implied(jobs), JobState.NOT_LAUNCHED) | seen
    states = seen | asked  # runs that nobody remembers having asked for as well
    told: dict[str, Any] = dict(zip(RUN_KEYS, map(list, zip(*states, strict=True)), strict=True))
    told |= {"state": list(states.values()), "folder": list(map(there.get, states))}
    # Of Python's own strings: pandas' are slow to walk through one by one, and to look for in a set.
    told |= {name: pd.Series(told[name], dtype=object) for name in ("dataset", "algorithm", "folder")}
    return pd.DataFrame(told), is_remembered


def _implied(jobs: pd.DataFrame) -> Iterator[Run]:
    """The runs that there should be, going by those that there are."""
    for dataset, of_dataset in jobs.groupby("dataset", observed=True):
        n = len(environment_names(jobs, str(dataset)))
        for algorithm, of_algorithm in of_dataset.groupby("algorithm", observed=True):
            with_pairs = bool((of_algorithm["test_envs"].map(len) == 2).any())
            for test_envs, trial_seed, hparams_seed in itertools.product(
                all_test_envs(n, with_pairs), of_dataset["trial_seed"].unique(), of_dataset["hparams_seed"].unique()
            ):
                yield Run(str(dataset), str(algorithm), test_envs, trial_seed, hparams_seed)
