"""Squared distances between the domains' risks, gradient means, gradient variances and Hessian diagonals."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch

from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.landscape.domain import DomainStatistics


def pair_distances(domains: Sequence[DomainStatistics]) -> dict[str, torch.Tensor]:
    """Return ‖a − b‖² for each pair of domains, summed over coordinates, [domains, domains], for each quantity."""
    return {name: _squared_distances(_values(domains, name)) for name in QUANTITIES}


def relative_distances(domains: Sequence[DomainStatistics], distances: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean distance over pairs divided by the mean ‖a‖² over domains, for each quantity.

    Unlike absolute distances, relative ones do not shrink with the quantities themselves, e.g. with the gradients of a
    model that has memorized its training samples.

    Args:
        domains: the domains.
        distances: their `pair_distances`.
    """
    relative = {}
    for name, matrix in distances.items():
        squared_norm = torch.stack([(value**2).sum() for value in _values(domains, name)]).mean()
        relative[name] = (mean_over_pairs(matrix) / squared_norm).item()
    return relative


def recorded_distances(domains: Sequence[DomainStatistics]) -> dict[str, float]:
    """Return the mean distance over pairs, by the names of the record entries."""
    return {PREFIX + name: mean_over_pairs(distances) for name, distances in pair_distances(domains).items()}


def mean_over_pairs(distances: torch.Tensor) -> float:
    """Return the mean of distances [domains, domains] over pairs of different domains; NaN for a single domain."""
    n = len(distances)
    return (distances.triu(1).sum() / (n * (n - 1) / 2)).item() if n > 1 else math.nan


def _values(domains: Sequence[DomainStatistics], name: str) -> list[torch.Tensor]:
    return [torch.as_tensor(getattr(domain, name), dtype=torch.float64) for domain in domains]


def _squared_distances(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute distances pair by pair: computed from inner products, small ones would be lost to rounding."""
    distances = torch.zeros(len(values), len(values), dtype=torch.float64)
    for a, b in itertools.combinations(range(len(values)), 2):
        distances[a, b] = distances[b, a] = ((values[a] - values[b]) ** 2).sum()
    return distances
