"""SAGM: sharpness-aware gradient matching (Wang, Zhang, Lei and Zhang, CVPR 2023)."""

from torch.nn import functional as F

from domainbed.algorithms.base import (
    Metrics,
    Minibatches,
    Unlabeled,
    concatenate,
    gradients_of,
    take_step_along,
    trained_parameters,
)
from domainbed.algorithms.sam import PerturbedERM, gradient_norm
from domainbed.hparams import Hparam, one_of

RHO = 0.05  # as in the published code, where the hyperparameter of this name has no effect


class SAGM(PerturbedERM):
    """Minimizes the loss, the perturbed loss, and the angle between their gradients.

    θ' = θ + (rho / ‖g‖ − alpha) g with g the gradient at θ; the step is along the mean of g and the gradient at θ' (the
    published code; the paper adds them). Running statistics of batch norm, if it is not frozen, are also updated at θ',
    unlike in the published code.
    """

    HPARAMS = {"alpha": Hparam(0.001, one_of(0.01, 0.02, 0.05, 0.1), at_least=0)}

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        loss = F.cross_entropy(self.network(x), y)
        gradients = gradients_of(loss, trained_parameters(self.network))
        scale = RHO / (gradient_norm(gradients) + 1e-12) - self.hparams["alpha"]
        perturbed, _ = self.gradients_at_perturbed_weights(x, y, gradients, scale)
        means = [(g + h) / 2 for g, h in zip(gradients, perturbed, strict=True)]
        take_step_along(self.optimizer, dict(zip(trained_parameters(self.network), means, strict=True)))
        return {"loss": loss.detach()}
