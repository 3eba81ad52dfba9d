"""Fish (Shi et al., ICLR 2022), Algorithm 1: first-order gradient matching."""

import torch
from torch.nn import functional as F

from domainbed.algorithms.averaging import floating_tensors
from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, take_step
from domainbed.algorithms.erm import ERM
from domainbed.hparams import MAX_RATE, Hparam, one_of


class Fish(ERM):
    """One Adam step per domain, in order, from θ to θ̃; then θ ← θ + meta_lr (θ̃ − θ).

    Adam's moments carry over from update to update. The inner steps modify the network in place and θ is saved, so no
    second network is needed.
    """

    HPARAMS = {"meta_lr": Hparam(0.5, one_of(0.05, 0.1, 0.5), at_least=0, at_most=MAX_RATE)}

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        state = floating_tensors(self.network)
        start = [tensor.detach().clone() for tensor in state]
        losses = []
        for x, y in minibatches:
            loss = F.cross_entropy(self.predict(x), y)
            take_step(self.optimizer, loss)
            losses.append(loss.detach())
        with torch.no_grad():
            for tensor, before in zip(state, start, strict=True):
                tensor.sub_(before).mul_(self.hparams["meta_lr"]).add_(before)
        return {"loss": torch.stack(losses).mean()}
