"""MMD: the maximum mean discrepancy between domains (Li, Pan, Wang and Kot, CVPR 2018), without its autoencoder."""

import torch

from domainbed.algorithms.coral import AlignmentERM
from domainbed.algorithms.distances import mean_over_pairs, mmd_distance
from domainbed.hparams import Hparam, power


class MMD(AlignmentERM):
    """Penalizes the maximum mean discrepancy, with a sum of Gaussian kernels, between the features of domain pairs."""

    HPARAMS = {"mmd_gamma": Hparam(1.0, power(10, -1, 1), at_least=0)}

    def distance(self, domains: list[torch.Tensor]) -> torch.Tensor | None:
        return mean_over_pairs(domains, mmd_distance)
