"""Slow reference implementations of IGA, AND-mask and SAND-mask, coordinate by coordinate."""

import math

import torch

from tests.algorithms.formulas import Formula, mean


class IGA(Formula):
    COMPARED = ("featurizer", "classifier")

    def loss(self, domains, t):
        """The mean gradient is not detached; the penalty's gradient must be the same."""
        risks = self.risks(domains)
        gradients = [torch.autograd.grad(risk, self.parameters(), create_graph=True) for risk in risks]
        mean_gradient = torch.autograd.grad(mean(risks), self.parameters(), create_graph=True)
        penalty = 0.0
        for gradient in gradients:
            for part, mean_part in zip(gradient, mean_gradient, strict=True):
                penalty = penalty + ((part - mean_part) ** 2).sum()
        return mean(risks) + self.hparams["penalty"] * penalty


def sign(g):
    return (g > 0) - (g < 0)


class ANDMask(Formula):
    COMPARED = ("featurizer", "classifier")

    def mask(self, gradients):
        """Return the mask of one coordinate, given its gradient in each domain."""
        agreement = abs(sum(sign(g) for g in gradients)) / len(gradients)
        return 1.0 if agreement >= self.hparams["tau"] else 0.0

    def update(self, domains, t):
        masked = []
        risks = self.risks(domains)
        gradients = [torch.autograd.grad(risk, self.parameters(), retain_graph=True) for risk in risks]
        for p, *of_domains in zip(self.parameters(), *gradients, strict=True):
            coordinates = list(zip(*[g.flatten().tolist() for g in of_domains], strict=True))
            masks = [self.mask(g) for g in coordinates]
            divisor = 1e-10 + mean(masks)
            values = [m * mean(g) / divisor for m, g in zip(masks, coordinates, strict=True)]
            masked.append(torch.tensor(values, dtype=p.dtype).view(p.shape))
        self.adam.apply(masked)


class SANDMask(ANDMask):
    def mask(self, gradients):
        n, center = len(gradients), mean(gradients)
        variance = sum((g - center) ** 2 for g in gradients) / (n - 1) if n > 1 else 1e-17
        agreement = abs(sum(sign(g) for g in gradients)) / n - self.hparams["tau"]
        if variance == 0.0:
            ratio = math.nan if agreement == 0.0 else math.copysign(math.inf, agreement)
        else:
            ratio = self.hparams["k"] * agreement / variance
        value = math.tanh(ratio)
        return 1e-17 if math.isnan(value) else max(0.0, value)
