"""GroupDRO: distributionally robust optimization over groups (Sagawa, Koh, Hashimoto and Liang, ICLR 2020)."""

import torch

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, domain_risks, outputs_by_domain, take_step
from domainbed.algorithms.erm import ERM
from domainbed.hparams import Hparam, Hparams, power


class GroupDRO(ERM):
    """Weights the domains' risks by q, which grows exponentially with each domain's risk (Algorithm 1).

    q_e ← q_e exp(groupdro_eta L_e), normalized to sum to 1; the loss is Σ q_e L_e with q constant. (The published
    tables were made with code that divided this sum by the number of domains.)
    """

    HPARAMS = {"groupdro_eta": Hparam(1e-2, power(10, -3, -1), at_least=0)}
    q: torch.Tensor  # [domains]

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("q", torch.ones(num_domains))

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        risks = domain_risks(outputs_by_domain(self.network, minibatches), minibatches)
        q = self.q * (self.hparams["groupdro_eta"] * risks.detach()).exp()
        self.q.copy_(q / q.sum())
        loss = self.q @ risks
        take_step(self.optimizer, loss)
        return {"loss": loss.detach()}
