"""AND-mask: learning explanations that are hard to vary (Parascandolo et al., ICLR 2021)."""

import torch

from domainbed.algorithms.gradient_masks import MaskedGradientERM
from domainbed.hparams import Hparam, uniform


class ANDMask(MaskedGradientERM):
    """Keeps the coordinates in which |mean over domains of the gradient's sign| is at least tau (1: all agree)."""

    HPARAMS = {"tau": Hparam(1.0, uniform(0.5, 1.0), at_least=0, at_most=1)}

    def mask(self, gradients: torch.Tensor) -> torch.Tensor:
        return (gradients.sign().mean(0).abs() >= self.hparams["tau"]).to(gradients.dtype)
