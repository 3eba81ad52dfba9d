"""Inter-domain Mixup (Yan et al., 2020; Xu et al., AAAI 2020; Wang, Li and Kot, ICASSP 2020)."""

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    outputs_by_domain,
    random_permutation,
    stack_domains,
    take_step,
)
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, power


class Mixup(ERM):
    """Trains on convex combinations of images from two domains, and of their losses.

    The domains form a random cycle; each is mixed with the next one, sample by sample, with one λ ~ Beta(mixup_alpha,
    mixup_alpha) per pair. Batches of different sizes are cut to the smallest. (The published tables rest on draws of
    mixup_alpha that were always 0.1.)
    """

    HPARAMS = {"mixup_alpha": Hparam(0.2, power(10, -1, 1), above=0)}

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = stack_domains(minibatches)  # [domains, n, …]
        order = random_permutation(len(x), x.device)
        i, j = order, order.roll(-1)
        lam = self.draw_lambda(len(x), x)
        mixed = torch.lerp(x[j], x[i], lam.view(-1, *[1] * (x.dim() - 1)))
        logits = outputs_by_domain(self.network, list(zip(mixed, y, strict=True)))
        risks = [
            F.cross_entropy(logits, labels.flatten(), reduction="none").view(len(x), -1).mean(1)
            for labels in (y[i], y[j])
        ]
        loss = (lam * risks[0] + (1 - lam) * risks[1]).mean()
        take_step(self.optimizer, loss)
        return {"loss": loss.detach()}

    def draw_lambda(self, n: int, like: torch.Tensor) -> torch.Tensor:
        """Draw λ ~ Beta(mixup_alpha, mixup_alpha) for n pairs, on the device of `like`."""
        # A ratio of Gamma(alpha) variables, drawn as Gamma(alpha + 1) U^(1/alpha); small ones underflow, so use logs.
        alpha = like.new_full((2, n), self.hparams["mixup_alpha"], dtype=torch.float64)
        log_gamma = torch._standard_gamma(alpha + 1).log() + torch.rand_like(alpha).log() / alpha
        return log_gamma.softmax(0)[0].to(like.dtype)
