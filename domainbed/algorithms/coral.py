"""Deep CORAL (Sun and Saenko, 2016), between every two training domains."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch

from domainbed.algorithms.base import Minibatch, all_domains, by_domain, domain_risks
from domainbed.algorithms.erm import ERM


def coral_distance(zi: torch.Tensor, zj: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the means of features [n, d], plus that of their covariances (divisor n - 1)."""
    (mean_i, cov_i), (mean_j, cov_j) = moments(zi), moments(zj)
    return ((mean_i - mean_j) ** 2).mean() + ((cov_i - cov_j) ** 2).mean()


def moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [d] and covariance [d, d] of features [n, d]."""
    centred = z - z.mean(0)
    return z.mean(0), centred.T @ centred / (len(z) - 1)


class CORAL(ERM):
    """Penalises the distance between the means and covariances of the domains' features."""

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[torch.Tensor] | None = None
    ) -> Mapping[str, torch.Tensor | float]:
        z = self.featurizer(all_domains(minibatches)[0])
        risk = domain_risks(self.classifier(z), minibatches).mean()
        distances = [coral_distance(zi, zj) for zi, zj in combinations(by_domain(z, minibatches), 2)]
        penalty = torch.stack(distances).mean() if distances else torch.zeros_like(risk)
        loss = risk + self.hparams["mmd_gamma"] * penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "nll": risk.detach(), "penalty": penalty.detach()}
