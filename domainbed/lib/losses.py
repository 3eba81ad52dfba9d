"""The optimizer of DomainBed's ERM++ and the loss of its ADRMX."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from domainbed.algorithms.adrmx import contrastive_loss


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: mu ← momentum mu + q (g + weight_decay p), p ← p - lr mu.

    q = trust_coefficient ‖p‖ / ‖g + weight_decay p‖; parameters of one dimension have q = 1 and no weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    ratio = group["trust_coefficient"] * p.norm() / update.norm()
                    update = update * torch.where((p.norm() > 0) & (update.norm() > 0), ratio, 1.0)
                mu = self.state[p].setdefault("mu", torch.zeros_like(p))
                mu.mul_(group["momentum"]).add_(update)
                p.add_(mu, alpha=-group["lr"])


class SupConLossLambda(nn.Module):
    """The supervised contrastive loss of ADRMX, with weight `lamda` within and 1 - `lamda` between domains."""

    def __init__(self, lamda: float = 0.5, temperature: float = 0.07) -> None:
        super().__init__()
        self.lamda = lamda
        self.temperature = temperature

    def forward(self, features: torch.Tensor, labels: torch.Tensor, domain_labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of features [n, d], 0-dim."""
        return contrastive_loss(features, labels, domain_labels, self.lamda, self.temperature)
