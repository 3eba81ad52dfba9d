"""Deep CORAL (Sun and Saenko, ECCV Workshops 2016), averaged over all pairs of training domains."""

from itertools import combinations

import torch

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, domain_risks, split_by_domain
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, power


def moments(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [d] and the covariance [d, d] (divisor n - 1) of features [n, d]."""
    mean = z.mean(0)
    return mean, (z - mean).T @ (z - mean) / (len(z) - 1)


class CORAL(ERM):
    """ERM with a penalty: the mean squared differences between the domains' feature means and feature covariances."""

    HPARAMS = {"mmd_gamma": Hparam(1.0, power(10, -1, 1))}
    MIN_BATCH_SIZE = 2

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
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
