"""IGA: inter-environmental gradient alignment (Koyama and Yamaguchi, 2020)."""

import torch

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    gradients_of,
    separate_risks,
    take_step,
    trained_parameters,
)
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, power


class IGA(ERM):
    """Penalizes the squared deviations of the domains' gradients from their mean, summed over domains and coordinates.

    The mean gradient is constant: since the deviations from it sum to zero, the penalty's gradient is exact.
    """

    SUPPORTS_COMPILATION = False  # compiled code cannot be differentiated twice
    HPARAMS = {"penalty": Hparam(1000.0, power(10, 1, 5), at_least=0)}

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        risks = separate_risks(self.network, minibatches)
        parameters = trained_parameters(self.network)
        gradients = [gradients_of(risk, parameters, create_graph=True) for risk in risks]
        squared = []
        for of_parameter in zip(*gradients, strict=True):
            stacked = torch.stack(of_parameter)
            squared.append(((stacked - stacked.mean(0).detach()) ** 2).sum())
        penalty = torch.stack(squared).sum()
        loss = torch.stack(risks).mean() + self.hparams["penalty"] * penalty
        take_step(self.optimizer, loss)
        return {"loss": loss.detach(), "penalty": penalty.detach()}
