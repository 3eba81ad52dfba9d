"""Risk extrapolation (Krueger et al., ICML 2021): V-REx."""

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import Minibatch, concatenate, domain_risks
from domainbed.algorithms.penalty import PenaltyERM


def variance_of_risks(risks: torch.Tensor) -> torch.Tensor:
    """The population variance of the domains' risks [domains], 0-dim."""
    return ((risks - risks.mean()) ** 2).mean()


class VREx(PenaltyERM):
    """Penalises the variance of the domains' risks."""

    WARM_UP_WEIGHT = 1.0
    WEIGHT = "vrex_lambda"
    ANNEAL_ITERS = "vrex_penalty_anneal_iters"

    def risk_and_penalty(self, minibatches: Sequence[Minibatch]) -> tuple[torch.Tensor, torch.Tensor]:
        risks = domain_risks(self.predict(concatenate(minibatches)[0]), minibatches)
        return risks.mean(), variance_of_risks(risks)
