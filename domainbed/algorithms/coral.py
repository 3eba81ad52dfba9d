"""Deep CORAL (Sun and Saenko, ECCV Workshops 2016), averaged over all pairs of training domains."""

import torch

from domainbed.algorithms.alignment import AlignmentERM
from domainbed.algorithms.distances import coral_distance, mean_over_pairs, moments


class CORAL(AlignmentERM):
    """ERM with a penalty: the mean squared differences between the domains' feature means and feature covariances."""

    MIN_BATCH_SIZE = 2

    def distance(self, domains: list[torch.Tensor]) -> torch.Tensor | None:
        return mean_over_pairs([moments(z) for z in domains], coral_distance)
