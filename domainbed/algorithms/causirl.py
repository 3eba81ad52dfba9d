"""CausIRL: invariant causal mechanisms through distribution matching (Chevalley, Bunne, Krause and Bauer, 2022)."""

import torch

from domainbed.algorithms.alignment import AlignmentERM
from domainbed.algorithms.distances import coral_distance, gaussian_kernel, weighted_moments


class CausIRL(AlignmentERM):
    """Penalizes a distance between two random mixtures of the domains.

    In each domain a number r is drawn uniformly from 0, …, n - 1; the first r samples go to one mixture and the others
    to the other. The penalty is 0 if a mixture has fewer than two samples.
    """

    def distance_of_parts(self, z: torch.Tensor, in_first: torch.Tensor) -> torch.Tensor:
        """Return the distance, 0-dim, between the rows of features [n, d] with `in_first` [n] 1 and those with 0."""
        raise NotImplementedError(f"{type(self).__name__} does not implement distance_of_parts")

    def distance(self, domains: list[torch.Tensor]) -> torch.Tensor | None:
        # Weights of rows instead of slices: shapes do not depend on the draw.
        parts = [
            torch.arange(len(z), device=z.device) < (torch.rand((), device=z.device) * len(z)).floor() for z in domains
        ]
        in_first = torch.cat(parts)
        is_valid = torch.minimum(in_first.sum(), (~in_first).sum()) > 1
        # Any valid split in place of an invalid one, so that its gradient (times 0) is finite.
        fallback = torch.arange(len(in_first), device=in_first.device) < len(in_first) // 2
        z = torch.cat(domains)
        distance = self.distance_of_parts(z, torch.where(is_valid, in_first, fallback).to(z.dtype))
        return distance.nan_to_num(nan=0.0) * is_valid if len(z) > 3 else None


class CausIRL_CORAL(CausIRL):
    """CausIRL with CORAL's distance."""

    def distance_of_parts(self, z: torch.Tensor, in_first: torch.Tensor) -> torch.Tensor:
        return coral_distance(weighted_moments(z, in_first), weighted_moments(z, 1 - in_first))


class CausIRL_MMD(CausIRL):
    """CausIRL with the maximum mean discrepancy."""

    def distance_of_parts(self, z: torch.Tensor, in_first: torch.Tensor) -> torch.Tensor:
        p, q = in_first / in_first.sum(), (1 - in_first) / (1 - in_first).sum()
        kernel = gaussian_kernel(z, z)
        return p @ kernel @ p + q @ kernel @ q - 2 * p @ kernel @ q
