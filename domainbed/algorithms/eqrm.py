"""EQRM: empirical quantile risk minimization (Eastwood et al., NeurIPS 2022)."""

from statistics import NormalDist

import torch

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, domain_risks, outputs_by_domain, take_step
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.penalty import reset_optimizer
from domainbed.hparams import MAX_RATE, Hparam, Hparams, power, uniform

HALVINGS = 32


def kernel_quantile(risks: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the alpha-quantile of a Gaussian kernel density estimate of the risks [domains], 0-dim.

    The quantile is found by bisection. As in the code that accompanies the paper, gradients flow through the ends of
    the first bracket alone: with w the fraction of the bracket below the quantile, constant, the quantile is
    (1 − w) min R + w max R + bandwidth Φ⁻¹(alpha). (The implicit derivative of the quantile would differ.)
    """
    r = risks.double()
    bandwidth = 1.06 * r.std() * len(r) ** -0.2
    z = NormalDist().inv_cdf(alpha)
    low, high = r.min() + bandwidth * z, r.max() + bandwidth * z
    with torch.no_grad():
        a, b = low, high
        for _ in range(HALVINGS):
            middle = (a + b) / 2
            is_above = torch.special.ndtr((middle - r) / bandwidth).mean() > alpha
            a, b = torch.where(is_above, a, middle), torch.where(is_above, middle, b)
        w = (middle - low) / (high - low)
    return ((1 - w) * low + w * high).to(risks.dtype)


class EQRM(ERM):
    """Minimizes a quantile of the distribution of risks over domains, after a burn-in with the mean risk (section 4).

    At the end of the burn-in, Adam is reset with learning rate `eqrm_lr`. The published random draws of
    `eqrm_burnin_iters` are not integers, so the published code, and this class, never reset Adam.
    """

    HPARAMS = {
        "eqrm_quantile": Hparam(0.75, uniform(0.5, 0.99), above=0, below=1),
        "eqrm_burnin_iters": Hparam(2500.0, power(10, 2.5, 3.5), at_least=0),
        "eqrm_lr": Hparam(1e-6, power(10, -7, -5), above=0, at_most=MAX_RATE),
    }
    MIN_DOMAINS = 2

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.update_count = 0

    @property
    def phase(self) -> str:
        return "burn-in" if self.update_count < self.hparams["eqrm_burnin_iters"] else "quantile"

    @property
    def caveat(self) -> str:
        if float(self.hparams["eqrm_burnin_iters"]).is_integer():
            return ""
        return "eqrm_burnin_iters is not an integer, so Adam is never reset and eqrm_lr is not used (as published)"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        risks = domain_risks(outputs_by_domain(self.network, minibatches), minibatches)
        loss = risks.mean() if self.phase == "burn-in" else kernel_quantile(risks, self.hparams["eqrm_quantile"])
        if self.update_count == self.hparams["eqrm_burnin_iters"]:
            reset_optimizer(self.optimizer, self.hparams["eqrm_lr"])
        take_step(self.optimizer, loss)
        self.update_count += 1
        return {"loss": loss.detach()}
