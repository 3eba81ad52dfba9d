"""The base class of IRM, V-REx and Fishr: ERM with a penalty that has another weight during a warm-up."""

from typing import ClassVar

import torch

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, take_step
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparams


class PenaltyERM(ERM):
    """ERM that minimizes risk + weight × penalty.

    ANNEAL_ITERS and WEIGHT name two hyperparameters. For the first ANNEAL_ITERS updates, the weight is WARM_UP_WEIGHT;
    then it is WEIGHT. Adam is reset at the switch, because its moments belong to a loss of a different magnitude.
    """

    WARM_UP_WEIGHT: ClassVar[float]
    WEIGHT: ClassVar[str]
    ANNEAL_ITERS: ClassVar[str]

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.update_count = 0

    @property
    def phase(self) -> str:
        return "warm-up" if self.update_count < self.hparams[self.ANNEAL_ITERS] else "penalized"

    def risk_and_penalty(self, minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the risk and the penalty, each 0-dim."""
        raise NotImplementedError(f"{type(self).__name__} does not implement risk_and_penalty")

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        if self.update_count == self.hparams[self.ANNEAL_ITERS]:
            reset_optimizer(self.optimizer)
        risk, penalty = self.risk_and_penalty(minibatches)
        weight = self.WARM_UP_WEIGHT if self.phase == "warm-up" else self.hparams[self.WEIGHT]
        loss = risk + weight * penalty
        take_step(self.optimizer, loss)
        self.update_count += 1
        return {"loss": loss.detach(), "nll": risk.detach(), "penalty": penalty.detach()}


def reset_optimizer(optimizer: torch.optim.Optimizer, lr: float | None = None) -> None:
    """Discard the optimizer's state (moments and step counts); optionally change its learning rate."""
    optimizer.state.clear()
    if lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr
