"""Policies: what a sweep would have recorded with fewer draws, trials or evaluations, or with pruned runs.

A policy is a function `(curves, rng)` that returns the rows of `curves` that it would have recorded, and decides from
accuracies on the training environments only. `curves` has a row per record of each run with one test environment: the
columns of `model_selection.RUN_COLUMNS`, `step`, `val_acc` (training-domain validation) and `test_acc`, in [0, 1].
`test_acc` is NaN where a job did not evaluate it, because selection could not choose the record (`--eval selection`).
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.random import RandomState

from domainbed.model_selection import RUN_COLUMNS, TRIAL_COLUMNS, training_domain
from domainbed.pruning import PruneOptions

Policy: TypeAlias = Callable[[pd.DataFrame, RandomState], pd.DataFrame]

NOT_EVALUATED = -1.0  # stands for a missing accuracy


def score_records(records: pd.DataFrame) -> pd.DataFrame:
    """Return the curves of the records (`load.Sweep.records`) of runs that can be replayed (`jobs.find_replayable`)."""
    # Selection returns one record per run, and none without a test accuracy; here, every record is a run of its own.
    filled = {str(name): records[name].fillna(NOT_EVALUATED) for name in records if str(name).endswith("_in_acc")}
    single = records.assign(**filled, folder=np.arange(len(records)).astype(str))
    curves = training_domain(single)[[*RUN_COLUMNS, "step", "val_acc", "test_acc"]]
    return curves.assign(test_acc=curves["test_acc"].replace(NOT_EVALUATED, np.nan))


def keep_draws(curves: pd.DataFrame, rng: RandomState, n: int) -> pd.DataFrame:
    """Return the runs of n hyperparameter draws of each trial: the defaults (draw 0) if present, and random ones."""
    kept = pd.Series(False, curves.index)
    for trial in np.unique(curves["trial_seed"]):
        is_trial = curves["trial_seed"] == trial
        draws = np.unique(curves.loc[is_trial, "hparams_seed"])
        random = rng.permutation(draws[draws != 0])
        kept |= is_trial & curves["hparams_seed"].isin([*draws[draws == 0], *random][:n])
    return curves[kept]


def keep_trials(curves: pd.DataFrame, rng: RandomState, n: int) -> pd.DataFrame:
    """Return the runs of n random trials."""
    trials = rng.permutation(np.unique(curves["trial_seed"]))[:n]
    return curves[curves["trial_seed"].isin(trials)]


def keep_evaluations(curves: pd.DataFrame, rng: RandomState, every: int) -> pd.DataFrame:
    """Return the first of every `every` records of each run, and the last. Nothing is random."""
    runs = curves.sort_values("step", kind="stable").groupby(RUN_COLUMNS)
    number, number_from_end = runs.cumcount(), runs.cumcount(ascending=False)
    return curves[((number % every == 0) | (number_from_end == 0)).reindex(curves.index)]


def prune(curves: pd.DataFrame, rng: RandomState, options: PruneOptions) -> pd.DataFrame:
    """Return the records up to the step at which each run stops, as `sweep launch --prune` stops it.

    The runs of a trial (of one dataset, algorithm and test environment) are trained one after another, in random order,
    and compared at the steps after which they are evaluated.
    """
    curves = curves.sort_values([*RUN_COLUMNS, "step"])
    best = curves.groupby(RUN_COLUMNS)["val_acc"].cummax().to_numpy()
    seeds, steps = curves["hparams_seed"].to_numpy(), curves["step"].to_numpy()
    is_kept = np.ones(len(curves), dtype=bool)
    for rows in curves.groupby(TRIAL_COLUMNS).indices.values():
        rungs = options.rungs(np.unique(steps[rows]).tolist())
        runs = np.split(rows, np.flatnonzero(np.diff(seeds[rows])) + 1)
        reached: dict[int, list[float]] = defaultdict(list)
        for i in rng.permutation(len(runs)):
            for position, row in enumerate(runs[i]):
                if steps[row] not in rungs:
                    continue
                peers = reached[steps[row]]
                is_stopped = options.should_stop(best[row], peers)
                peers.append(best[row])
                if is_stopped:
                    is_kept[runs[i][position + 1 :]] = False
                    break
    return curves[is_kept]


def all_policies(curves: pd.DataFrame) -> dict[str, Policy]:
    """Return the policies to replay on these curves, by name.

    Fewer evaluations require all test accuracies: the best of fewer records may be one that was not the best so far,
    whose test accuracy `--eval selection` omits.
    """
    draws, trials = curves["hparams_seed"].nunique(), curves["trial_seed"].nunique()
    policies: dict[str, Policy] = {}
    for n in sorted({max(1, draws * quarters // 4) for quarters in (1, 2, 3)} - {draws}, reverse=True):
        policies[f"{n} of {draws} draws"] = partial(keep_draws, n=n)
    for n in range(trials - 1, 0, -1):
        policies[f"{n} of {trials} trials"] = partial(keep_trials, n=n)
    for every in (2, 4) if curves["test_acc"].notna().all() else ():
        policies[f"1 of {every} evaluations"] = partial(keep_evaluations, every=every)
    policies["median"] = partial(prune, options=PruneOptions("median"))
    for factor in (2, 3, 4):
        policies[f"ASHA, factor {factor}"] = partial(prune, options=PruneOptions("asha", factor))
    return policies
