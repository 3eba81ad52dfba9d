"""SelfReg: self-supervised contrastive regularization (Kim, Yoo, Park, Kim and Lee, ICCV 2021)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, take_step
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparams

FEATURE_WEIGHT = 0.3


class SelfReg(ERM):
    """Pulls logits and features of samples of the same class, over all domains, toward each other.

    Samples are compared with a random partner of their class and with a mixture of two partners; features are compared
    with the output of a projector. As in the published code, the projector keeps its initial weights, and the paper's
    inter-domain curriculum and weight averaging are absent.
    """

    MIN_BATCH_SIZE = 2

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        d = self.featurizer.n_outputs
        hidden = d if d == 2048 else 2 * d
        self.projector = nn.Sequential(
            nn.Linear(d, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, d),
            nn.BatchNorm1d(d),
        )
        self.projector.requires_grad_(False)

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        order = y.argsort(stable=True)
        z, y = self.featurizer(x)[order], y[order]
        logits, projected = self.classifier(z), self.projector(z)
        # Sorting label + U(0, 1) permutes the samples within each class.
        partner, other = ((y + torch.rand(len(y), device=y.device, dtype=torch.float64)).argsort() for _ in range(2))
        lam = (math.pi / 2 * torch.rand((), device=y.device, dtype=z.dtype)).sin() ** 2  # Beta(1/2, 1/2)

        def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            mixed = torch.lerp(b[other], b[partner], lam)
            return lam * F.mse_loss(a, b[partner]) + (1 - lam) * F.mse_loss(a, mixed)

        nll = F.cross_entropy(logits, y)
        penalty = distance(logits, logits) + FEATURE_WEIGHT * distance(z, projected)
        loss = nll + nll.detach().clamp(max=1) * penalty
        take_step(self.optimizer, loss)
        return {"loss": loss.detach(), "nll": nll.detach(), "penalty": penalty.detach()}
