"""Warm-ups: the updates of a job before its algorithm's penalty takes effect."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# As in DomainBed, hyperparameters with these endings are numbers of updates before a penalty (or EQRM's quantile).
SUFFIXES = ("anneal_iters", "burnin_iters")


def unfinished_warm_ups(hparams: Mapping[str, Any], steps: int) -> list[str]:
    """Return the hyperparameters whose penalty takes effect only after the last of a job's `steps` updates."""
    return [
        name
        for name, value in hparams.items()
        if name.endswith(SUFFIXES) and isinstance(value, int | float) and value >= steps
    ]


def describe_unfinished(jobs: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return how many jobs end before a penalty takes effect: "Fishr on PACS 168 of 240 (penalty_anneal_iters)".

    Args:
        jobs: for each job, what it is counted with ("Fishr on PACS"), and its unfinished warm-ups.

    Returns:
        The text; "" if there is no such job.
    """
    total: Counter[str] = Counter()
    unfinished: Counter[str] = Counter()
    names: dict[str, dict[str, None]] = {}
    for kind, warm_ups in jobs:
        total[kind] += 1
        if warm_ups:
            unfinished[kind] += 1
            names.setdefault(kind, {}).update(dict.fromkeys(warm_ups))
    return "; ".join(f"{kind} {n:,} of {total[kind]:,} ({' and '.join(names[kind])})" for kind, n in unfinished.items())
