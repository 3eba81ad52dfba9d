"""V-REx: variance risk extrapolation (Krueger et al., ICML 2021)."""

import torch

from domainbed.algorithms.base import Minibatches, concatenate, domain_risks
from domainbed.algorithms.penalty import PenaltyERM
from domainbed.hparams import Hparam, int_power, power


def variance_of_risks(risks: torch.Tensor) -> torch.Tensor:
    """Return the population variance of the risks [domains], 0-dim."""
    return ((risks - risks.mean()) ** 2).mean()


class VREx(PenaltyERM):
    """ERM with a penalty: the variance of the domains' risks."""

    HPARAMS = {
        "vrex_lambda": Hparam(10.0, power(10, -1, 5), at_least=0),
        "vrex_penalty_anneal_iters": Hparam(500, int_power(10, 0, 4), at_least=0),
    }
    WARM_UP_WEIGHT = 1.0
    WEIGHT = "vrex_lambda"
    ANNEAL_ITERS = "vrex_penalty_anneal_iters"

    def risk_and_penalty(self, minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
        risks = domain_risks(self.predict(concatenate(minibatches)[0]), minibatches)
        return risks.mean(), variance_of_risks(risks)
