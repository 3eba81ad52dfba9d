"""Slow reference implementation of MIRO on a ResNet of torchvision, channel by channel."""

import copy

import torch
from torch.nn import functional as F

from tests.algorithms.formulas import Adam, Formula


class MIRO(Formula):
    def __init__(self, algorithm, hparams):
        super().__init__(algorithm, hparams)
        self.oracle = copy.deepcopy(self.featurizer)
        self.betas = copy.deepcopy(algorithm.betas)
        self.adam_b = Adam(self.betas, hparams["lr"] * hparams["lr_mult"], hparams["weight_decay"])

    def maps(self, featurizer, x):
        """Return the output of the max-pooling layer and of the four groups of blocks, and the features."""
        r = featurizer.network
        maps = [r.maxpool(r.relu(r.bn1(r.conv1(x))))]
        for layer in (r.layer1, r.layer2, r.layer3, r.layer4):
            maps.append(layer(maps[-1]))
        return maps, maps[-1].mean(dim=(2, 3))

    def update(self, domains, t):
        x, y = (torch.cat(parts) for parts in zip(*domains, strict=True))
        maps, z = self.maps(self.featurizer, x)
        oracle_maps, _ = self.maps(self.oracle, x)
        loss = F.cross_entropy(self.classifier(z), y)
        for a, a_0, beta in zip(maps, oracle_maps, self.betas, strict=True):
            total = 0.0
            for c in range(a.shape[1]):
                variance = (1 + beta[0, c, 0, 0].exp()).log() + 1e-5
                total = total + ((a[:, c] - a_0[:, c].detach()) ** 2).sum() / variance
                total = total + len(a) * a.shape[2] * a.shape[3] * variance.log()
            loss = loss + self.hparams["ld"] * total / a.numel() / 2
        gradients = torch.autograd.grad(loss, [*self.parameters(), *self.betas])
        n = len(self.parameters())
        self.adam.apply(gradients[:n])
        self.adam_b.apply(gradients[n:])
