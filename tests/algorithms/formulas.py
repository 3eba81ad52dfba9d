"""Slow reference implementations of the seven algorithms, written from the formulas in their papers."""

import copy

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import nn
from torch.nn import functional as F


class Adam:
    """Adam (Kingma and Ba, Algorithm 1) with L2 regularization added to the gradient."""

    def __init__(self, parameters, lr, weight_decay, betas=(0.9, 0.999)):
        self.parameters, self.lr, self.weight_decay, self.betas = list(parameters), lr, weight_decay, betas
        self.reset()

    def reset(self):
        self.m, self.v, self.t = [0.0] * len(self.parameters), [0.0] * len(self.parameters), 0

    def step(self, loss):
        self.apply(torch.autograd.grad(loss, self.parameters, retain_graph=True))

    def apply(self, gradients):
        self.t += 1
        b1, b2 = self.betas
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            g = g + self.weight_decay * p.detach()
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
            m, v = self.m[i] / (1 - b1**self.t), self.v[i] / (1 - b2**self.t)
            p.data = p.data - self.lr * m / (v.sqrt() + 1e-8)


def mean(values):
    return sum(values) / len(values)


class Formula:
    """An algorithm that starts from the weights of another one and minimizes `loss(domains, t)`, t = 0, 1, …"""

    def __init__(self, algorithm, hparams):
        self.featurizer = copy.deepcopy(algorithm.featurizer)
        self.classifier = copy.deepcopy(algorithm.classifier)
        self.hparams = hparams
        self.adam = Adam(self.parameters(), hparams["lr"], hparams["weight_decay"])

    def parameters(self):
        return [*self.featurizer.parameters(), *self.classifier.parameters()]

    def logits(self, x):
        return self.classifier(self.featurizer(x))

    def risks(self, domains):
        return [F.cross_entropy(self.logits(x), y) for x, y in domains]

    def annealed(self, t, name, before, after):
        """Return the penalty's weight, and reset Adam if it changes."""
        if t == self.hparams[name]:
            self.adam.reset()
        return self.hparams[after] if t >= self.hparams[name] else before

    def update(self, domains, t):
        self.adam.step(self.loss(domains, t))


class ERM(Formula):
    def loss(self, domains, t):
        sizes = [len(y) for _, y in domains]
        return sum(n * risk for n, risk in zip(sizes, self.risks(domains), strict=True)) / sum(sizes)


class CORAL(Formula):
    def loss(self, domains, t):
        z = [self.featurizer(x) for x, _ in domains]
        pairs = [(i, j) for i in range(len(z)) for j in range(i)]
        means = mean([((z[i].mean(0) - z[j].mean(0)) ** 2).mean() for i, j in pairs])
        covariances = mean([((torch.cov(z[i].T) - torch.cov(z[j].T)) ** 2).mean() for i, j in pairs])
        return mean(self.risks(domains)) + self.hparams["mmd_gamma"] * (means + covariances)


class IRM(Formula):
    def derivative(self, logits, y):
        """Return d/ds of the mean of -log softmax(s · logits)_y at s = 1."""
        residual = logits.softmax(1) - F.one_hot(y, logits.shape[1])
        return (residual * logits).sum(1).mean()

    def loss(self, domains, t):
        w = self.annealed(t, "irm_penalty_anneal_iters", 1.0, "irm_lambda")
        penalties = []
        for x, y in domains:
            logits = self.logits(x)
            even, odd = [i for i in range(len(y)) if i % 2 == 0], [i for i in range(len(y)) if i % 2 == 1]
            penalties.append(self.derivative(logits[even], y[even]) * self.derivative(logits[odd], y[odd]))
        return mean(self.risks(domains)) + w * mean(penalties)


class VREx(Formula):
    def loss(self, domains, t):
        w = self.annealed(t, "vrex_penalty_anneal_iters", 1.0, "vrex_lambda")
        risks = self.risks(domains)
        return mean(risks) + w * torch.stack(risks).var(correction=0)


class DANN(Formula):
    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.discriminator = copy.deepcopy(algorithm.discriminator)
        betas = (hparams["beta1"], 0.9)
        self.adam = Adam(self.parameters(), hparams["lr_g"], hparams["weight_decay_g"], betas)
        self.adam_d = Adam(self.discriminator.parameters(), hparams["lr_d"], hparams["weight_decay_d"], betas)

    def update(self, domains, t):
        risks, norms, n = [], [], sum(len(y) for _, y in domains)
        for d, (x, _) in enumerate(domains):
            for z in self.featurizer(x):
                risks.append(F.cross_entropy(self.discriminator(z[None]), torch.tensor([d])))
                (g,) = torch.autograd.grad(risks[-1], z, create_graph=True)
                norms.append(g.square().sum())
        disc_loss = mean(risks) + self.hparams["grad_penalty"] * mean(norms)
        d_steps = self.hparams["d_steps_per_g_step"]
        if (t + 1) % (1 + d_steps) < d_steps:
            self.adam_d.step(disc_loss)
        else:
            erm = sum(len(y) * risk for (_, y), risk in zip(domains, self.risks(domains), strict=True)) / n
            self.adam.step(erm - self.hparams["lambda"] * disc_loss)


class Fish(Formula):
    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.inner = copy.deepcopy(nn.ModuleList([self.featurizer, self.classifier]))
        self.adam = Adam(self.inner.parameters(), hparams["lr"], hparams["weight_decay"])

    def update(self, domains, t):
        featurizer, classifier = self.inner
        for inner, outer in zip(self.inner.parameters(), self.parameters(), strict=True):
            inner.data = outer.data
        for x, y in domains:
            self.adam.step(F.cross_entropy(classifier(featurizer(x)), y))
        for inner, outer in zip(self.inner.parameters(), self.parameters(), strict=True):
            outer.data = outer.data + self.hparams["meta_lr"] * (inner.data - outer.data)


def per_sample_gradients(classifier, z, y):
    """Return BackPACK's gradients [n, coordinates], layer by layer, each in the order outputs x (inputs, bias)."""
    classifier = extend(classifier)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))(classifier(z), y)
    parameters = list(classifier.parameters())
    with backpack(BatchGrad()):  # without z among the inputs, its hooks never fire
        torch.autograd.grad(loss, [z, *parameters], create_graph=True)
    pairs = zip(parameters[::2], parameters[1::2], strict=True)
    gradients = [torch.cat([w.grad_batch, b.grad_batch[:, :, None]], 2).flatten(1) for w, b in pairs]
    return torch.cat(gradients, 1)


class Fishr(Formula):
    averages = None

    def statistic(self, gradients):
        centered = gradients - gradients.mean(0)
        return {
            "variance": lambda: gradients.var(0, correction=0),
            "uncentered": lambda: gradients.square().mean(0),
            "covariance": lambda: torch.einsum("ni,nj->ij", centered, centered) / len(centered),
        }[self.hparams["variant"]]()

    def loss(self, domains, t):
        w = self.annealed(t, "penalty_anneal_iters", 0.0, "lambda")
        if self.hparams["variant"] == "all_layers":
            return sum(self.risks(domains)) + w * self.all_layers_penalty(domains)
        v = [self.statistic(per_sample_gradients(self.classifier, self.featurizer(x), y)) for x, y in domains]
        gamma = self.hparams["ema"]
        history = self.averages or [torch.zeros_like(v_e) for v_e in v]
        averages = [gamma * old + (1 - gamma) * v_e for old, v_e in zip(history, v, strict=True)]
        self.averages = [average.detach() for average in averages]
        corrected = [average / (1 - gamma) for average in averages]
        penalty = mean([(v_e - mean(corrected)).square().mean() for v_e in corrected])
        return ERM.loss(self, domains, t) + w * penalty

    def all_layers_penalty(self, domains):
        v = []
        for x, y in domains:
            gradients = []
            for i in range(len(y)):
                loss = F.cross_entropy(self.logits(x[i : i + 1]), y[i : i + 1])
                g = torch.autograd.grad(loss, self.parameters(), create_graph=True)
                gradients.append(torch.cat([part.flatten() for part in g]))
            v.append(torch.stack(gradients).var(0, correction=0))
        return torch.stack(v).var(0, correction=0).sum()
