"""CDANN: conditional domain-adversarial networks (Li et al., "Deep Domain Generalization via Conditional Invariant
Adversarial Networks", ECCV 2018)."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.dann import DANN
from domainbed.hparams import Hparams


class CDANN(DANN):
    """DANN whose discriminator knows the class, and whose domain loss gives each class the same weight.

    The discriminator sees z + E[y], E an embedding of classes trained with it. Sample i has weight 1 / (N_y C), N_y the
    number of samples of its class and C the largest label in the batch plus 1, as in the published code.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.class_embeddings = nn.Embedding(num_classes, self.featurizer.n_outputs)
        self.disc_opt = self.make_disc_opt([*self.discriminator.parameters(), *self.class_embeddings.parameters()])

    def discriminator_loss(self, z: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        seen = z + self.class_embeddings(y)
        logits = self.discriminator(seen)
        risks = F.cross_entropy(logits, domains, reduction="none")
        counts = (y[:, None] == y[None]).sum(1)
        loss = (risks / (counts * (y.max() + 1))).sum()
        return loss + self.gradient_penalty(risks.sum(), seen)
