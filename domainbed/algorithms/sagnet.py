"""SagNet: reducing domain gap by reducing style bias (Nam, Lee, Park, Yoon and Yoo, CVPR 2021)."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import (
    Algorithm,
    Metrics,
    Minibatches,
    Unlabeled,
    concatenate,
    random_permutation,
    take_step,
)
from domainbed.hparams import Hparam, Hparams, power

EPSILON = 1e-5


def normalize(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features [n, d] normalized over d, and their means and variances [n, 1]."""
    mean, var = z.mean(1, keepdim=True), z.var(1, keepdim=True)
    return (z - mean) / (var + EPSILON).sqrt(), mean, var


def randomize_style(z: torch.Tensor) -> torch.Tensor:
    """Mix the mean and the variance of each feature vector with those of another sample."""
    other = random_permutation(len(z), z.device)
    a = torch.rand(len(z), 1, device=z.device, dtype=z.dtype)
    content, mean, var = normalize(z)
    mean, var = torch.lerp(mean[other], mean, a), torch.lerp(var[other], var, a)
    return content * (var + EPSILON).sqrt() + mean


def randomize_content(z: torch.Tensor) -> torch.Tensor:
    """Replace the normalized part of each feature vector by that of another sample, without gradient."""
    other = random_permutation(len(z), z.device)
    content, mean, var = normalize(z)
    return content[other].detach() * (var + EPSILON).sqrt() + mean


class SagNet(Algorithm):
    """Trains a content head on randomized styles, and the featurizer to defeat a style head on randomized contents.

    The paper mixes channel statistics of intermediate convolutional maps; the published DomainBed code, and this class,
    mix those of the pooled feature vectors.
    """

    REQUIRES_FEATURIZER = True
    HPARAMS = {"sag_w_adv": Hparam(0.1, power(10, -2, 1), at_least=0)}

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier, self.style_head = (
            networks.Classifier(self.featurizer.n_outputs, num_classes, is_nonlinear=hparams["nonlinear_classifier"])
            for _ in range(2)
        )

        def adam(module: nn.Module) -> torch.optim.Adam:
            return torch.optim.Adam(module.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"])

        self.optimizer_f, self.optimizer_c, self.optimizer_s = map(
            adam, (self.featurizer, self.classifier, self.style_head)
        )

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        loss_c = F.cross_entropy(self.classifier(randomize_style(self.featurizer(x))), y)
        self.optimizer_f.zero_grad()
        self.optimizer_c.zero_grad()
        loss_c.backward()
        self.optimizer_f.step()
        self.optimizer_c.step()

        with torch.no_grad():
            z = self.featurizer(x)
        loss_s = F.cross_entropy(self.style_head(randomize_content(z)), y)
        take_step(self.optimizer_s, loss_s)

        style_logits = self.style_head(randomize_content(self.featurizer(x)))
        loss_adv = -self.hparams["sag_w_adv"] * style_logits.log_softmax(1).mean()
        take_step(self.optimizer_f, loss_adv)
        return {"loss_c": loss_c.detach(), "loss_s": loss_s.detach(), "loss_adv": loss_adv.detach()}

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x))
