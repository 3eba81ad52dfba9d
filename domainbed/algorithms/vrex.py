"""Risk extrapolation (Krueger et al., ICML 2021): V-REx."""

from collections.abc import Sequence

import torch

from domainbed.algorithms.base import Minibatch, all_domains, domain_risks
from domainbed.algorithms.penalty import PenaltyERM
from domainbed.hparams_registry import Hparams


def variance_of_risks(risks: torch.Tensor) -> torch.Tensor:
    """The population variance of the domains' risks [domains] (equation 8), 0-dim."""
    return ((risks - risks.mean()) ** 2).mean()


class VREx(PenaltyERM):
    """Penalises the variance of the domains' risks."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(
            input_shape,
            num_classes,
            num_domains,
            hparams,
            anneal_iters=hparams["vrex_penalty_anneal_iters"],
            weight_before=1.0,
            weight_after=hparams["vrex_lambda"],
        )

    def risk_and_penalty(self, minibatches: Sequence[Minibatch]) -> tuple[torch.Tensor, torch.Tensor]:
        risks = domain_risks(self.predict(all_domains(minibatches)[0]), minibatches)
        return risks.mean(), variance_of_risks(risks)
