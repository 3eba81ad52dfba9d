"""The jobs of a sweep that can be replayed, and the reasons why others cannot."""

from collections.abc import Mapping, Sequence

import pandas as pd

from domainbed.model_selection import is_evaluated_once


def find_replayable(jobs: pd.DataFrame, environments: Mapping[str, Sequence[str]]) -> tuple[pd.DataFrame, list[str]]:
    """Return the jobs whose records can be replayed, and a phrase for each kind of other jobs.

    Args:
        jobs: some of `load.Sweep.jobs`.
        environments: the names of the environments of each dataset that can be tested on (`cells.testable_names`).

    Returns:
        The rows of the jobs that can be replayed, and phrases such as "3 pruned runs (only finished runs are
        replayed)". A job that is of several kinds counts once.
    """
    test_envs = jobs["test_envs"].astype(object)
    n_testable = jobs["dataset"].astype(object).map({name: len(names) for name, names in environments.items()})
    kinds = {
        "pruned run{s} (only finished runs are replayed)": jobs["pruned"],
        "unfinished run{s} (only finished runs are replayed)": ~jobs["done"],
        "ensemble{s} (only trained runs are replayed)": jobs["ensemble"] != "",
        "run{s} with SWAD (only the last record counts)": is_evaluated_once(jobs),
        "run{s} with several test environments (selection requires a single one)": test_envs.map(len) > 1,
        "run{s} on environments that are not meant for testing (no table has them)": test_envs.map(min) >= n_testable,
        "run{s} on a single environment (none is left to train on)": jobs["n_environments"] == 1,
    }
    is_replayable = pd.Series(True, jobs.index)
    phrases = []
    for kind, is_kind in kinds.items():
        if n := int((is_replayable & is_kind).sum()):
            phrases.append(f"{n:,} {kind.format(s='s' * (n != 1))}")
        is_replayable &= ~is_kind
    return jobs[is_replayable], phrases
