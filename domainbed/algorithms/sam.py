"""SAM: sharpness-aware minimization (Foret, Kleiner, Mobahi and Neyshabur, ICLR 2021)."""

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    concatenate,
    gradients_of,
    take_step_along,
    trained_parameters,
)
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, one_of


def gradient_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Return the norm of gradients as one vector, 0-dim."""
    return torch.stack(torch._foreach_norm(gradients)).norm()


class PerturbedERM(ERM):
    """ERM that uses the gradient at perturbed weights: the base class of SAM and SAGM."""

    def gradients_at_perturbed_weights(
        self, x: torch.Tensor, y: torch.Tensor, gradients: list[torch.Tensor], scale: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the gradients and the loss at θ + scale × gradients; the weights stay at θ."""
        parameters: list[torch.Tensor] = [*trained_parameters(self.network)]
        with torch.no_grad():
            weights = [p.clone() for p in parameters]
            for p, gradient in zip(parameters, gradients, strict=True):
                p.add_(scale * gradient)
        loss = F.cross_entropy(self.network(x), y)
        perturbed = gradients_of(loss, parameters)
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
        return perturbed, loss.detach()


class SAM(PerturbedERM):
    """Minimizes the loss at the worst weights within a radius `rho`, to first order. "loss" is the loss there."""

    HPARAMS = {"rho": Hparam(0.05, one_of(0.01, 0.02, 0.05, 0.1), at_least=0)}

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        gradients = gradients_of(F.cross_entropy(self.network(x), y), trained_parameters(self.network))
        norm = gradient_norm(gradients)
        scale = self.hparams["rho"] / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        perturbed, loss = self.gradients_at_perturbed_weights(x, y, gradients, scale)
        take_step_along(self.optimizer, dict(zip(trained_parameters(self.network), perturbed, strict=True)))
        return {"loss": loss}
