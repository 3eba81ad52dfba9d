"""Slow reference implementations of MLDG, ARM and MTL."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from tests.algorithms.formulas import Adam, Formula, mean


class MLDG(Formula):
    """The inner step is that of a new Adam on a copy of the network."""

    COMPARED = ("featurizer", "classifier")

    def update(self, domains, t):
        n, k = len(domains), self.hparams["n_meta_test"]
        size = min(len(y) for _, y in domains)
        order = torch.rand(n, dtype=torch.float64).argsort().tolist()
        train, test = order[: n - k], order[n - k :]
        total = [torch.zeros_like(p) for p in self.parameters()]
        for i, domain in enumerate(train):
            (x_i, y_i), (x_j, y_j) = domains[domain], domains[test[i % k]]
            inner = copy.deepcopy(nn.Sequential(self.featurizer, self.classifier))
            Adam(inner.parameters(), self.hparams["lr"], self.hparams["weight_decay"]).step(
                F.cross_entropy(inner(x_i[:size]), y_i[:size])
            )
            outer_loss = F.cross_entropy(inner(x_j[:size]), y_j[:size])
            g_test = torch.autograd.grad(outer_loss, list(inner.parameters()))
            g_train = torch.autograd.grad(F.cross_entropy(self.logits(x_i[:size]), y_i[:size]), self.parameters())
            for g, a, b in zip(total, g_train, g_test, strict=True):
                g += (a + self.hparams["mldg_beta"] * b) / n
        self.adam.apply(total)


class ARM(Formula):
    """Trains the context network only if `train_context`. Its batch norm is written out."""

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.context_net = copy.deepcopy(algorithm.context_net)
        if hparams["train_context"]:
            parameters = [*self.parameters(), *self.context_net.parameters()]
            self.adam = Adam(parameters, hparams["lr"], hparams["weight_decay"])

    def context(self, x, is_training):
        conv1, norm1, _, conv2, norm2, _, conv3 = self.context_net.context_net
        for conv, norm in ((conv1, norm1), (conv2, norm2)):
            x = F.conv2d(x, conv.weight, conv.bias, padding=2)
            channels = []
            for c in range(64):
                values = x[:, c]
                center, variance = values.mean(), values.var(correction=0)
                if is_training:
                    count = values.numel()
                    norm.running_mean[c] = 0.9 * norm.running_mean[c] + 0.1 * center.detach()
                    unbiased = variance.detach() * count / (count - 1)
                    norm.running_var[c] = 0.9 * norm.running_var[c] + 0.1 * unbiased
                else:
                    center, variance = norm.running_mean[c], norm.running_var[c]
                channels.append(norm.weight[c] * (values - center) / (variance + 1e-5).sqrt() + norm.bias[c])
            x = torch.stack(channels, 1).clamp(min=0)
        return F.conv2d(x, conv3.weight, conv3.bias, padding=2)

    def logits(self, x, is_training=False):
        size = self.hparams["batch_size"] if len(x) % self.hparams["batch_size"] == 0 else len(x)
        context = self.context(x, is_training)
        rows = []
        for start in range(0, len(x), size):
            group = mean([context[i] for i in range(start, start + size)])
            rows += [torch.cat([x[i], group]) for i in range(start, start + size)]
        return self.classifier(self.featurizer(torch.stack(rows)))

    def loss(self, domains, t):
        x, y = (torch.cat(parts) for parts in zip(*domains, strict=True))
        return F.cross_entropy(self.logits(x, is_training=True), y)


class MTL(Formula):
    COMPARED = ("featurizer", "classifier", "embeddings")

    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.embeddings = algorithm.embeddings.clone()

    def with_embedding(self, z, embedding):
        noise = torch.randn(len(z), z.shape[1], dtype=z.dtype) if self.hparams["mtl_noise"] else None
        rows = [torch.cat([z_i, embedding if noise is None else noise[i]]) for i, z_i in enumerate(z)]
        return self.classifier(torch.stack(rows))

    def logits(self, x):
        z = self.featurizer(x)
        return self.with_embedding(z, mean(list(z)))

    def loss(self, domains, t):
        ema, risks = self.hparams["mtl_ema"], []
        for e, (x, y) in enumerate(domains):
            z = self.featurizer(x)
            embedding = ema * mean(list(z)) + (1 - ema) * self.embeddings[e]
            self.embeddings[e] = embedding.detach()
            risks.append(F.cross_entropy(self.with_embedding(z, embedding), y))
        return sum(risks)
