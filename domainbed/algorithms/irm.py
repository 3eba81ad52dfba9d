"""Invariant risk minimisation (Arjovsky, Bottou, Gulrajani and Lopez-Paz, 2019): IRMv1."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Minibatch, concatenate, domain_risks, split_by_domain
from domainbed.algorithms.penalty import PenaltyERM


def scale_derivative(
    logits: torch.Tensor,
    labels: torch.Tensor,
    risk: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy,
) -> torch.Tensor:
    """d risk(s · logits, labels) / ds at s = 1, 0-dim: zero where no scaling of the classifier would help."""
    scale = logits.new_ones((), requires_grad=True)
    return torch.autograd.grad(risk(logits * scale, labels), scale, create_graph=True)[0]


class IRM(PenaltyERM):
    """Penalises each domain's squared derivative of the risk with respect to the classifier's scale (IRMv1, section 3).

    The square is estimated without bias, by the product of the derivatives on the even and the odd samples of the
    batch (Appendix D), so it can be negative.
    """

    MIN_BATCH_SIZE = 2
    WARM_UP_WEIGHT = 1.0
    WEIGHT = "irm_lambda"
    ANNEAL_ITERS = "irm_penalty_anneal_iters"

    def risk_and_penalty(self, minibatches: Sequence[Minibatch]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.predict(concatenate(minibatches)[0])
        penalties = [
            scale_derivative(part[::2], y[::2]) * scale_derivative(part[1::2], y[1::2])
            for part, (_, y) in zip(split_by_domain(logits, minibatches), minibatches, strict=True)
        ]
        return domain_risks(logits, minibatches).mean(), torch.stack(penalties).mean()
