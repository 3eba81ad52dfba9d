"""CAD and CondCAD: optimal representations for covariate shift (Ruan, Dubois and Maddison, ICLR 2022)."""

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, domain_labels, take_step
from domainbed.algorithms.erm import ERM
from domainbed.errors import UsageError
from domainbed.hparams import Hparam, Hparams, one_of

BASE_TEMPERATURE = 0.07


class CAD(ERM):
    """Contrastive adversarial domain bottleneck: makes the domain of a sample's neighbors unpredictable.

    With s_ij = z_i · z_j / temperature, P_i is the softmax of s_i over all other samples, and the penalty is the mean
    of −(temperature / 0.07) log Σ_j P_i(j) over the j of other domains. Only samples whose label occurs again in the
    batch count. With `is_flipped` false it is + log of the sum over the same domain (in which, as in the published
    code, the sample itself counts with s_ii = 0).
    """

    HPARAMS = {
        "lmbda": Hparam(0.1, one_of(1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0), at_least=0),
        "temperature": Hparam(0.1, one_of(0.05, 0.1), above=0),
        "is_normalized": Hparam(False),
        "is_project": Hparam(False),
        "is_flipped": Hparam(True),
    }

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        if hparams["is_project"]:
            raise UsageError("is_project is not supported (it fails in the published code, too); leave it false")

    def masks(self, y: torch.Tensor, domains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return masks [n, n] of each softmax's candidates and of those summed over, and of rows that count [n]."""
        others = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        same_domain = domains[:, None] == domains[None]
        has_partner = ((y[:, None] == y[None]) & others).any(1)
        return others, ~same_domain if self.hparams["is_flipped"] else same_domain, has_partner

    def bottleneck_loss(self, z: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        """Return the penalty on features z [n, d], 0-dim."""
        temperature = self.hparams["temperature"]
        if self.hparams["is_normalized"]:
            z = F.normalize(z, dim=1)
        candidates, summed, counts = self.masks(y, domains)
        # The sample itself has similarity 0, which matters only if it is summed over (see above).
        similarities = (z @ z.T / temperature) * ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        # Rows that do not count get any candidates, so that their gradient (times 0) is finite.
        counts = counts & candidates.any(1) & summed.any(1)
        log_z = masked_logsumexp(similarities, candidates | ~counts[:, None])
        log_p = masked_logsumexp(similarities, summed | ~counts[:, None]) - log_z
        sign = -1.0 if self.hparams["is_flipped"] else 1.0
        losses = sign * temperature / BASE_TEMPERATURE * log_p * counts
        return losses.sum() / counts.sum().clamp(min=1)

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        z = self.featurizer(x)
        nll = F.cross_entropy(self.classifier(z), y)
        penalty = self.bottleneck_loss(z, y, domain_labels(minibatches))
        loss = nll + self.hparams["lmbda"] * penalty
        take_step(self.optimizer, loss)
        return {"clf_loss": nll.detach(), "bn_loss": penalty.detach(), "total_loss": loss.detach()}


class CondCAD(CAD):
    """CAD conditioned on the class: the softmax is over other samples of the same label."""

    def masks(self, y: torch.Tensor, domains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        others = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
        same_label = (y[:, None] == y[None]) & others
        same_domain = domains[:, None] == domains[None]
        summed = same_label & (~same_domain if self.hparams["is_flipped"] else same_domain)
        return same_label, summed, summed.any(1)


def masked_logsumexp(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the logsumexp of each row of [n, m] over the entries of a mask that has at least one in each row."""
    return values.masked_fill(~mask, -torch.inf).logsumexp(1)
