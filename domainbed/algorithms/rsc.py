"""RSC: self-challenging improves cross-domain generalization (Huang, Wang, Xing and Huang, ECCV 2020)."""

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, differentiable, take_step
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, uniform


class RSC(ERM):
    """Mutes the features with the largest gradients, in the samples whose predictions depend most on them.

    The paper masks feature maps by position or by channel; the published DomainBed code, and this class, mask the
    coordinates of the pooled feature vectors.
    """

    HPARAMS = {
        "rsc_f_drop_factor": Hparam(1 / 3, uniform(0, 0.5), at_least=0, at_most=1),
        "rsc_b_drop_factor": Hparam(1 / 3, uniform(0, 0.5), at_least=0, at_most=1),
    }

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        z = differentiable(self.featurizer(x))
        logits = self.classifier(z)
        labels = y[:, None]
        (gradient,) = torch.autograd.grad(logits.gather(1, labels).sum(), z, retain_graph=True)
        with torch.no_grad():
            threshold = quantile(gradient, 1 - self.hparams["rsc_f_drop_factor"])[:, None]
            mask = (gradient < threshold).to(z.dtype)
            muted = self.classifier(z * mask)
            change = (logits.softmax(1).gather(1, labels) - muted.softmax(1).gather(1, labels))[:, 0]
            is_unchanged = change < quantile(change, 1 - self.hparams["rsc_b_drop_factor"])
            mask = torch.maximum(mask, is_unchanged[:, None].to(z.dtype))
        loss = F.cross_entropy(self.classifier(z * mask), y)
        take_step(self.optimizer, loss)
        return {"loss": loss.detach()}


def quantile(x: torch.Tensor, q: float) -> torch.Tensor:
    """Return the q-quantile over the last dimension of [..., n], linearly interpolated."""
    rank = q * (x.shape[-1] - 1)
    low = int(rank)
    ordered = x.sort(dim=-1).values
    return torch.lerp(ordered[..., low], ordered[..., min(low + 1, x.shape[-1] - 1)], rank - low)
