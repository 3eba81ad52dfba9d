"""IB-IRM: invariance principle meets information bottleneck (Ahuja et al., NeurIPS 2021)."""

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    concatenate,
    domain_risks,
    split_by_domain,
    take_step,
)
from domainbed.algorithms.ib_erm import InformationBottleneck, feature_variance
from domainbed.algorithms.irm import IRM, irm_penalty
from domainbed.algorithms.penalty import reset_optimizer


class IB_IRM(InformationBottleneck):
    """Penalizes the variance of the features and IRM's derivative; Adam is reset when either weight changes."""

    HPARAMS = {**IRM.HPARAMS, **InformationBottleneck.HPARAMS}

    @property
    def is_irm_penalized(self) -> bool:
        """True once IRM's penalty has its full weight."""
        return self.update_count >= self.hparams["irm_penalty_anneal_iters"]

    @property
    def phase(self) -> str:
        irm = "penalized" if self.is_irm_penalized else "warm-up"
        return f"IRM {irm}, IB {'penalized' if self.is_penalized else 'warm-up'}"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        z = self.featurizer(concatenate(minibatches)[0])
        logits = self.classifier(z)
        nll = domain_risks(logits, minibatches).mean()
        irm = irm_penalty(logits, minibatches)
        bottleneck = feature_variance(split_by_domain(z, minibatches))
        irm_weight = self.hparams["irm_lambda"] if self.is_irm_penalized else 1.0
        loss = nll + irm_weight * irm + self.ib_weight() * bottleneck
        if self.update_count in (self.hparams["irm_penalty_anneal_iters"], self.hparams["ib_penalty_anneal_iters"]):
            reset_optimizer(self.optimizer)
        take_step(self.optimizer, loss)
        self.update_count += 1
        return {
            "loss": loss.detach(),
            "nll": nll.detach(),
            "IRM_penalty": irm.detach(),
            "IB_penalty": bottleneck.detach(),
        }
