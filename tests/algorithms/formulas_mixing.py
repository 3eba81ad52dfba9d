"""Slow reference implementations of Mixup, SagNet, RSC and SelfReg.

Random numbers are drawn as in the package, in the same order; see the tests for their distributions.
"""

import copy
import math

import numpy as np
import torch
from torch.nn import functional as F

from tests.algorithms.formulas import Adam, Formula, mean


def draw_permutation(n):
    """Return the indices of random numbers in increasing order."""
    return sorted(range(n), key=torch.rand(n, dtype=torch.float64).tolist().__getitem__)


class Mixup(Formula):
    COMPARED = ("featurizer", "classifier")

    def draw_lambdas(self, n):
        """Return X / (X + Y), with X, Y ~ Gamma(a), each drawn as Gamma(a + 1) U^(1/a)."""
        a = self.hparams["mixup_alpha"]
        gammas = torch._standard_gamma(torch.full((2, n), a + 1, dtype=torch.float64)).tolist()
        uniforms = torch.rand(2, n, dtype=torch.float64).tolist()
        x, y = ([g * u ** (1 / a) for g, u in zip(*rows, strict=True)] for rows in zip(gammas, uniforms, strict=True))
        return [x_i / (x_i + y_i) for x_i, y_i in zip(x, y, strict=True)]

    def loss(self, domains, t):
        n = len(domains)
        order = draw_permutation(n)
        losses = []
        smallest = min(len(y) for _, y in domains)  # ours: all batches are cut to it, not only those of a pair
        for k, lam in enumerate(self.draw_lambdas(n)):
            (x_i, y_i), (x_j, y_j) = domains[order[k]], domains[order[(k + 1) % n]]
            log_p = self.logits(lam * x_i[:smallest] + (1 - lam) * x_j[:smallest]).log_softmax(1)
            risks = [-lam * log_p[s, y_i[s]] - (1 - lam) * log_p[s, y_j[s]] for s in range(smallest)]
            losses.append(mean(risks))
        return sum(losses) / n


def moments(z):
    """Return the mean and the variance of the coordinates of a feature vector."""
    m = z.sum() / len(z)
    return m, ((z - m) ** 2).sum() / (len(z) - 1)


class SagNet(Formula):
    COMPARED = ("featurizer", "classifier", "style_head")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.style_head = copy.deepcopy(algorithm.style_head)
        self.adam_f, self.adam_c, self.adam_s = (
            Adam(module.parameters(), hparams["lr"], hparams["weight_decay"])
            for module in (self.featurizer, self.classifier, self.style_head)
        )

    def with_other_style(self, z):
        order = draw_permutation(len(z))
        a = torch.rand(len(z), 1, dtype=z.dtype)[:, 0].tolist()
        rows = []
        for i, z_i in enumerate(z):
            (m, v), (m_other, v_other) = moments(z_i), moments(z[order[i]])
            m_new = a[i] * m + (1 - a[i]) * m_other
            v_new = a[i] * v + (1 - a[i]) * v_other
            rows.append((z_i - m) / (v + 1e-5) ** 0.5 * (v_new + 1e-5) ** 0.5 + m_new)
        return torch.stack(rows)

    def with_other_content(self, z):
        order = draw_permutation(len(z))
        rows = []
        for i, z_i in enumerate(z):
            m, v = moments(z_i)
            other = z[order[i]].detach()
            m_other, v_other = moments(other)
            rows.append((other - m_other) / (v_other + 1e-5) ** 0.5 * (v + 1e-5) ** 0.5 + m)
        return torch.stack(rows)

    def update(self, domains, t):
        x, y = torch.cat([x for x, _ in domains]), torch.cat([y for _, y in domains])
        loss = F.cross_entropy(self.classifier(self.with_other_style(self.featurizer(x))), y)
        gradients = torch.autograd.grad(loss, self.parameters())
        self.adam_f.apply(gradients[: len(self.adam_f.parameters)])
        self.adam_c.apply(gradients[len(self.adam_f.parameters) :])
        self.adam_s.step(F.cross_entropy(self.style_head(self.with_other_content(self.featurizer(x))), y))
        log_p = self.style_head(self.with_other_content(self.featurizer(x))).log_softmax(1)
        uniform = mean([-mean(list(row)) for row in log_p])
        self.adam_f.step(self.hparams["sag_w_adv"] * uniform)


class RSC(Formula):
    COMPARED = ("featurizer", "classifier")

    def loss(self, domains, t):
        y = torch.cat([y for _, y in domains])
        z = [z_i for x, _ in domains for z_i in self.featurizer(x)]
        masks, changes = [], []
        for z_i, y_i in zip(z, y, strict=True):
            (g,) = torch.autograd.grad(self.classifier(z_i)[y_i], z_i, retain_graph=True)
            threshold = np.percentile(g.numpy(), 100 * (1 - self.hparams["rsc_f_drop_factor"]))
            masks.append(torch.tensor([1.0 if g_c < threshold else 0.0 for g_c in g], dtype=torch.float64))
            before = self.classifier(z_i).softmax(0)[y_i]
            changes.append((before - self.classifier(z_i * masks[-1]).softmax(0)[y_i]).item())
        threshold = np.percentile(changes, 100 * (1 - self.hparams["rsc_b_drop_factor"]))
        logits = [
            self.classifier(z_i if change < threshold else z_i * mask)
            for z_i, mask, change in zip(z, masks, changes, strict=True)
        ]
        return mean([F.cross_entropy(p, y_i) for p, y_i in zip(logits, y, strict=True)])


class SelfReg(Formula):
    COMPARED = ("featurizer", "classifier", "projector")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.projector = copy.deepcopy(algorithm.projector)

    def project(self, z):
        """Apply the projector to features, with batch statistics, and move its running statistics."""
        for layer in self.projector:
            if hasattr(layer, "running_mean"):
                batch_mean, batch_var = z.mean(0), z.var(0, correction=0)
                layer.running_mean = 0.9 * layer.running_mean + 0.1 * batch_mean.detach()
                layer.running_var = 0.9 * layer.running_var + 0.1 * z.var(0).detach()
                layer.num_batches_tracked += 1
                z = (z - batch_mean) / (batch_var + 1e-5).sqrt() * layer.weight.detach() + layer.bias.detach()
            elif hasattr(layer, "weight"):
                z = z @ layer.weight.T.detach() + layer.bias.detach()
            else:
                z = torch.where(z > 0, z, 0.0)
        return z

    def loss(self, domains, t):
        x, y = torch.cat([x for x, _ in domains]), torch.cat([y for _, y in domains])
        by_label = sorted(range(len(y)), key=lambda i: (y[i].item(), i))
        x, y = x[by_label], y[by_label]
        # Within a class, the samples permuted by the order of random numbers.
        permutations = []
        for _ in range(2):
            u = torch.rand(len(y), dtype=torch.float64).tolist()
            permutations.append([i for c in range(3) for i in sorted(np.flatnonzero(y == c), key=u.__getitem__)])
        first, second = permutations
        lam = math.sin(math.pi / 2 * torch.rand((), dtype=torch.float64).item()) ** 2
        z = self.featurizer(x)
        p, u = self.classifier(z), self.project(z)
        nll = F.cross_entropy(p, y)

        def squared(a, b):
            return mean([((a_i - b_i) ** 2).mean() for a_i, b_i in zip(a, b, strict=True)])

        p_mixed, u_mixed = ([lam * v[i] + (1 - lam) * v[j] for i, j in zip(first, second, strict=True)] for v in (p, u))
        single = squared(p, [p[i] for i in first]) + 0.3 * squared(z, [u[i] for i in first])
        mixed = squared(p, p_mixed) + 0.3 * squared(z, u_mixed)
        return nll + min(nll.item(), 1) * (lam * single + (1 - lam) * mixed)
