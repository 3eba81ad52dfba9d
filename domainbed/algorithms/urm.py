"""URM: uniform risk minimization (Krishnamachari, Ng and Foo, TMLR 2024), the adversarial form."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, take_step
from domainbed.algorithms.erm import ERM
from domainbed.errors import UsageError
from domainbed.hparams import MAX_RATE, Hparam, Hparams, one_of, power, uniform

WIDTH = 100  # units of the discriminator
# The range of the uniform distribution that features are matched to, by activation.
ACTIVATIONS = {"tanh": (nn.Tanh, -1.0), "relu": (nn.ReLU, 0.0), "sigmoid": (nn.Sigmoid, 0.0)}


class BoundedFeaturizer(nn.Module):
    """A featurizer followed by an activation: images [n, channels, height, width] to features [n, n_outputs]."""

    def __init__(self, featurizer: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.activation = activation
        self.n_outputs = featurizer.n_outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.featurizer(x))


class URM(ERM):
    """Makes the distribution of features uniform by means of a discriminator that compares them with uniform noise.

    The network minimizes CE + λ BCE(D(z), 1), λ = urm_adv_lambda; then the discriminator D minimizes
    BCE(D(noise), 1) + λ BCE(D(z), 0) on the same features. (The weight λ of the second half is not in the paper.)
    """

    HPARAMS = {
        "urm": Hparam("adversarial"),
        "urm_adv_lambda": Hparam(0.1, uniform(0, 0.2), at_least=0),
        "urm_generator_output": Hparam("tanh", one_of("tanh", "relu")),
        "urm_discriminator_lr": Hparam(
            5e-5, power(10, -6, -4.5), small_images=Hparam(1e-3, power(10, -5.5, -3.5)), above=0, at_most=MAX_RATE
        ),
        "urm_discriminator_hidden_layers": Hparam(1, one_of(1, 2, 3), at_least=0, at_most=2**10),
        "urm_discriminator_optimizer": Hparam("adam"),
        "urm_discriminator_label_smoothing": Hparam(0.0, at_least=0, at_most=1),
    }

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        output = hparams["urm_generator_output"]
        if output not in ACTIVATIONS:
            raise UsageError(f"urm_generator_output must be {', '.join(ACTIVATIONS)}, not {output!r}")
        activation, self.noise_low = ACTIVATIONS[output]
        self.featurizer = BoundedFeaturizer(self.featurizer, activation())
        self.network = nn.Sequential(self.featurizer, self.classifier)
        layers: list[nn.Module] = [nn.Linear(self.featurizer.n_outputs, WIDTH), nn.LeakyReLU()]
        for _ in range(hparams["urm_discriminator_hidden_layers"]):
            layers += [nn.Linear(WIDTH, WIDTH), nn.LeakyReLU()]
        self.discriminator = nn.Sequential(*layers, nn.Linear(WIDTH, 1))
        options = {"lr": hparams["urm_discriminator_lr"], "weight_decay": hparams["weight_decay"]}
        if hparams["urm_discriminator_optimizer"] == "adam":
            self.disc_opt: torch.optim.Optimizer = torch.optim.Adam(self.discriminator.parameters(), **options)
        elif hparams["urm_discriminator_optimizer"] == "sgd":
            self.disc_opt = torch.optim.SGD(self.discriminator.parameters(), momentum=0.9, **options)
        else:
            raise UsageError(
                f"urm_discriminator_optimizer must be adam or sgd, not {hparams['urm_discriminator_optimizer']!r}"
            )

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        weight = self.hparams["urm_adv_lambda"]
        z = self.featurizer(x)
        nll = F.cross_entropy(self.classifier(z), y)
        logits = self.discriminator(z)
        loss = nll + weight * F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))  # never smoothed
        take_step(self.optimizer, loss)
        z = z.detach()
        noise = self.noise_low + (1 - self.noise_low) * torch.rand_like(z)
        disc_loss = self.discriminator_loss(noise, is_real=True) + weight * self.discriminator_loss(z, is_real=False)
        take_step(self.disc_opt, disc_loss)
        return {"loss": loss.detach(), "nll": nll.detach(), "disc_loss": disc_loss.detach()}

    def discriminator_loss(self, z: torch.Tensor, is_real: bool) -> torch.Tensor:
        """Return the binary cross-entropy of the discriminator on features or noise [n, d], 0-dim."""
        logits = self.discriminator(z)
        target = torch.full_like(logits, float(is_real))
        if smoothing := self.hparams["urm_discriminator_label_smoothing"]:
            target = (target - smoothing * torch.rand_like(target)).abs()
        return F.binary_cross_entropy_with_logits(logits, target)
