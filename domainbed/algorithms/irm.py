"""IRMv1: invariant risk minimization (Arjovsky, Bottou, Gulrajani and Lopez-Paz, 2019)."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Minibatches, concatenate, domain_risks, split_by_domain
from domainbed.algorithms.penalty import PenaltyERM
from domainbed.hparams import Hparam, int_power, power


def scale_derivative(
    logits: torch.Tensor,
    labels: torch.Tensor,
    risk: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy,
) -> torch.Tensor:
    """Return d risk(s · logits, labels) / ds at s = 1, 0-dim; it is zero if rescaling cannot reduce the risk."""
    scale = logits.new_ones((), requires_grad=True)
    return torch.autograd.grad(risk(logits * scale, labels), scale, create_graph=True)[0]


def irm_penalty(logits: torch.Tensor, minibatches: Minibatches) -> torch.Tensor:
    """Return the mean over domains of the estimated squared scale derivative, 0-dim, from the logits of all images."""
    penalties = [
        scale_derivative(part[::2], y[::2]) * scale_derivative(part[1::2], y[1::2])
        for part, (_, y) in zip(split_by_domain(logits, minibatches), minibatches, strict=True)
    ]
    return torch.stack(penalties).mean()


class IRM(PenaltyERM):
    """ERM with a penalty: the squared derivatives of the domains' risks with respect to the scale of the logits.

    As in Appendix D, the square is estimated without bias, as the product of the derivatives over the even and the odd
    samples of the batch, so it can be negative.
    """

    HPARAMS = {
        "irm_lambda": Hparam(100.0, power(10, -1, 5), at_least=0),
        "irm_penalty_anneal_iters": Hparam(500, int_power(10, 0, 4), at_least=0),
    }
    MIN_BATCH_SIZE = 2
    WARM_UP_WEIGHT = 1.0
    WEIGHT = "irm_lambda"
    ANNEAL_ITERS = "irm_penalty_anneal_iters"

    def risk_and_penalty(self, minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.predict(concatenate(minibatches)[0])
        return domain_risks(logits, minibatches).mean(), irm_penalty(logits, minibatches)
