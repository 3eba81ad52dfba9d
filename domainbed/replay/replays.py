"""Replays of policies over resampled orders and draws, summarized with intervals."""

from collections.abc import Mapping, Sequence

import pandas as pd
from numpy.random import RandomState

from domainbed.replay.fidelity import Change, compare, count_computing, find_answers
from domainbed.replay.policies import Policy
from domainbed.terminal import ProgressBar

INTERVAL = (0.025, 0.975)
CHANGED = "changed"  # the number of differences from the baseline that are lost, gained or reversed


def replay(
    curves: pd.DataFrame,
    policies: Mapping[str, Policy],
    environments: Mapping[str, Sequence[str]],
    baseline: str,
    resamples: int,
    updates_per_evaluation: float,
) -> pd.DataFrame:
    """Return one row per policy and resample: `policy`, the fields of `fidelity.Change`, and CHANGED.

    Equal arguments give equal rows.
    """
    complete, computing = find_answers(curves, environments, baseline), count_computing(curves)
    rows = []
    with ProgressBar(total=len(policies) * resamples, desc="replaying", unit="replay", leave=False) as bar:
        for name, policy in policies.items():
            known: dict[bytes, Change] = {}  # a policy may be deterministic, or have few outcomes
            for seed in range(resamples):
                kept = policy(curves, RandomState(seed)).sort_index()
                key = kept.index.to_numpy().tobytes()
                if key not in known:
                    answers = find_answers(kept, environments, baseline)
                    known[key] = compare(complete, answers, computing, count_computing(kept), updates_per_evaluation)
                change = known[key]
                n_changed = change.lost + change.gained + change.reversed
                rows.append({"policy": name, **change._asdict(), CHANGED: n_changed})
                bar.update()
    return pd.DataFrame(rows)


def summarize(replays: pd.DataFrame) -> pd.DataFrame:
    """Return one row per policy: `policy`, and of each other column the mean and the interval over resamples.

    The bounds of the 95% interval of `cell` are `cell_low` and `cell_high`, and so on. Resamples with NaN are omitted.
    """
    rows = []
    for name, own in replays.groupby("policy", sort=False):
        row: dict[str, object] = {"policy": name}
        for column in (*Change._fields, CHANGED):
            low, high = own[column].quantile(INTERVAL[0]), own[column].quantile(INTERVAL[1])
            row |= {column: own[column].mean(), f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def cheapest_faithful(summary: pd.DataFrame) -> str | None:
    """Return the cheapest policy that changed no difference from the baseline in any resample, or None.

    A policy that leaves a difference untested in any resample does not count: nothing shows that it is unchanged.
    """
    faithful = summary[(summary[CHANGED] == 0) & (summary["untested"] == 0)]
    return str(faithful.sort_values("cost")["policy"].iloc[0]) if len(faithful) else None
