"""Slices of each domain's risk through a network's weights, along directions shared by all domains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from domainbed.landscape.domain import CHUNK_SIZE, Domain
from domainbed.landscape.hessian import FlatNetwork, leading_directions
from domainbed.terminal import ProgressBar

LINE_POINTS, PLANE_POINTS = 41, 17  # odd numbers, to include the weights themselves


@dataclass(frozen=True)
class Slices:
    """Risks along lines and in planes through the weights. Position 0 is the weights themselves.

    Attributes:
        line_positions: from -1 to 1, [LINE_POINTS].
        lines: risks [domains, LINE_POINTS], by direction.
        plane_positions: positions along both sides of a plane, from -1 to 1, [PLANE_POINTS].
        planes: risks [domains, PLANE_POINTS, PLANE_POINTS] (first direction, second direction), by plane: "random
            directions", or "leading curvature" of the training domains' mean risk.
    """

    line_positions: torch.Tensor
    lines: dict[str, torch.Tensor]
    plane_positions: torch.Tensor
    planes: dict[str, torch.Tensor]


def compute_slices(
    network: nn.Module,
    domains: Sequence[Domain],
    names: Sequence[str],
    n_training: int,
    hessians: Sequence[torch.Tensor] | None = None,
    seed: int = 0,
) -> Slices:
    """Compute the risks along lines and in planes.

    There is a line along a random direction and one along the leading curvature direction of each training domain; the
    planes are spanned by two random directions, and by the two leading curvature directions of the training domains'
    mean risk. Random directions are filter-normalized (Li et al., NeurIPS 2018); curvature directions have the norm of
    the weights.

    Args:
        network: the slices cross at its weights.
        domains: samples of each domain, training domains first.
        names: name of each domain.
        hessians: full Hessians of the training domains, if they have been computed.
    """
    flat = FlatNetwork(network)
    norm = flat.weights.norm()
    generator = torch.Generator().manual_seed(seed)
    random_directions = [filter_normalized_direction(network, generator) for _ in range(2)]
    training = domains[:n_training]
    directions = {"random direction": random_directions[0]}
    for i, domain in enumerate(training):
        leading = leading_directions(network, [domain], 1, hessians and hessians[i : i + 1])[:, 0]
        directions[f"leading curvature of {names[i]}"] = norm * leading
    leading_pair = (norm * leading_directions(network, training, 2, hessians)).unbind(1)
    line_positions = torch.linspace(-1, 1, LINE_POINTS, dtype=torch.float64)
    plane_positions = torch.linspace(-1, 1, PLANE_POINTS, dtype=torch.float64)

    n_risks = len(domains) * (len(directions) * LINE_POINTS + 2 * PLANE_POINTS**2)
    bar = ProgressBar(total=n_risks, desc="slices", unit="risk", leave=False)

    @torch.no_grad()
    def risk(weights: torch.Tensor, domain: Domain) -> float:
        total = sum(flat.summed_loss(weights, chunk).double() for chunk in domain.split(CHUNK_SIZE))
        bar.update()
        return float(total) / len(domain.y)

    def risks(shifts: Iterable[torch.Tensor]) -> torch.Tensor:
        columns = []
        for shift in shifts:  # one at a time: all of them would not fit into memory for a large network
            weights = flat.weights + shift
            columns.append([risk(weights, domain) for domain in domains])
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()

    def plane(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        shifts = (a * u + b * v for a in plane_positions for b in plane_positions)
        return risks(shifts).view(-1, PLANE_POINTS, PLANE_POINTS)

    with bar:
        return Slices(
            line_positions,
            {name: risks(a * direction for a in line_positions) for name, direction in directions.items()},
            plane_positions,
            {"random directions": plane(*random_directions), "leading curvature": plane(*leading_pair)},
        )


def filter_normalized_direction(network: nn.Module, generator: torch.Generator) -> torch.Tensor:
    """Return a random direction [coordinates] in which each output unit has the norm of the unit's weights.

    The direction is zero for biases and other vectors.
    """
    parts = []
    for p in network.parameters():
        sample = torch.randn(p.shape, generator=generator).to(p)
        if p.dim() < 2:
            parts.append(torch.zeros_like(p).flatten())
            continue
        units, norms = sample.flatten(1), p.detach().flatten(1).norm(dim=1, keepdim=True)
        parts.append((units * norms / units.norm(dim=1, keepdim=True)).flatten())
    return torch.cat(parts)
