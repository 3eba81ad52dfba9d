"""The base class of AND-mask and SAND-mask: ERM whose gradients are masked where the domains disagree."""

import torch

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    gradients_of,
    separate_risks,
    take_step_along,
    trained_parameters,
)
from domainbed.algorithms.erm import ERM


class MaskedGradientERM(ERM):
    """ERM that steps along the mean of the domains' gradients, multiplied by a mask and divided by the mask's mean."""

    SUPPORTS_COMPILATION = False  # compiled code may free what a kept graph needs

    def mask(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return the mask […] of the gradients [domains, …] of one parameter."""
        raise NotImplementedError(f"{type(self).__name__} does not implement mask")

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        risks = separate_risks(self.network, minibatches)
        parameters = trained_parameters(self.network)
        gradients = [gradients_of(risk, parameters, retain_graph=True) for risk in risks]
        masked = {}
        for parameter, *of_domains in zip(parameters, *gradients, strict=True):
            stacked = torch.stack(of_domains)
            mask = self.mask(stacked)
            masked[parameter] = mask * stacked.mean(0) / (1e-10 + mask.mean())
        take_step_along(self.optimizer, masked)
        return {"loss": torch.stack(risks).mean().detach()}
