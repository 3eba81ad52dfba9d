"""Slow reference implementation of ADRMX, pair by pair."""

import copy
import math

import torch
from torch.nn import functional as F

from tests.algorithms.formulas import Adam, Formula, mean

# Trained together; the discriminator has an optimizer of its own.
TRAINED = ("featurizer", "featurizer_d", "classifier", "classifier_c", "classifier_d")


class ADRMX(Formula):
    COMPARED = (*TRAINED, "discriminator")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.num_classes = algorithm.classifier[-1].out_features
        for name in self.COMPARED:
            setattr(self, name, copy.deepcopy(getattr(algorithm, name)))
        betas = (hparams["beta1"], 0.9)
        self.adam_d = Adam(self.discriminator.parameters(), hparams["lr"], 0.0, betas)
        trained = [p for name in TRAINED for p in getattr(self, name).parameters()]
        self.adam = Adam(trained, hparams["lr"], 0.0, betas)

    def update(self, domains, t):
        h = self.hparams
        x, y = (torch.cat(parts) for parts in zip(*domains, strict=True))
        domain = torch.tensor([e for e, (_, labels) in enumerate(domains) for _ in labels])
        z_l, z_d = self.featurizer(x), self.featurizer_d(x)
        z_c = z_l - z_d
        domain_risk = F.cross_entropy(self.discriminator(z_c), domain)
        if (t + 1) % (1 + h["d_steps_per_g_step"]) < h["d_steps_per_g_step"]:
            self.adam_d.step(domain_risk)
            return
        loss = F.cross_entropy(self.classifier(z_l), y) + F.cross_entropy(self.classifier_c(z_c), y)
        loss = loss + h["dclf_lambda"] * F.cross_entropy(self.classifier_d(z_d), domain)
        loss = loss + h["rmxd_lambda"] * self.remix(z_c, z_d, y.tolist())
        contrast = self.contrast(z_l, y.tolist()) + self.contrast(z_c, y.tolist())
        loss = loss + h["cnt_lambda"] * contrast - h["disc_lambda"] * domain_risk
        self.adam.step(loss)

    def remix(self, z_c, z_d, y):
        draws = torch.rand(2, self.num_classes, dtype=torch.float64).tolist()
        total = 0.0
        for k in range(self.num_classes):
            m = y.count(k)
            if m >= 2:
                i = math.floor(draws[0][k] * m)
                j = [index for index in range(m) if index != i][math.floor(draws[1][k] * (m - 1))]
                total = total - self.classifier(z_c[i] + z_d[j]).log_softmax(0)[y[i]]
        return total / self.num_classes

    def contrast(self, z, y):
        z = [row / row.norm() for row in z]
        n, total, without_positives = len(z), 0.0, 0
        a = [[0.5 * (z[i] @ z[j] / 0.07).exp() for j in range(n)] for i in range(n)]
        for i in range(n):
            divisor = 1e-5 + sum(a[i][j] for j in range(n) if j != i)
            logs = [(a[i][j] / divisor + 1e-5).log() for j in range(n) if j != i and y[j] == y[i]]
            if logs:
                total = total + mean(logs)
            else:
                without_positives += 1
        return -total / (n - without_positives + 1)
