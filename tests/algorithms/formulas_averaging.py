"""Slow reference implementations of SMA, ERM++, SAM and SAGM."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.algorithms import formulas
from tests.algorithms.formulas import Adam, mean


class SMA(formulas.ERM):
    """Keeps the weights after all updates; the average starts at update `start`, counted from 1."""

    def __init__(self, algorithm, hparams, start=100):
        super().__init__(algorithm, hparams)
        self.start, self.history = start, []
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.average = copy.deepcopy(self.network)

    def update(self, domains, t):
        # One forward pass, because batch norm uses the statistics of the whole batch.
        x, y = (torch.cat(parts) for parts in zip(*domains, strict=True))
        self.optimizer_of(t).step(F.cross_entropy(self.network(x), y))
        self.history.append({key: value.clone() for key, value in self.network.state_dict().items()})
        self.update_average(x, t + 1)

    def optimizer_of(self, t):
        return self.adam

    def update_average(self, x, u):
        members = self.history[-1:] if u < self.start else self.history[self.start - 2 :]
        for key, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.copy_(mean([member[key] for member in members]))

    def logits(self, x):
        return self.average.eval()(x)


class ERMPlusPlus(SMA):
    """If the network has batch norm, the average sees each batch, which moves its running statistics."""

    def __init__(self, algorithm, hparams, start=600):
        super().__init__(algorithm, hparams, start)
        self.adam_head = Adam(self.classifier.parameters(), hparams["linear_lr"], hparams["weight_decay"])
        self.norms = [m for m in self.average.modules() if isinstance(m, nn.BatchNorm2d)]

    def optimizer_of(self, t):
        return self.adam_head if t + 1 <= self.hparams["linear_steps"] + 1 else self.adam

    def update_average(self, x, u):
        statistics = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in self.norms]
        super().update_average(x, u)
        count = max(0, u - self.start + 1)  # weights that the average already holds
        current = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm, of_network, (old_mean, old_var) in zip(self.norms, current, statistics, strict=True):
            norm.running_mean.copy_((count * old_mean + of_network.running_mean) / (count + 1))
            norm.running_var.copy_((count * old_var + of_network.running_var) / (count + 1))
        if self.norms:
            with torch.no_grad():
                self.average.train()(x)


class SAM(formulas.ERM):
    COMPARED = ("featurizer", "classifier")

    def step_length(self, norm):
        return self.hparams["rho"] / norm

    def gradients(self, domains):
        """Return the gradients at the weights and at the perturbed weights."""
        g = torch.autograd.grad(self.loss(domains, 0), self.parameters())
        norm = math.sqrt(sum(part.square().sum().item() for part in g))
        weights = [p.data for p in self.parameters()]
        for p, part in zip(self.parameters(), g, strict=True):
            p.data = p.data + self.step_length(norm) * part
        perturbed = torch.autograd.grad(self.loss(domains, 0), self.parameters())
        for p, weight in zip(self.parameters(), weights, strict=True):
            p.data = weight
        return g, perturbed

    def update(self, domains, t):
        _, perturbed = self.gradients(domains)
        self.adam.apply(perturbed)


class SAGM(SAM):
    def step_length(self, norm):
        return 0.05 / (norm + 1e-12) - self.hparams["alpha"]

    def update(self, domains, t):
        self.adam.apply([(g + h) / 2 for g, h in zip(*self.gradients(domains), strict=True)])
