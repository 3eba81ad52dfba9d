"""MLDG: learning to generalize, meta-learning for domain generalization (Li, Yang, Song and Hospedales, AAAI 2018)."""

import torch
from torch.func import functional_call
from torch.nn import functional as F

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    gradients_of,
    random_permutation,
    stack_domains,
    take_step_along,
    uses_batch_statistics,
)
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, Hparams, one_of, power

ADAM_EPSILON = 1e-8


class MLDG(ERM):
    """Minimizes the risk in meta-train domains, and that in meta-test domains after a step on the former; first order.

    Of the domains in random order, the last `n_meta_test` are meta-test; each of the others is paired with one of them
    in turn. With θ' the result of the first step of a new Adam on L_i, the gradient is the sum over pairs of
    ∇L_i(θ) + mldg_beta ∇L_j(θ'), divided by the number of domains. Batches are cut to the smallest.

    (The published tables rest on pairs of all domains in a random cycle.)

    With no more domains than `n_meta_test` there is no pair, and nothing is learned. `limit_meta_test` leaves one
    domain for meta-training instead.
    """

    HPARAMS = {
        "mldg_beta": Hparam(1.0, power(10, -1, 1), at_least=0),
        "n_meta_test": Hparam(2, one_of(1, 2), at_least=1),
        "limit_meta_test": Hparam(False),
    }
    MIN_DOMAINS = 2

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.n_meta_test = hparams["n_meta_test"]
        if hparams["limit_meta_test"]:
            self.n_meta_test = min(self.n_meta_test, num_domains - 1)
        self.n_pairs = max(0, num_domains - self.n_meta_test)

    @property
    def caveat(self) -> str:
        if self.n_pairs:
            return ""
        return (
            f"with n_meta_test = {self.n_meta_test} no domain is left for meta-training and nothing is learned (as "
            'published); learn with {"limit_meta_test": true}'
        )

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = stack_domains(minibatches)
        order = random_permutation(len(x), x.device)
        x, y = x[order], y[order]
        parameters = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        loss = torch.zeros((), device=x.device, dtype=x.dtype)
        # As in the published code, which discards its copies of the network, running statistics do not change.
        buffers = {n: b.clone() for n, b in self.network.named_buffers()} if uses_batch_statistics(self.network) else {}
        for i in range(self.n_pairs):
            j = self.n_pairs + i % self.n_meta_test
            inner_loss = F.cross_entropy(functional_call(self.network, {**parameters, **buffers}, (x[i],)), y[i])
            inner = gradients_of(inner_loss, list(parameters.values()))
            moved = {}
            for (name, p), g in zip(parameters.items(), inner, strict=True):
                decayed = g + self.hparams["weight_decay"] * p.detach()
                moved[name] = (
                    p.detach() - self.hparams["lr"] * decayed / (decayed.abs() + ADAM_EPSILON)
                ).requires_grad_()
            outer_loss = F.cross_entropy(functional_call(self.network, {**moved, **buffers}, (x[j],)), y[j])
            outer = gradients_of(outer_loss, list(moved.values()))
            for g_total, g_i, g_j in zip(total.values(), inner, outer, strict=True):
                g_total.add_(g_i + self.hparams["mldg_beta"] * g_j)
            loss = loss + inner_loss.detach() + self.hparams["mldg_beta"] * outer_loss.detach()
        take_step_along(self.optimizer, {p: total[name] / len(x) for name, p in parameters.items()})
        return {"loss": loss / len(x)}
