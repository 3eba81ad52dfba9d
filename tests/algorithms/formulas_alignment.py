"""Slow reference implementations of MMD, CDANN, CAD, CondCAD, CausIRL, Transfer and RDM."""

import copy
import math

import torch
from torch.nn import functional as F

from tests.algorithms.formulas import ERM, Adam, Formula, mean


def kernel(a, b, gammas):
    return torch.exp(-gammas * ((a - b) ** 2).sum()).sum()


def discrepancy(a, b, gammas=(1e-3, 1e-2, 0.1, 1, 10, 100, 1000)):
    """Return mean K(A, A) + mean K(B, B) - 2 mean K(A, B) over all pairs of rows."""
    gammas = torch.tensor(gammas, dtype=torch.float64)
    within = [mean([kernel(r, s, gammas) for r in rows for s in rows]) for rows in (a, b)]
    return within[0] + within[1] - 2 * mean([kernel(r, s, gammas) for r in a for s in b])


def coral(a, b):
    """Return the mean squared difference of the means, and of the covariances, of rows."""
    means, covariances = [], []
    for rows in (a, b):
        m = mean(rows)
        means.append(m)
        covariances.append(sum(torch.outer(r - m, r - m) for r in rows) / (len(rows) - 1))
    return ((means[0] - means[1]) ** 2).mean() + ((covariances[0] - covariances[1]) ** 2).mean()


class MMD(Formula):
    COMPARED = ("featurizer", "classifier")

    def loss(self, domains, t):
        z = [list(self.featurizer(x)) for x, _ in domains]
        distances = [discrepancy(z[i], z[j]) for i in range(len(z)) for j in range(i)]
        return mean(self.risks(domains)) + self.hparams["mmd_gamma"] * mean(distances)


class CausIRL(Formula):
    COMPARED = ("featurizer", "classifier")

    def loss(self, domains, t):
        first, second = [], []
        for x, _ in domains:
            z = list(self.featurizer(x))
            r = math.floor(torch.rand(()).item() * len(z))
            first += z[:r]
            second += z[r:]
        penalty = self.distance(first, second) if min(len(first), len(second)) > 1 else 0.0
        return mean(self.risks(domains)) + self.hparams["mmd_gamma"] * penalty


class CausIRL_CORAL(CausIRL):
    distance = staticmethod(coral)


class CausIRL_MMD(CausIRL):
    distance = staticmethod(discrepancy)


class CDANN(Formula):
    COMPARED = ("featurizer", "classifier", "discriminator", "class_embeddings")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.discriminator = copy.deepcopy(algorithm.discriminator)
        self.class_embeddings = copy.deepcopy(algorithm.class_embeddings)
        betas = (hparams["beta1"], 0.9)
        self.adam = Adam(self.parameters(), hparams["lr_g"], hparams["weight_decay_g"], betas)
        adversary = [*self.discriminator.parameters(), *self.class_embeddings.parameters()]
        self.adam_d = Adam(adversary, hparams["lr_d"], hparams["weight_decay_d"], betas)

    def domain_loss(self, domains):
        labels = torch.cat([y for _, y in domains]).tolist()
        weighted, norms = [], []
        for d, (x, y) in enumerate(domains):
            for z_i, y_i in zip(self.featurizer(x), y.tolist(), strict=True):
                seen = z_i + self.class_embeddings.weight[y_i]
                risk = -self.discriminator(seen).log_softmax(0)[d]
                weighted.append(risk / (labels.count(y_i) * (1 + max(labels))))
                (g,) = torch.autograd.grad(risk, seen, create_graph=True)
                norms.append(g.square().sum())
        return sum(weighted) + self.hparams["grad_penalty"] * mean(norms)

    def update(self, domains, t):
        disc_loss = self.domain_loss(domains)
        d_steps = self.hparams["d_steps_per_g_step"]
        if (t + 1) % (1 + d_steps) < d_steps:
            self.adam_d.step(disc_loss)
        else:
            self.adam.step(ERM.loss(self, domains, t) - self.hparams["lambda"] * disc_loss)


class CAD(Formula):
    COMPARED = ("featurizer", "classifier")

    def similarities(self, domains):
        """Return s_ij, and the labels and the domains of all samples."""
        z = [z_i for x, _ in domains for z_i in self.featurizer(x)]
        if self.hparams["is_normalized"]:
            z = [z_i / (z_i**2).sum() ** 0.5 for z_i in z]
        s = [[(a * b).sum() / self.hparams["temperature"] for b in z] for a in z]
        labels = [label for _, y in domains for label in y.tolist()]
        return s, labels, [e for e, (_, y) in enumerate(domains) for _ in y]

    def scaled(self, probability):
        factor = self.hparams["temperature"] / 0.07
        return -factor * probability.log() if self.hparams["is_flipped"] else factor * probability.log()

    def penalties(self, domains):
        s, y, d = self.similarities(domains)
        losses = []
        for i in range(len(y)):
            others = [j for j in range(len(y)) if j != i]
            if not any(y[j] == y[i] for j in others):
                continue
            total = sum(s[i][j].exp() for j in others)
            if self.hparams["is_flipped"]:
                terms = [s[i][j].exp() for j in others if d[j] != d[i]]
            else:
                terms = [s[i][j].exp() for j in others if d[j] == d[i]] + [torch.ones((), dtype=torch.float64)]
            if terms:
                losses.append(self.scaled(sum(terms) / total))
        return losses

    def loss(self, domains, t):
        losses = self.penalties(domains)
        return ERM.loss(self, domains, t) + self.hparams["lmbda"] * (mean(losses) if losses else 0.0)


class CondCAD(CAD):
    def penalties(self, domains):
        s, y, d = self.similarities(domains)
        losses = []
        for i in range(len(y)):
            same_label = [j for j in range(len(y)) if j != i and y[j] == y[i]]
            chosen = [j for j in same_label if (d[j] != d[i]) == self.hparams["is_flipped"]]
            if chosen:
                total = sum(s[i][j].exp() for j in same_label)
                losses.append(self.scaled(sum(s[i][j].exp() for j in chosen) / total))
        return losses


class Transfer(Formula):
    COMPARED = ("featurizer", "classifier", "adversarial_classifier")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.adversarial_classifier = copy.deepcopy(self.classifier)
        # Adam skips weights without gradient, so those of the head take half as many steps.
        self.adam_f, self.adam_c = (
            Adam(module.parameters(), hparams["lr"], hparams["weight_decay"])
            for module in (self.featurizer, self.classifier)
        )

    def gap(self, domains):
        risks = [F.cross_entropy(self.adversarial_classifier(self.featurizer(x)), y) for x, y in domains]
        values = [risk.item() for risk in risks]
        return risks[values.index(max(values))] - risks[values.index(min(values))]

    def update(self, domains, t):
        h = self.hparams
        if not h["gda"]:  # with it, a step of SGD on an adversarial head that is overwritten before it is used
            gradients = torch.autograd.grad(ERM.loss(self, domains, t), self.parameters())
            self.adam_f.apply(gradients[: len(self.adam_f.parameters)])
            self.adam_c.apply(gradients[len(self.adam_f.parameters) :])
            self.adam_f.step(h["t_lambda"] * self.gap(domains))
        adversary, head = list(self.adversarial_classifier.parameters()), list(self.classifier.parameters())
        for a, c in zip(adversary, head, strict=True):
            a.data = c.data.clone()
        for _ in range(h["d_steps_per_g"]):
            gradients = torch.autograd.grad(h["t_lambda"] * self.gap(domains), adversary)
            for a, g in zip(adversary, gradients, strict=True):
                a.data = a.data + h["lr_d"] * g
            offsets = [a.data - c.data for a, c in zip(adversary, head, strict=True)]
            distance = math.sqrt(sum((offset**2).sum().item() for offset in offsets))
            if distance > h["delta"]:
                for a, c, offset in zip(adversary, head, offsets, strict=True):
                    a.data = c.data + h["delta"] / distance * offset


class RDM(Formula):
    COMPARED = ("featurizer", "classifier")

    def loss(self, domains, t):
        h = self.hparams
        if t == h["rdm_penalty_anneal_iters"]:
            self.adam.reset()
            self.adam.lr = h["rdm_lr"]
        losses = [[-p[y_i] for p, y_i in zip(self.logits(x).log_softmax(1), y, strict=True)] for x, y in domains]
        risks = [mean(part) for part in losses]
        if t < h["rdm_penalty_anneal_iters"]:
            return mean(risks)
        worst = losses[max(range(len(risks)), key=lambda e: risks[e].item())]
        everything = [value for part in losses for value in part]
        gammas = [1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100, 1000]
        matching = discrepancy(worst, everything, gammas)
        variance = sum(
            sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1) for values in (everything, worst)
        )
        return mean(risks) + h["rdm_lambda"] * matching + h["variance_weight"] * variance
