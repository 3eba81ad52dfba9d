"""Deep CORAL (Sun and Saenko, 2016), between every two training domains."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch

from domainbed.algorithms.base import Minibatch, concatenate, domain_risks, split_by_domain
from domainbed.algorithms.erm import ERM


def moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [d] and covariance [d, d] (divisor n - 1) of features [n, d]."""
    mean = z.mean(0)
    return mean, (z - mean).T @ (z - mean) / (len(z) - 1)


class CORAL(ERM):
    """Penalises the mean squared differences of the domains' features' means, and of their covariances."""

    MIN_BATCH_SIZE = 2

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor | float]:
        z = self.featurizer(concatenate(minibatches)[0])
        risk = domain_risks(self.classifier(z), minibatches).mean()
        pairs = combinations([moments(part) for part in split_by_domain(z, minibatches)], 2)
        distances = [
            ((mean_i - mean_j) ** 2).mean() + ((cov_i - cov_j) ** 2).mean()
            for (mean_i, cov_i), (mean_j, cov_j) in pairs
        ]
        penalty = torch.stack(distances).mean() if distances else torch.zeros_like(risk)
        loss = risk + self.hparams["mmd_gamma"] * penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "nll": risk.detach(), "penalty": penalty.detach()}
