"""Slow reference implementations of GroupDRO, EQRM, URM and TRM."""

import copy
import math
from statistics import NormalDist

import torch
from torch import nn
from torch.nn import functional as F

from tests.algorithms.formulas import ERM, Adam, Formula, mean


class GroupDRO(Formula):
    COMPARED = ("featurizer", "classifier", "q")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.q = torch.ones(len(algorithm.q), dtype=torch.float64)

    def loss(self, domains, t):
        risks = self.risks(domains)
        raised = [
            q * math.exp(self.hparams["groupdro_eta"] * risk.item()) for q, risk in zip(self.q, risks, strict=True)
        ]
        self.q = torch.stack([q / sum(raised) for q in raised])
        return sum(q * risk for q, risk in zip(self.q, risks, strict=True))


def kernel_quantile(risks, alpha):
    """Return the alpha-quantile by bisection, with gradients through the ends of the bracket alone."""
    n, average = len(risks), mean(risks)
    bandwidth = 1.06 * (sum((r - average) ** 2 for r in risks) / (n - 1)) ** 0.5 * n ** (-1 / 5)
    low = min(risks) + bandwidth * NormalDist().inv_cdf(alpha)
    high = max(risks) + bandwidth * NormalDist().inv_cdf(alpha)
    for _ in range(32):
        middle = (low + high) / 2
        if mean([NormalDist().cdf(((middle - r) / bandwidth).item()) for r in risks]) > alpha:
            high = middle
        else:
            low = middle
    return middle


class EQRM(Formula):
    COMPARED = ("featurizer", "classifier")

    def loss(self, domains, t):
        if t == self.hparams["eqrm_burnin_iters"]:
            self.adam.reset()
            self.adam.lr = self.hparams["eqrm_lr"]
        risks = self.risks(domains)
        if t < self.hparams["eqrm_burnin_iters"]:
            return mean(risks)
        return kernel_quantile(risks, self.hparams["eqrm_quantile"])


class Momentum:
    """SGD with momentum 0.9 and L2 regularization added to the gradient."""

    def __init__(self, parameters, lr, weight_decay):
        self.parameters, self.lr, self.weight_decay = list(parameters), lr, weight_decay
        self.velocity = [None] * len(self.parameters)

    def step(self, loss):
        for i, (p, g) in enumerate(zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True)):
            g = g + self.weight_decay * p.detach()
            self.velocity[i] = g if self.velocity[i] is None else 0.9 * self.velocity[i] + g
            p.data = p.data - self.lr * self.velocity[i]


def binary_cross_entropy(logits, targets):
    """Return the mean of -t log σ(l) - (1 - t) log σ(-l)."""
    pairs = zip(logits.flatten(), targets.flatten(), strict=True)
    return mean([-t * F.logsigmoid(value) - (1 - t) * F.logsigmoid(-value) for value, t in pairs])


class URM(Formula):
    COMPARED = ("featurizer", "classifier", "discriminator")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.cnn = copy.deepcopy(algorithm.featurizer.featurizer)
        self.activation = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}[
            hparams["urm_generator_output"]
        ]
        self.discriminator = copy.deepcopy(algorithm.discriminator)
        self.featurizer = self.cnn  # compared with a featurizer that has no other parameters
        self.adam = Adam(self.parameters(), hparams["lr"], hparams["weight_decay"])
        optimizer = {"adam": Adam, "sgd": Momentum}[hparams["urm_discriminator_optimizer"]]
        weights = self.discriminator.parameters()
        self.adam_d = optimizer(weights, hparams["urm_discriminator_lr"], hparams["weight_decay"])

    def logits(self, x):
        return self.classifier(self.activation(self.cnn(x)))

    def score(self, z):
        """Return the discriminator's logits, from its weights."""
        *hidden, last = [layer for layer in self.discriminator if isinstance(layer, nn.Linear)]
        assert [layer.weight.shape[0] for layer in hidden] == [100] * (
            1 + self.hparams["urm_discriminator_hidden_layers"]
        )
        for layer in hidden:
            z = z @ layer.weight.T + layer.bias
            z = torch.where(z > 0, z, 0.01 * z)
        return z @ last.weight.T + last.bias

    def targets(self, logits, is_real):
        s = self.hparams["urm_discriminator_label_smoothing"]
        if s == 0:
            return torch.full_like(logits, 1.0 if is_real else 0.0)
        u = torch.rand_like(logits)
        return 1 - s * u if is_real else s * u

    def update(self, domains, t):
        w = self.hparams["urm_adv_lambda"]
        z = self.activation(self.cnn(torch.cat([x for x, _ in domains])))
        y = torch.cat([y for _, y in domains])
        real = self.score(z)
        self.adam.step(F.cross_entropy(self.classifier(z), y) + w * binary_cross_entropy(real, torch.ones_like(real)))
        z = z.detach()
        u = torch.rand_like(z)
        noise = self.score(2 * u - 1 if self.hparams["urm_generator_output"] == "tanh" else u)
        loss = binary_cross_entropy(noise, self.targets(noise, True))
        fake = self.score(z)
        self.adam_d.step(loss + w * binary_cross_entropy(fake, self.targets(fake, False)))


def neumann_series(risk, weight, g, is_paper=False):
    """Return 2 v_1 + v_2 + … (in the paper, g + v_1 + …), v_k = (I - H)^k g, until an entry exceeds 10."""
    (gradient,) = torch.autograd.grad(risk, weight, create_graph=True)
    v = g
    total = g if is_paper else None
    for _ in range(10):
        (hv,) = torch.autograd.grad((gradient * v).sum(), weight, retain_graph=True)
        v = v - hv
        total = 2 * v if total is None else total + v
        if total.abs().max() > 10:
            break
    return total


class TRM(Formula):
    COMPARED = ("featurizer", "classifier", "probes", "alpha")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.probes = copy.deepcopy(algorithm.probes).requires_grad_(True)
        n = len(self.probes)
        self.alpha = torch.tensor([[float(i != q) for i in range(n)] for q in range(n)], dtype=torch.float64)

    def loss(self, domains, t):
        erm = ERM.loss(self, domains, t)
        if t < self.hparams["iters"]:
            return erm
        n, is_paper = len(domains), self.hparams["trm_series"] == "paper"
        z, y = [self.featurizer(x) for x, _ in domains], [y for _, y in domains]
        if self.hparams["class_balanced"]:
            for probe in self.probes:
                probe.weight.data = self.classifier.weight.data.clone()
        for e, probe in enumerate(self.probes):
            for _ in range(30):
                risk = F.cross_entropy(probe(z[e].detach()), y[e])
                for p, g in zip(probe.parameters(), torch.autograd.grad(risk, list(probe.parameters())), strict=True):
                    p.data = p.data - 0.1 * g
        self.alpha = torch.stack([row / row.sum() for row in self.alpha])
        terms = []
        for q, probe in enumerate(self.probes):
            others = [i for i in range(n) if i != q]
            old = self.alpha[q].tolist()
            c = [F.cross_entropy(probe(z[i]), y[i]) for i in range(n)]
            transfer = sum(old[i] * c[i] for i in others)
            (g,) = torch.autograd.grad(transfer, probe.weight, retain_graph=True)
            own = F.cross_entropy(probe(z[q].detach()), y[q])
            v = neumann_series(own, probe.weight, g, is_paper)
            for i in others:
                self.alpha[q, i] *= math.exp(self.hparams["groupdro_eta"] * old[i] * c[i].item())
            new = old if is_paper else self.alpha[q].tolist()
            (dc,) = torch.autograd.grad(c[q], probe.weight, create_graph=True)
            terms.append(sum(new[i] * c[i] for i in others) - self.hparams["cos_lambda"] * (v * dc).sum())
        return erm + mean(terms)
