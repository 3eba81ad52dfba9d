"""Fish (Shi et al., ICLR 2022): gradient matching by a first-order walk through the domains (Algorithm 1)."""

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Minibatch
from domainbed.algorithms.erm import ERM


class Fish(ERM):
    """One Adam step per domain, in order; then θ ← θ + meta_lr (θ̃ − θ), with θ̃ where the steps led.

    Adam's moments carry over from update to update. The inner steps walk on the network itself, and θ is remembered:
    no second network is made.
    """

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor | float]:
        state = [tensor for tensor in self.network.state_dict().values() if tensor.is_floating_point()]
        start = [tensor.clone() for tensor in state]
        losses = []
        for x, y in minibatches:
            loss = F.cross_entropy(self.predict(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        for tensor, before in zip(state, start, strict=True):
            tensor.copy_(before + self.hparams["meta_lr"] * (tensor - before))
        return {"loss": torch.stack(losses).mean()}
