"""ERM++: an improved baseline for domain generalization (Teterwak et al., WACV 2025)."""

import torch
from torch.nn import functional as F

from domainbed.algorithms.averaging import WeightAverage
from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    concatenate,
    take_step,
    uses_batch_statistics,
)
from domainbed.algorithms.erm import ERM
from domainbed.errors import UsageError
from domainbed.hparams import MAX_RATE, Hparam, Hparams, power

START = 600  # the first update that is averaged


class ERMPlusPlus(ERM):
    """ERM that trains the head alone at first, and predicts with an average of its weights.

    The first `linear_steps` + 1 updates train the head with learning rate `linear_lr`. If batch norm is not frozen, the
    average's statistics follow those of the batches. The paper's choice of the learning rate and of the number of steps
    by two-stage training is not included.
    """

    HPARAMS = {
        "linear_lr": Hparam(5e-5, power(10, -5, -3.5), above=0, at_most=MAX_RATE),
        "linear_steps": Hparam(500, at_least=0),
        "lars": Hparam(False),
    }

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams["lars"]:
            raise UsageError("lars is not supported (it fails in the published code, too); leave it false")
        self.linear_optimizer = torch.optim.Adam(
            self.classifier.parameters(), lr=hparams["linear_lr"], weight_decay=hparams["weight_decay"]
        )
        self.average = WeightAverage(self.network, START)
        self.has_batch_norm = uses_batch_statistics(self.network.train())
        self.update_count = 0

    @property
    def phase(self) -> str:
        return "head" if self.update_count <= self.hparams["linear_steps"] else "network"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        loss = F.cross_entropy(self.network(x), y)
        take_step(self.linear_optimizer if self.phase == "head" else self.optimizer, loss)
        self.average.add(self.network)
        if self.has_batch_norm:
            self.average.update_batch_norm(x)
        self.update_count += 1
        return {"loss": loss.detach()}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.average(x)
