"""What IRM, V-REx and Fishr share: a penalty beside the risk whose weight jumps once, early in training."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from domainbed.algorithms.base import Minibatch
from domainbed.algorithms.erm import ERM
from domainbed.hparams_registry import Hparams


class PenaltyERM(ERM):
    """ERM that minimises risk + weight × penalty.

    For the first so many updates as the hyperparameter named ANNEAL_ITERS says, the weight is WARM_UP_WEIGHT; then it
    is the hyperparameter named WEIGHT. In between Adam is made anew, because its moments belong to a loss of another
    magnitude.
    """

    WARM_UP_WEIGHT: ClassVar[float]
    WEIGHT: ClassVar[str]
    ANNEAL_ITERS: ClassVar[str]

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.update_count = 0

    @property
    def phase(self) -> str:
        return "warm-up" if self.update_count < self.hparams[self.ANNEAL_ITERS] else "penalised"

    def risk_and_penalty(self, minibatches: Sequence[Minibatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """The risk and the penalty on a batch of every domain, each 0-dim."""
        raise NotImplementedError(f"{type(self).__name__} has no risk_and_penalty")

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor | float]:
        if self.update_count == self.hparams[self.ANNEAL_ITERS]:
            self.optimizer.state.clear()  # Adam as it was made
        risk, penalty = self.risk_and_penalty(minibatches)
        weight = self.WARM_UP_WEIGHT if self.phase == "warm-up" else self.hparams[self.WEIGHT]
        loss = risk + weight * penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.update_count += 1
        return {"loss": loss.detach(), "nll": risk.detach(), "penalty": penalty.detach()}
