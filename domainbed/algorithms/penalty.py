"""What IRM, V-REx and Fishr share: a penalty beside the risk whose weight jumps once, early in training."""

from collections.abc import Mapping, Sequence

import torch

from domainbed.algorithms.base import Minibatch
from domainbed.algorithms.erm import ERM
from domainbed.hparams_registry import Hparams


class PenaltyERM(ERM):
    """ERM that minimises risk + weight × penalty.

    Before update `anneal_iters` (counted from 0) the weight is `weight_before`, from then on `weight_after`. At that
    update Adam starts anew, because its moments belong to a loss of another magnitude.

    Args:
        anneal_iters, weight_before, weight_after: see above; the others are those of every algorithm.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        num_domains: int,
        hparams: Hparams,
        *,
        anneal_iters: int,
        weight_before: float,
        weight_after: float,
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.anneal_iters = anneal_iters
        self.weights = {"warm-up": weight_before, "penalised": weight_after}
        self.update_count = 0

    @property
    def phase(self) -> str:
        return "warm-up" if self.update_count < self.anneal_iters else "penalised"

    def risk_and_penalty(self, minibatches: Sequence[Minibatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """The risk and the penalty on a batch of every domain, each 0-dim."""
        raise NotImplementedError(f"{type(self).__name__} has no risk_and_penalty")

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor | float]:
        if self.update_count == self.anneal_iters:
            self.optimizer.state.clear()  # Adam as it was made
        risk, penalty = self.risk_and_penalty(minibatches)
        loss = risk + self.weights[self.phase] * penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.update_count += 1
        return {"loss": loss.detach(), "nll": risk.detach(), "penalty": penalty.detach()}
