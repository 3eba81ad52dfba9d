"""Warm-ups: the first updates of a job, in which its algorithm has another loss, without or with a smaller penalty."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def is_warm_up(name: str) -> bool:
    """Return whether a hyperparameter is the number of updates of a warm-up, by its name in DomainBed."""
    return name in ("iters", "linear_steps") or name.endswith(("anneal_iters", "burnin_iters"))


def unfinished_warm_ups(hparams: Mapping[str, Any], steps: int) -> list[str]:
    """Return the hyperparameters whose warm-up does not end before the last of a job's `steps` updates."""
    return [
        name
        for name, value in hparams.items()
        if is_warm_up(name)
        and isinstance(value, int | float)
        and value + (name == "linear_steps") >= steps  # as published, ERM++ trains the head for one more update
    ]


def describe_unfinished(jobs: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return how many jobs end during their warm-up: "Fishr on PACS 168 of 240 (penalty_anneal_iters)".

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
