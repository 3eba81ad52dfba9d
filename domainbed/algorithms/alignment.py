"""The base class of CORAL, MMD and CausIRL: ERM with a penalty on a distance between the features of the domains."""

import torch

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    domain_risks,
    outputs_by_domain,
    split_by_domain,
    take_step,
)
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, power


class AlignmentERM(ERM):
    """ERM with a penalty, of weight `mmd_gamma`, on a distance between the features of the domains."""

    HPARAMS = {"mmd_gamma": Hparam(1.0, power(10, -1, 1), at_least=0)}

    def distance(self, domains: list[torch.Tensor]) -> torch.Tensor | None:
        """Return the distance between features [n, d] of each domain, 0-dim; None if there is nothing to compare."""
        raise NotImplementedError(f"{type(self).__name__} does not implement distance")

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        z = outputs_by_domain(self.featurizer, minibatches)
        risk = domain_risks(self.classifier(z), minibatches).mean()
        penalty = self.distance(split_by_domain(z, minibatches))
        if penalty is None:
            penalty = torch.zeros_like(risk)
        loss = risk + self.hparams["mmd_gamma"] * penalty
        take_step(self.optimizer, loss)
        return {"loss": loss.detach(), "nll": risk.detach(), "penalty": penalty.detach()}
