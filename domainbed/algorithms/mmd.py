"""MMD: the maximum mean discrepancy between domains (Li, Pan, Wang and Kot, CVPR 2018), without its autoencoder."""

import torch

from domainbed.algorithms.alignment import AlignmentERM
from domainbed.algorithms.distances import mean_over_pairs, mmd_distance


class MMD(AlignmentERM):
    """Penalizes the maximum mean discrepancy, with a sum of Gaussian kernels, between the features of domain pairs."""

    def distance(self, domains: list[torch.Tensor]) -> torch.Tensor | None:
        return mean_over_pairs(domains, mmd_distance)
