"""Slices of each domain's risk through a network's weights, along directions that all domains share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from domainbed.landscape.domain import CHUNK, Domain
from domainbed.landscape.hessian import Flat, leading_directions

REACH = 1.0  # how far a slice goes, in both directions: as far as the weights themselves are from zero
LINE_POINTS, PLANE_POINTS = 41, 17  # an odd number, so that the weights themselves are among them


@dataclass(frozen=True)
class Slices:
    """Risks around the weights.

    Attributes:
        at: the places along a line, [LINE_POINTS]; 0 is the weights.
        lines: by the direction's name the domains' risks, [domains, LINE_POINTS].
        plane_at: the places along either side of a plane, [PLANE_POINTS].
        planes: by the plane's name ("random directions", "leading curvature" of the mean risk) the domains' risks,
            [domains, PLANE_POINTS, PLANE_POINTS]: the first direction, the second.
    """

    at: torch.Tensor
    lines: dict[str, torch.Tensor]
    plane_at: torch.Tensor
    planes: dict[str, torch.Tensor]


def slices(
    network: nn.Module,
    domains: Sequence[Domain],
    names: Sequence[str],
    n_training: int,
    hessians: Sequence[torch.Tensor] | None = None,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> Slices:
    """Lines along a random direction and along the leading curvature of each domain that was trained on; planes of two
    random directions, and of the two leading ones of these domains' mean risk.

    Random directions are filter-normalised (Li et al., NeurIPS 2018): the entries that belong to one output unit are as
    long as its weights, and biases stay. Directions of curvature are as long as all weights together.

    Args:
        domains, names: all of which risks are wanted, and what they are called; the first `n_training` were trained on.
        hessians: the training domains' whole ones, where they are known already.
        seed: of the random directions.
        tick: called after each risk; there are as many as `n_risks` says.
    """
    of_weights = Flat(network)
    length = of_weights.weights.norm()
    generator = torch.Generator().manual_seed(seed)
    one, other = (filter_normalised(network, generator) for _ in range(2))
    training = domains[:n_training]
    curved = {
        f"leading curvature of {names[i]}": length
        * leading_directions(network, [domain], 1, hessians and hessians[i : i + 1])[:, 0]
        for i, domain in enumerate(training)
    }
    leading = (length * leading_directions(network, training, 2, hessians)).unbind(1)
    at = torch.linspace(-REACH, REACH, LINE_POINTS, dtype=torch.float64)
    plane_at = torch.linspace(-REACH, REACH, PLANE_POINTS, dtype=torch.float64)

    def risks(shifts: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = []
        for domain in domains:
            rows.append([_risk(of_weights, of_weights.weights + shift, domain, tick) for shift in shifts])
        return torch.tensor(rows, dtype=torch.float64)

    def plane(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return risks([a * u + b * v for a in plane_at for b in plane_at]).view(-1, PLANE_POINTS, PLANE_POINTS)

    return Slices(
        at,
        {name: risks([a * direction for a in at]) for name, direction in {"random direction": one, **curved}.items()},
        plane_at,
        {"random directions": plane(one, other), "leading curvature": plane(*leading)},
    )


def n_risks(n_domains: int, n_training: int) -> int:
    """How many risks `slices` computes."""
    return n_domains * ((1 + n_training) * LINE_POINTS + 2 * PLANE_POINTS**2)


def filter_normalised(network: nn.Module, generator: torch.Generator) -> torch.Tensor:
    """A random direction [coordinates], each output unit's part as long as its weights; biases, vectors, stay."""
    parts = []
    for p in network.parameters():
        drawn = torch.randn(p.shape, generator=generator).to(p)
        if p.dim() < 2:
            parts.append(torch.zeros_like(p).flatten())
            continue
        units, lengths = drawn.flatten(1), p.detach().flatten(1).norm(dim=1, keepdim=True)
        parts.append((units * lengths / units.norm(dim=1, keepdim=True)).flatten())
    return torch.cat(parts)


@torch.no_grad()
def _risk(of_weights: Flat, weights: torch.Tensor, domain: Domain, tick: Callable[[], object]) -> float:
    total = sum(of_weights.summed_loss(weights, chunk).double() for chunk in domain.chunks(CHUNK))
    tick()
    return float(total) / len(domain.y)
