"""IB-ERM: invariance principle meets information bottleneck (Ahuja et al., NeurIPS 2021)."""

import torch

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    concatenate,
    domain_risks,
    split_by_domain,
    take_step,
)
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.penalty import reset_optimizer
from domainbed.hparams import Hparam, Hparams, int_power, power


class InformationBottleneck(ERM):
    """ERM with a penalty on the variance of features within domains, from update `ib_penalty_anneal_iters` on."""

    HPARAMS = {
        "ib_lambda": Hparam(100.0, power(10, -1, 5), at_least=0),
        "ib_penalty_anneal_iters": Hparam(500, int_power(10, 0, 4), at_least=0),
    }
    MIN_BATCH_SIZE = 2

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.update_count = 0

    @property
    def is_penalized(self) -> bool:
        """True once the penalty is in the loss."""
        return self.update_count >= self.hparams["ib_penalty_anneal_iters"]

    def ib_weight(self) -> float:
        """Return the penalty's weight in the next update."""
        return self.hparams["ib_lambda"] if self.is_penalized else 0.0


def feature_variance(domains: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over domains and coordinates of the variance (divisor n - 1) of features [n, d], 0-dim."""
    return torch.stack([z.var(0).mean() for z in domains]).mean()


class IB_ERM(InformationBottleneck):
    """Penalizes the variance of the features; Adam is reset when the penalty sets in."""

    @property
    def phase(self) -> str:
        return "penalized" if self.is_penalized else "warm-up"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        z = self.featurizer(concatenate(minibatches)[0])
        nll = domain_risks(self.classifier(z), minibatches).mean()
        penalty = feature_variance(split_by_domain(z, minibatches))
        loss = nll + self.ib_weight() * penalty
        if self.update_count == self.hparams["ib_penalty_anneal_iters"]:
            reset_optimizer(self.optimizer)
        take_step(self.optimizer, loss)
        self.update_count += 1
        return {"loss": loss.detach(), "nll": nll.detach(), "IB_penalty": penalty.detach()}
