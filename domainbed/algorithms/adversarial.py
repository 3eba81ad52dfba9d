"""The base class of DANN, CDANN and ADRMX: turns between a discriminator and the networks it is trained against."""

import torch

from domainbed.algorithms.base import Algorithm, Metrics, Minibatches, Unlabeled, concatenate, domain_labels
from domainbed.hparams import Hparams


class AdversarialAlgorithm(Algorithm):
    """An algorithm that trains a discriminator of domains in some updates, and everything else in the others.

    Counting updates from 1, update t trains the discriminator if t mod (1 + d_steps_per_g_step) < d_steps_per_g_step.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.update_count = 0

    @property
    def phase(self) -> str:
        d_steps = self.hparams["d_steps_per_g_step"]
        return "discriminator" if (self.update_count + 1) % (1 + d_steps) < d_steps else "generator"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        domains = domain_labels(minibatches)
        train = self.train_discriminator if self.phase == "discriminator" else self.train_generator
        self.update_count += 1
        return train(x, y, domains)

    def train_discriminator(self, x: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> Metrics:
        """Train the discriminator on images x, labels y [n] and domains [n]; return metrics."""
        raise NotImplementedError(f"{type(self).__name__} does not implement train_discriminator")

    def train_generator(self, x: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> Metrics:
        """Train everything else on images x, labels y [n] and domains [n]; return metrics."""
        raise NotImplementedError(f"{type(self).__name__} does not implement train_generator")
