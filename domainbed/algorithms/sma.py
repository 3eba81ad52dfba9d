"""SMA: simple moving average, of Ensemble of Averages (Arpit, Wang, Zhou and Xiong, NeurIPS 2022)."""

import torch
from torch.nn import functional as F

from domainbed.algorithms.averaging import WeightAverage
from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, take_step
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparams

START = 100  # the first update that is averaged


class SMA(ERM):
    """ERM that predicts with the uniform mean of its weights over all updates since the 99th."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.average = WeightAverage(self.network, START)

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        loss = F.cross_entropy(self.network(x), y)
        take_step(self.optimizer, loss)
        self.average.add(self.network)
        return {"loss": loss.detach()}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.average(x)
