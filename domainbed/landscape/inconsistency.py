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
FLOOR = 1e-6  # what H_A's least eigenvalue must be, as a part of its largest; otherwise H_A is damped


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
        damping: of H_A. Where it is not 0, some direction costs A nothing, or less than nothing: without damping there
            may be no limit to the score, which is then as large as the damping is small.
    """

    score: float
    pair: tuple[int, int]
    risk_gap: float
    ratio: float
    damping: float


def inconsistency(risks: Sequence[float], ratios: Ratios, epsilon: float) -> Inconsistency:
    """The score over all pairs of two domains.

    Args:
        risks: R of each domain at θ*.
        ratios: of the same domains, from one of the functions below.
        epsilon: how much higher than at θ* domain A's risk may be; at least 0.

    Raises:
        ValueError: there are less than two domains.
    """
    if len(risks) < 2:
        raise ValueError("inconsistency is between domains; there is but one")
    risk = torch.tensor(list(risks), dtype=torch.float64)
    gaps = risk[None, :] - risk[:, None]  # [A, B]
    scores = (gaps + epsilon * ratios.ratios).fill_diagonal_(-torch.inf)
    a, b = divmod(int(scores.argmax()), len(risk))
    return Inconsistency(
        scores[a, b].item(), (a, b), gaps[a, b].item(), ratios.ratios[a, b].item(), ratios.damping[a].item()
    )


def inconsistencies(
    risks: Sequence[float],
    hessians: Sequence[torch.Tensor] | None,
    diagonals: Sequence[torch.Tensor],
    n_training: int,
    epsilon: float,
) -> dict[tuple[str, str], Inconsistency]:
    """The scores between the training domains, and between all, by ("training" or "all", "exact" or "diagonal").

    Args:
        risks, diagonals: of each domain, those that were trained on first; see `inconsistency`, `diagonal_ratios`.
        hessians: see `exact_ratios`; None where they are too large, and then there is no exact score.
        n_training: how many were trained on; with one, there is no score between training domains.
    """
    found = {}
    for of, n in (("training", n_training), ("all", len(risks))):
        if n > 1:  # each set by itself: which directions count, and what is damped, depends on all that are in it
            if hessians is not None:
                found[of, "exact"] = inconsistency(risks[:n], exact_ratios(hessians[:n]), epsilon)
            found[of, "diagonal"] = inconsistency(risks[:n], diagonal_ratios(diagonals[:n]), epsilon)
    return found


def exact_ratios(hessians: Sequence[torch.Tensor]) -> Ratios:
    """From whole Hessians [coordinates, coordinates], as generalised eigenvalue problems.

    Directions in which no domain's risk changes (the same added to all classes) are left out where no Hessian has a
    negative eigenvalue.
    """
    stacked = torch.stack(list(hessians)).double().cpu()
    eigenvalues = torch.linalg.eigvalsh(stacked)
    scale = eigenvalues.abs().amax(1)
    if (eigenvalues[:, 0] >= -ZERO * scale).all():
        values, vectors = torch.linalg.eigh(stacked.mean(0))
        basis = vectors[:, values > ZERO * values[-1]]
        stacked = basis.T @ stacked @ basis
    if not stacked.shape[1]:  # no risk changes anywhere
        return _nothing(len(stacked))
    values, vectors = torch.linalg.eigh(stacked)
    damping = _damping(values[:, 0], scale)
    whitened = vectors / (values + damping[:, None])[:, None].sqrt()  # of A; H_A becomes the identity
    ratios = [torch.linalg.eigvalsh(to_a.T @ stacked @ to_a)[:, -1] for to_a in whitened]
    return Ratios(torch.stack(ratios).clamp(min=0), damping)  # θ = 0 is allowed


def diagonal_ratios(diagonals: Sequence[torch.Tensor]) -> Ratios:
    """The same where Hessians are taken for diagonal, [coordinates] each: the largest ratio of two entries."""
    stacked = torch.stack(list(diagonals)).double().cpu()
    scale = stacked.abs().amax(1)
    stacked = stacked[:, (stacked.abs() > ZERO * scale.max()).any(0)]  # coordinates that matter to any domain
    if not stacked.shape[1]:
        return _nothing(len(stacked))
    damping = _damping(stacked.amin(1), scale)
    ratios = (stacked[None] / (stacked + damping[:, None])[:, None]).amax(2)
    return Ratios(ratios.clamp(min=0), damping)


def _damping(least: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What to add to each domain's eigenvalues, of which these are the least and the largest size."""
    floor = FLOOR * torch.where(scale > 0, scale, scale.max())  # a domain's risk may be flat everywhere
    return (floor - least).clamp(min=0)


def _nothing(n: int) -> Ratios:
    return Ratios(torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))
