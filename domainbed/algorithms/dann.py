"""DANN: domain-adversarial training of neural networks (Ganin et al., JMLR 2016)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.adversarial import AdversarialAlgorithm
from domainbed.algorithms.base import Metrics, differentiable, take_step
from domainbed.hparams import LEARNING_RATE, MAX_RATE, MLP, WEIGHT_DECAY, Hparam, Hparams, int_power, one_of, power


class DANN(AdversarialAlgorithm):
    """A featurizer trained to hide the domain of its features from a discriminator, and a classifier.

    Counting updates from 1, update t trains the discriminator if t mod (1 + d_steps_per_g_step) < d_steps_per_g_step,
    on L_d = CE(domains) + grad_penalty × mean over samples of ‖∂(summed domain CE) / ∂z‖². Otherwise it trains the
    featurizer and the classifier, on CE(classes) − lambda × L_d. (In the code behind the published tables, the gradient
    penalty had no effect.)
    """

    HPARAMS = {
        "lambda": Hparam(1.0, power(10, -2, 2), at_least=0),
        "lr_g": LEARNING_RATE,
        "lr_d": LEARNING_RATE,
        "weight_decay_g": WEIGHT_DECAY,
        "weight_decay_d": Hparam(0.0, power(10, -6, -2), at_least=0, at_most=MAX_RATE),
        "d_steps_per_g_step": Hparam(1, int_power(2, 0, 3), at_least=0),
        "grad_penalty": Hparam(0.0, power(10, -2, 1), at_least=0),
        "beta1": Hparam(0.5, one_of(0.0, 0.5), at_least=0, below=1),
        **MLP,
    }

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams["d_steps_per_g_step"] < 0:
            raise ValueError(f"d_steps_per_g_step must be at least 0, not {hparams['d_steps_per_g_step']}")
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, is_nonlinear=hparams["nonlinear_classifier"]
        )
        self.discriminator = networks.MLP(self.featurizer.n_outputs, num_domains, hparams)
        self.disc_opt = self.make_disc_opt(self.discriminator.parameters())
        self.gen_opt = torch.optim.Adam(
            [*self.featurizer.parameters(), *self.classifier.parameters()],
            lr=hparams["lr_g"],
            weight_decay=hparams["weight_decay_g"],
            betas=(hparams["beta1"], 0.9),
        )

    def make_disc_opt(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        """Return the discriminator's optimizer."""
        return torch.optim.Adam(
            parameters,
            lr=self.hparams["lr_d"],
            weight_decay=self.hparams["weight_decay_d"],
            betas=(self.hparams["beta1"], 0.9),
        )

    def train_discriminator(self, x: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> Metrics:
        with torch.no_grad():
            z = self.featurizer(x)
        disc_loss = self.discriminator_loss(z.requires_grad_(), y, domains)
        take_step(self.disc_opt, disc_loss)
        return {"disc_loss": disc_loss.detach()}

    def train_generator(self, x: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> Metrics:
        z = differentiable(self.featurizer(x))
        disc_loss = self.discriminator_loss(z, y, domains)
        nll = F.cross_entropy(self.classifier(z), y)
        loss = nll - self.hparams["lambda"] * disc_loss
        take_step(self.gen_opt, loss)
        return {"loss": loss.detach(), "nll": nll.detach(), "disc_loss": disc_loss.detach()}

    def discriminator_loss(self, z: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        """Return L_d, 0-dim, of features z [n, d] of samples with labels y [n] from `domains` [n]."""
        risks = F.cross_entropy(self.discriminator(z), domains, reduction="none")
        return risks.mean() + self.gradient_penalty(risks.sum(), z)

    def gradient_penalty(self, summed_risk: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor | float:
        """Return grad_penalty × mean over samples of ‖∂(summed risk) / ∂inputs‖²."""
        if self.hparams["grad_penalty"] <= 0:
            return 0.0
        (gradient,) = torch.autograd.grad(summed_risk, inputs, create_graph=True)
        return self.hparams["grad_penalty"] * (gradient**2).sum(1).mean()

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x))
