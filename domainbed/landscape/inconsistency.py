"""The inconsistency score of the domains' loss landscapes (Fishr, section 3.2, after Parascandolo et al., ICLR 2021).

I^ε(θ*) is the most that one domain's risk B rises above another's, A, at θ* or at weights around it that A takes for as
good, its own risk being at most ε higher. To the second order about a minimum θ* that is, over pairs (A, B),

    max  R_B(θ*) − R_A(θ*) + max {½ θᵀH_B θ : ½ θᵀH_A θ ≤ ε}  =  R_B(θ*) − R_A(θ*) + ε λ_AB,

with λ_AB the largest generalised eigenvalue of H_B θ = λ H_A θ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ZERO = 1e-10  # an eigenvalue below this part of the largest is rounding: features are computed in float32
DAMPING = 1e-3  # of the largest entry or eigenvalue of H_A, where there must be some


@dataclass(frozen=True)
class Ratios:
    """How much the curvature of one domain can be larger than that of another.

    Attributes:
        ratios: λ_AB, [A, B].
        damping: what was added to the diagonal of each H_A to make it positive definite, [A]; 0 where it is.
    """

    ratios: torch.Tensor
    damping: torch.Tensor


@dataclass(frozen=True)
class Inconsistency:
    """The score, and where it is taken.

    Attributes:
        score: I^ε.
        pair: the domains (A, B) where the maximum is.
        risk_gap: R_B − R_A of these.
        ratio: λ_AB of these; score = risk_gap + ε ratio.
    """

    score: float
    pair: tuple[int, int]
    risk_gap: float
    ratio: float


def exact_ratios(hessians: Sequence[torch.Tensor]) -> Ratios:
    """From whole Hessians [coordinates, coordinates], as generalised eigenvalue problems.

    Directions in which no domain's risk changes (the same added to all classes) are left out where no Hessian has a
    negative eigenvalue. An H_A that has no positive curvature in some other direction is damped: its diagonal is raised
    until the least eigenvalue is DAMPING times the largest.
    """
    stacked = torch.stack(list(hessians)).double().cpu()
    eigenvalues = torch.linalg.eigvalsh(stacked)
    largest = eigenvalues[:, -1].clamp(min=0)
    if (eigenvalues[:, 0] >= -ZERO * largest).all():
        values, vectors = torch.linalg.eigh(stacked.mean(0))
        basis = vectors[:, values > ZERO * values[-1]]
        stacked = basis.T @ stacked @ basis
        eigenvalues = torch.linalg.eigvalsh(stacked)
    if not stacked.shape[1]:  # no risk changes anywhere
        return Ratios(stacked.new_zeros(len(stacked), len(stacked)), stacked.new_zeros(len(stacked)))
    damping = _damping(eigenvalues[:, 0], largest)
    values, vectors = torch.linalg.eigh(stacked)
    whitened = vectors / (values + damping[:, None])[:, None].sqrt()  # of A; H_A becomes the identity
    ratios = [torch.linalg.eigvalsh(to_a.T @ stacked @ to_a)[:, -1] for to_a in whitened]
    return Ratios(torch.stack(ratios).clamp(min=0), damping)  # θ = 0 is allowed


def diagonal_ratios(diagonals: Sequence[torch.Tensor]) -> Ratios:
    """The same where Hessians are taken for diagonal, [coordinates] each: the largest ratio of two entries."""
    stacked = torch.stack(list(diagonals)).double().cpu()
    largest = stacked.amax(1).clamp(min=0)
    stacked = stacked[:, (stacked.abs() > ZERO * largest.max()).any(0)]  # coordinates that matter to any domain
    if not stacked.shape[1]:
        return Ratios(stacked.new_zeros(len(stacked), len(stacked)), stacked.new_zeros(len(stacked)))
    damping = _damping(stacked.amin(1), largest)
    ratios = (stacked[None] / (stacked + damping[:, None])[:, None]).amax(2)
    return Ratios(ratios.clamp(min=0), damping)


def inconsistency(risks: Sequence[float], ratios: torch.Tensor, epsilon: float) -> Inconsistency:
    """The score over all pairs of two domains.

    Args:
        risks: R of each domain at θ*.
        ratios: λ_AB [A, B], from one of the functions above.
        epsilon: how much higher than at θ* domain A's risk may be; at least 0.

    Raises:
        ValueError: there are less than two domains.
    """
    if len(risks) < 2:
        raise ValueError("inconsistency is between domains; there is but one")
    risk = torch.tensor(list(risks), dtype=torch.float64)
    gaps = risk[None, :] - risk[:, None]  # [A, B]
    scores = (gaps + epsilon * ratios.to(gaps)).fill_diagonal_(-torch.inf)
    a, b = divmod(int(scores.argmax()), len(risk))
    return Inconsistency(scores[a, b].item(), (a, b), gaps[a, b].item(), ratios[a, b].item())


def _damping(least: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """What to add to eigenvalues of which these are the extremes, so that all are positive."""
    floor = DAMPING * largest
    floor = torch.where(floor > 0, floor, floor.new_tensor(DAMPING))  # a domain whose risk is flat everywhere
    return torch.where(least > ZERO * largest.clamp(min=torch.finfo(largest.dtype).tiny), 0.0, floor - least)
