"""Empirical risk minimization (Vapnik, 1998): the baseline that ignores domains."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import Algorithm, Metrics, Minibatches, Unlabeled, concatenate, take_step
from domainbed.hparams import Hparams


class ERM(Algorithm):
    """Minimization of the cross-entropy over the images of all domains with Adam."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, is_nonlinear=hparams["nonlinear_classifier"]
        )
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"]
        )

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        loss = F.cross_entropy(self.predict(x), y)
        take_step(self.optimizer, loss)
        return {"loss": loss.detach()}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)
