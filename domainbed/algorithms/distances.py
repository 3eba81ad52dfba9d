"""Distances between two samples of features: CORAL's and the maximum mean discrepancy, optionally with row weights."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch

GAMMAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [d] and the covariance [d, d] (divisor n - 1) of features [n, d]."""
    mean = z.mean(0)
    return mean, (z - mean).T @ (z - mean) / (len(z) - 1)


def weighted_moments(z: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the moments of the rows of [n, d] with weight 1; the other weights [n] are 0. Requires two such rows."""
    n = weights.sum()
    mean = weights @ z / n
    centered = (z - mean) * weights[:, None]
    return mean, centered.T @ centered / (n - 1)


def coral_distance(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the mean squared difference of two means plus that of two covariances, 0-dim."""
    return ((a[0] - b[0]) ** 2).mean() + ((a[1] - b[1]) ** 2).mean()


def gaussian_kernel(a: torch.Tensor, b: torch.Tensor, gammas: Sequence[float] = GAMMAS) -> torch.Tensor:
    """Return Σ_γ exp(−γ ‖a_i − b_j‖²) of features [n, d] and [m, d]: [n, m]."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    squared = squared.clamp(min=1e-30)
    return torch.stack([(-gamma * squared).exp() for gamma in gammas]).sum(0)


def mmd_distance(a: torch.Tensor, b: torch.Tensor, gammas: Sequence[float] = GAMMAS) -> torch.Tensor:
    """Return the squared maximum mean discrepancy (biased) of features [n, d] and [m, d], 0-dim."""
    return (
        gaussian_kernel(a, a, gammas).mean()
        + gaussian_kernel(b, b, gammas).mean()
        - 2 * gaussian_kernel(a, b, gammas).mean()
    )


def mean_over_pairs(items: Sequence[Any], distance: Callable[..., torch.Tensor]) -> torch.Tensor | None:
    """Return the mean distance over all pairs of items, 0-dim; None if there are fewer than two."""
    distances = [distance(a, b) for a, b in combinations(items, 2)]
    return torch.stack(distances).mean() if distances else None
