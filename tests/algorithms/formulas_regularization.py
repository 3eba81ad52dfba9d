"""Slow reference implementations of spectral decoupling, IB-ERM and IB-IRM."""

from torch.nn import functional as F

from tests.algorithms import formulas
from tests.algorithms.formulas import Formula, mean


class SD(Formula):
    COMPARED = ("featurizer", "classifier")

    def loss(self, domains, t):
        risks, squares = [], []
        for x, y in domains:
            for p, label in zip(self.logits(x), y.tolist(), strict=True):
                risks.append(-p.log_softmax(0)[label])
                squares += [logit**2 for logit in p]
        return mean(risks) + self.hparams["sd_reg"] * mean(squares)


class IB_ERM(Formula):
    COMPARED = ("featurizer", "classifier")

    def bottleneck(self, domains):
        variances = []
        for x, _ in domains:
            z = self.featurizer(x)
            center = mean(list(z))
            of_coordinates = sum((row - center) ** 2 for row in z) / (len(z) - 1)
            variances.append(mean(list(of_coordinates)))
        return mean(variances)

    def loss(self, domains, t):
        w = self.annealed(t, "ib_penalty_anneal_iters", 0.0, "ib_lambda")
        return mean(self.risks(domains)) + w * self.bottleneck(domains)


class IB_IRM(IB_ERM):
    def loss(self, domains, t):
        w_irm = self.annealed(t, "irm_penalty_anneal_iters", 1.0, "irm_lambda")
        w_ib = self.annealed(t, "ib_penalty_anneal_iters", 0.0, "ib_lambda")
        risks, penalties = [], []
        for x, y in domains:
            logits = self.logits(x)
            risks.append(F.cross_entropy(logits, y))
            even, odd = (formulas.IRM.derivative(self, logits[start::2], y[start::2]) for start in (0, 1))
            penalties.append(even * odd)
        return mean(risks) + w_irm * mean(penalties) + w_ib * self.bottleneck(domains)
