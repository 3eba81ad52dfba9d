"""Transfer: quantifying and improving transferability (Zhang, Zhao, Yu and Poupart, NeurIPS 2021)."""

import copy

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    concatenate,
    domain_risks,
    outputs_by_domain,
    take_step,
    uses_batch_statistics,
)
from domainbed.algorithms.erm import ERM
from domainbed.hparams import MAX_RATE, Hparam, Hparams, one_of, power, uniform


class Transfer(ERM):
    """Reduces the gap between the largest and the smallest risk over domains, for an adversarial head near the head.

    In each update: (1) Adam minimizes the cross-entropy; (2) Adam minimizes t_lambda × the gap of the adversarial head
    with respect to the featurizer; (3) the adversarial head becomes a copy of the head, and (4) ascends t_lambda × the
    gap `d_steps_per_g` times, projected onto the ball of radius `delta` around the head (Algorithm 1).

    The published random draws set `gda`, with which (1) and (2) train the adversarial head in place of the network, so
    that the network never changes.
    """

    HPARAMS = {
        "t_lambda": Hparam(1.0, power(10, -2, 1), at_least=0),
        "delta": Hparam(2.0, uniform(0.1, 3.0), above=0),
        "d_steps_per_g": Hparam(10, one_of(1, 2, 5), at_least=1),
        "weight_decay_d": Hparam(0.0, power(10, -6, -2), at_least=0, at_most=MAX_RATE),
        "gda": Hparam(False, lambda r: True),
        "beta1": Hparam(0.5, one_of(0.0, 0.5), at_least=0, below=1),
        "lr_d": Hparam(1e-3, power(10, -4.5, -2.5), above=0, at_most=MAX_RATE),
    }

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.adversarial_classifier = copy.deepcopy(self.classifier)
        if hparams["gda"]:
            self.optimizer = torch.optim.SGD(  # type: ignore[assignment]
                self.adversarial_classifier.parameters(), lr=hparams["lr"]
            )
        self.has_random_features = any(
            getattr(module, "p", 0) > 0 or getattr(module, "drop_prob", 0) for module in self.featurizer.modules()
        ) or uses_batch_statistics(self.featurizer.train())
        self.adv_opt = torch.optim.SGD(self.adversarial_classifier.parameters(), lr=hparams["lr_d"])

    @property
    def caveat(self) -> str:
        return (
            'with gda the network is never trained (as published); train it with {"gda": false}'
            if self.hparams["gda"]
            else ""
        )

    def gap(self, z: torch.Tensor, minibatches: Minibatches) -> torch.Tensor:
        """Return the largest minus the smallest risk of the adversarial head on features z of all domains, 0-dim."""
        risks = domain_risks(self.adversarial_classifier(z), minibatches)
        return risks.max() - risks.min()

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        loss = F.cross_entropy(self.predict(x), y)
        take_step(self.optimizer, loss)
        gap = self.hparams["t_lambda"] * self.gap(outputs_by_domain(self.featurizer, minibatches), minibatches)
        take_step(self.optimizer, gap)
        adversary: list[torch.Tensor] = list(self.adversarial_classifier.parameters())
        center = [p.detach() for p in self.classifier.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(adversary, center)
        for i in range(self.hparams["d_steps_per_g"]):
            if i == 0 or self.has_random_features:  # otherwise they are the same each time
                with torch.no_grad():
                    z = outputs_by_domain(self.featurizer, minibatches)
            ascent = -self.hparams["t_lambda"] * self.gap(z, minibatches)
            take_step(self.adv_opt, ascent)
            project(adversary, center, self.hparams["delta"])
        return {"loss": loss.detach(), "gap": -ascent.detach()}


@torch.no_grad()
def project(parameters: list[torch.Tensor], center: list[torch.Tensor], radius: float) -> None:
    """Project parameters, as one vector, onto the ball around `center`."""
    offsets = [p - c for p, c in zip(parameters, center, strict=True)]
    length = torch.stack(torch._foreach_norm(offsets)).norm()
    scale = (radius / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)
    for p, c, offset in zip(parameters, center, offsets, strict=True):
        p.copy_(c + scale * offset)
