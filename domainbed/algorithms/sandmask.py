"""SAND-mask: smoothed AND-mask (Shahtalebi et al., 2021)."""

import torch

from domainbed.algorithms.gradient_masks import MaskedGradientERM
from domainbed.hparams import Hparam, power, uniform


class SANDMask(MaskedGradientERM):
    """Weights coordinates by max(0, tanh(k (|mean sign| − tau) / variance of the gradient over domains)).

    With the published default tau = 1 the mask is zero everywhere, so nothing is learned.
    """

    HPARAMS = {
        "tau": Hparam(1.0, uniform(0.0, 1.0), at_least=0, at_most=1),
        "k": Hparam(10.0, power(10, -3, 5), at_least=0),
    }

    @property
    def caveat(self) -> str:
        return (
            "with tau = 1, its default, no gradient passes the mask and nothing is learned"
            if self.hparams["tau"] >= 1
            else ""
        )

    def mask(self, gradients: torch.Tensor) -> torch.Tensor:
        agreement = gradients.sign().mean(0).abs() - self.hparams["tau"]
        if len(gradients) > 1:  # not gradients.var(0), which is 30 times slower on a CPU
            variance = (gradients - gradients.mean(0)).square().sum(0) / (len(gradients) - 1)
        else:
            variance = torch.full_like(agreement, 1e-17)
        return (self.hparams["k"] * agreement / variance).nan_to_num(nan=1e-17).tanh().clamp(min=0)
