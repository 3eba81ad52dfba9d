"""The inconsistency score of the domains' loss landscapes (Fishr, section 3.2; Parascandolo et al., ICLR 2021).

I^ε(θ*) is the maximum, over pairs of domains (A, B), of the difference between the risk R_B at weights around θ* that
raise R_A by at most ε, and the risk R_A at θ*. In the second-order approximation around a minimum θ* it equals

    max  R_B(θ*) − R_A(θ*) + max {½ θᵀH_B θ : ½ θᵀH_A θ ≤ ε}  =  R_B(θ*) − R_A(θ*) + ε λ_AB,

where λ_AB is the largest generalized eigenvalue of H_B θ = λ H_A θ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Relative to the largest eigenvalue. Smaller eigenvalues are rounding errors: features are computed in float32.
ZERO_EIGENVALUE = 1e-10
MIN_EIGENVALUE = 1e-6  # relative to the largest eigenvalue; if H_A has a smaller one, it is damped


@dataclass(frozen=True)
class CurvatureRatios:
    """The largest ratios between the curvatures of two domains.

    Attributes:
        ratios: λ_AB, [A, B].
        damping: value added to the diagonal of H_A to make it positive definite, [A]; 0 if it already is.
    """

    ratios: torch.Tensor
    damping: torch.Tensor


@dataclass(frozen=True)
class Inconsistency:
    """An inconsistency score, and the pair of domains at which the maximum is attained.

    Attributes:
        score: I^ε = risk_gap + ε ratio.
        pair: the domains (A, B).
        risk_gap: R_B − R_A.
        ratio: λ_AB.
        damping: damping of H_A. If it is not 0, some direction does not increase the risk of A to second order; the
            undamped score may be unbounded, and the damped one grows as the damping shrinks.
    """

    score: float
    pair: tuple[int, int]
    risk_gap: float
    ratio: float
    damping: float


def inconsistency_score(risks: Sequence[float], ratios: CurvatureRatios, epsilon: float) -> Inconsistency:
    """Return the largest score over all pairs of domains.

    Args:
        risks: risk of each domain at θ*.
        ratios: curvature ratios of the same domains.
        epsilon: allowed increase of domain A's risk; at least 0.

    Raises:
        ValueError: there are fewer than two domains.
    """
    if len(risks) < 2:
        raise ValueError("the inconsistency score requires at least two domains")
    risk = torch.tensor(list(risks), dtype=torch.float64)
    gaps = risk[None, :] - risk[:, None]  # [A, B]
    scores = (gaps + epsilon * ratios.ratios).fill_diagonal_(-torch.inf)
    a, b = divmod(int(scores.argmax()), len(risk))
    return Inconsistency(
        scores[a, b].item(), (a, b), gaps[a, b].item(), ratios.ratios[a, b].item(), ratios.damping[a].item()
    )


def inconsistency_scores(
    risks: Sequence[float],
    hessians: Sequence[torch.Tensor] | None,
    diagonals: Sequence[torch.Tensor],
    n_training: int,
    epsilon: float,
) -> dict[tuple[str, str], Inconsistency]:
    """Return the scores among the training domains and among all domains, with exact and diagonal Hessians.

    Args:
        risks: risk of each domain, training domains first.
        hessians: full Hessian of each domain, or None to compute no exact scores.
        diagonals: Hessian diagonal of each domain.
        n_training: number of training domains; with a single one there is no score among training domains.
        epsilon: allowed increase of a domain's risk.

    Returns:
        The scores by ("training" or "all", "exact" or "diagonal").
    """
    scores = {}
    for domain_set, n in (("training", n_training), ("all", len(risks))):
        if n > 1:  # each set on its own: its members decide which directions count and what is damped
            if hessians is not None:
                scores[domain_set, "exact"] = inconsistency_score(risks[:n], exact_ratios(hessians[:n]), epsilon)
            scores[domain_set, "diagonal"] = inconsistency_score(risks[:n], diagonal_ratios(diagonals[:n]), epsilon)
    return scores


def exact_ratios(hessians: Sequence[torch.Tensor]) -> CurvatureRatios:
    """Return the ratios for full Hessians [coordinates, coordinates], as generalized eigenvalues.

    If no Hessian has a negative eigenvalue, directions in which no domain's risk changes are excluded (e.g. adding a
    constant to the logits of all classes).
    """
    stacked = torch.stack(list(hessians)).double().cpu()
    eigenvalues = torch.linalg.eigvalsh(stacked)
    scale = eigenvalues.abs().amax(1)
    if (eigenvalues[:, 0] >= -ZERO_EIGENVALUE * scale).all():
        values, vectors = torch.linalg.eigh(stacked.mean(0))
        basis = vectors[:, values > ZERO_EIGENVALUE * values[-1]]
        stacked = basis.T @ stacked @ basis
    if not stacked.shape[1]:  # all risks are flat
        return _zero_ratios(len(stacked))
    values, vectors = torch.linalg.eigh(stacked)
    damping = _damping(values[:, 0], scale)
    # These vectors turn H_A into the identity.
    whitening = vectors / (values + damping[:, None])[:, None].sqrt()
    ratios = [torch.linalg.eigvalsh(whiten_a.T @ stacked @ whiten_a)[:, -1] for whiten_a in whitening]
    return CurvatureRatios(torch.stack(ratios).clamp(min=0), damping)  # θ = 0 is feasible


def diagonal_ratios(diagonals: Sequence[torch.Tensor]) -> CurvatureRatios:
    """Return the ratios for diagonal Hessians, [coordinates] each: the largest ratios of two entries."""
    stacked = torch.stack(list(diagonals)).double().cpu()
    scale = stacked.abs().amax(1)
    stacked = stacked[:, (stacked.abs() > ZERO_EIGENVALUE * scale.max()).any(0)]  # exclude flat coordinates
    if not stacked.shape[1]:
        return _zero_ratios(len(stacked))
    damping = _damping(stacked.amin(1), scale)
    ratios = (stacked[None] / (stacked + damping[:, None])[:, None]).amax(2)
    return CurvatureRatios(ratios.clamp(min=0), damping)


def _damping(smallest: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the damping of each domain from its smallest eigenvalue and its largest absolute eigenvalue."""
    floor = MIN_EIGENVALUE * torch.where(scale > 0, scale, scale.max())  # a domain's risk may be flat
    return (floor - smallest).clamp(min=0)


def _zero_ratios(n: int) -> CurvatureRatios:
    return CurvatureRatios(torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))
