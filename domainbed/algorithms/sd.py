"""SD: spectral decoupling (Pezeshki et al., "Gradient Starvation", NeurIPS 2021)."""

from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, take_step
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, power


class SD(ERM):
    """Penalizes the mean square of the logits. The metric "loss" is the cross-entropy alone, as published."""

    HPARAMS = {"sd_reg": Hparam(0.1, power(10, -5, -1), at_least=0)}

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        logits = self.predict(x)
        nll = F.cross_entropy(logits, y)
        penalty = (logits**2).mean()
        take_step(self.optimizer, nll + self.hparams["sd_reg"] * penalty)
        return {"loss": nll.detach(), "penalty": penalty.detach()}
