"""How far apart domains are: squared distances between what their losses are like."""

import math
from collections.abc import Sequence

import torch

from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.landscape.domain import Statistics


def pair_distances(domains: Sequence[Statistics]) -> dict[str, torch.Tensor]:
    """‖a − b‖² of each pair of domains, summed over coordinates: [domains, domains] by the names in QUANTITIES."""
    return {name: _squared_distances(torch.stack(_values(domains, name))) for name in QUANTITIES}


def relative_distances(domains: Sequence[Statistics]) -> dict[str, float]:
    """The mean distance over pairs as a part of the mean ‖a‖² over domains: 0 where all agree.

    Unlike distances it does not shrink with what is compared, as all gradients do where training samples are learned
    by heart.
    """
    relative = {}
    for name, distances in pair_distances(domains).items():
        norm = torch.stack([(value**2).sum() for value in _values(domains, name)]).mean()
        relative[name] = (mean_over_pairs(distances) / norm).item()
    return relative


def recorded_distances(domains: Sequence[Statistics]) -> dict[str, float]:
    """The mean distance over pairs, by the names that records have for them."""
    return {PREFIX + name: mean_over_pairs(distances) for name, distances in pair_distances(domains).items()}


def mean_over_pairs(distances: torch.Tensor) -> float:
    """Of distances [domains, domains], the mean over pairs of two domains; NaN where there is but one."""
    n = len(distances)
    return (distances.triu(1).sum() / (n * (n - 1) / 2)).item() if n > 1 else math.nan


def _values(domains: Sequence[Statistics], name: str) -> list[torch.Tensor]:
    return [torch.as_tensor(getattr(domain, name), dtype=torch.float64) for domain in domains]


def _squared_distances(values: torch.Tensor) -> torch.Tensor:
    """Pair by pair: through products of the values, small distances would drown in rounding."""
    rows = [[((a - b) ** 2).sum() for b in values] for a in values]
    return torch.stack([torch.stack(row) for row in rows])
