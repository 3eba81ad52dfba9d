"""RDM: domain generalization using risk distribution matching (Nguyen, Do, Duong and Nguyen, WACV 2024)."""

from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, stack_domains, take_step
from domainbed.algorithms.distances import mmd_distance
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.penalty import reset_optimizer
from domainbed.hparams import MAX_RATE, SHARED, Hparam, Hparams, int_uniform, uniform

GAMMAS = tuple(10.0**k for k in range(-4, 4))
NO_VARIANCE = Hparam(0.0)
LARGE = Hparam(40, int_uniform(30, 60))  # the batch size on the largest datasets


class RDM(ERM):
    """Matches the distribution of the worst domain's risks to that of all domains.

    With ℓ the cross-entropy of each sample and ℓ_w those of the domain with the largest mean, the loss is mean risk +
    rdm_lambda × the maximum mean discrepancy of ℓ_w and ℓ + variance_weight × (var ℓ + var ℓ_w). After
    `rdm_penalty_anneal_iters` updates without penalties, Adam is reset with learning rate `rdm_lr`. Batches of
    different sizes are cut to the smallest.
    """

    HPARAMS = {
        "rdm_lambda": Hparam(
            5.0,
            uniform(0.1, 10.0),
            datasets={
                "PACS": Hparam(5.0, uniform(1.0, 10.0)),
                "TerraIncognita": Hparam(5.0, uniform(1.0, 10.0)),
                "DomainNet": Hparam(0.5, uniform(0.1, 1.0)),
            },
            at_least=0,
        ),
        "rdm_penalty_anneal_iters": Hparam(
            1500, int_uniform(800, 2700), datasets={"DomainNet": Hparam(2400, int_uniform(1500, 3000))}, at_least=0
        ),
        "variance_weight": Hparam(
            0.004,
            uniform(0.001, 0.007),
            datasets=dict.fromkeys(("TerraIncognita", "OfficeHome", "DomainNet"), NO_VARIANCE),
            at_least=0,
        ),
        "rdm_lr": Hparam(1.5e-5, uniform(8e-6, 2e-5), above=0, at_most=MAX_RATE),
        "batch_size": Hparam(
            88,
            int_uniform(70, 100),
            small_images=SHARED["batch_size"].small_images,
            datasets=dict.fromkeys(("DomainNet", "TerraIncognita"), LARGE),
            at_least=1,
            at_most=2**20,
        ),
    }
    MIN_DOMAINS = 2
    MIN_BATCH_SIZE = 2

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.update_count = 0

    @property
    def phase(self) -> str:
        return "warm-up" if self.update_count < self.hparams["rdm_penalty_anneal_iters"] else "matching"

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = stack_domains(minibatches)
        logits = self.predict(x.flatten(0, 1))
        losses = F.cross_entropy(logits, y.flatten(), reduction="none").view(len(x), -1)  # [domains, n]
        risk = losses.mean()
        worst = losses.index_select(0, losses.mean(1).argmax().view(1)).flatten()
        matching = mmd_distance(worst[:, None], losses.flatten()[:, None], GAMMAS)
        variance = losses.var() + worst.var()
        loss = risk
        if self.phase == "matching":
            loss = risk + self.hparams["rdm_lambda"] * matching + self.hparams["variance_weight"] * variance
        if self.update_count == self.hparams["rdm_penalty_anneal_iters"]:
            reset_optimizer(self.optimizer, self.hparams["rdm_lr"])
        take_step(self.optimizer, loss)
        self.update_count += 1
        return {
            "total_loss": loss.detach(),
            "erm_loss": risk.detach(),
            "matching_penalty": matching.detach(),
            "variance_penalty": variance.detach(),
        }
