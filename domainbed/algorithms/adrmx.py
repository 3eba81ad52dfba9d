"""ADRMX: additive disentanglement of domain features with remix loss (Demirel, Aptoula and Ozkan, 2023)."""

import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.adversarial import AdversarialAlgorithm
from domainbed.algorithms.base import Metrics, take_step
from domainbed.hparams import MAX_RATE, Hparam, Hparams, one_of

TEMPERATURE = 0.07
CONTRAST_WEIGHT = 0.5  # of pairs from one domain; of other pairs 1 - CONTRAST_WEIGHT
EPSILON = 1e-5


class ADRMX(AdversarialAlgorithm):
    """Subtracts domain features from label features, and remixes the difference with domain features of other samples.

    Two featurizers give label features z^l and domain features z^d; z^c = z^l − z^d must not reveal the domain to a
    discriminator. Counting updates from 1, update t trains the discriminator if t mod (1 + d_steps_per_g_step) <
    d_steps_per_g_step, otherwise everything else.

    As in the published code, the remix loss draws its pairs from the first samples of the batch, as many as the class
    has, whatever their class and domain; and predictions come from the head on z^l, not from that on z^c.
    """

    REQUIRES_FEATURIZER = True  # z^c would be zero
    HPARAMS = {
        "cnt_lambda": Hparam(1.0, at_least=0),
        "dclf_lambda": Hparam(1.0, at_least=0),
        "disc_lambda": Hparam(0.75, at_least=0),
        "rmxd_lambda": Hparam(1.0, at_least=0),
        "d_steps_per_g_step": Hparam(2, at_least=0),
        "beta1": Hparam(0.5, at_least=0, below=1),
        "mlp_width": Hparam(256, at_least=1, at_most=2**16),
        "mlp_depth": Hparam(9, one_of(8, 9, 10), at_least=2, at_most=2**10),
        "mlp_dropout": Hparam(0.0, at_least=0, at_most=1),
        "lr": Hparam(
            3e-5,
            one_of(2e-5, 3e-5, 4e-5, 5e-5),
            small_images=Hparam(3e-3, one_of(5e-4, 1e-3, 2e-3, 3e-3)),
            above=0,
            at_most=MAX_RATE,
        ),
    }

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.num_classes = num_classes
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.featurizer_d = networks.Featurizer(input_shape, hparams)
        d = self.featurizer.n_outputs
        self.classifier = networks.Classifier(d, num_classes, is_nonlinear=True)
        self.classifier_c = networks.Classifier(d, num_classes, is_nonlinear=True)
        self.classifier_d = networks.Classifier(d, num_domains, is_nonlinear=True)
        self.discriminator = networks.MLP(d, num_domains, hparams)
        self.network = nn.ModuleList(
            [self.featurizer, self.featurizer_d, self.classifier, self.classifier_c, self.classifier_d]
        )
        options = {"lr": hparams["lr"], "betas": (hparams["beta1"], 0.9)}
        self.disc_opt = torch.optim.Adam(self.discriminator.parameters(), **options)
        self.optimizer = torch.optim.Adam(self.network.parameters(), **options)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.featurizer(x))

    def train_discriminator(self, x: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> Metrics:
        with torch.no_grad():
            z_c = self.featurizer(x) - self.featurizer_d(x)
        loss = F.cross_entropy(self.discriminator(z_c), domains)
        take_step(self.disc_opt, loss)
        return {"loss_disc": loss.detach()}

    def train_generator(self, x: torch.Tensor, y: torch.Tensor, domains: torch.Tensor) -> Metrics:
        z_l, z_d = self.featurizer(x), self.featurizer_d(x)
        z_c = z_l - z_d
        losses = {
            "loss_cls": F.cross_entropy(self.classifier(z_l), y) + F.cross_entropy(self.classifier_c(z_c), y),
            "loss_dclf": self.hparams["dclf_lambda"] * F.cross_entropy(self.classifier_d(z_d), domains),
            "loss_remix": self.hparams["rmxd_lambda"] * self.remix_loss(z_c, z_d, y),
            "loss_cnt": self.hparams["cnt_lambda"]
            * (contrastive_loss(z_l, y, domains) + contrastive_loss(z_c, y, domains)),
            "loss_dann": -self.hparams["disc_lambda"] * F.cross_entropy(self.discriminator(z_c), domains),
        }
        loss = torch.stack(list(losses.values())).sum()
        take_step(self.optimizer, loss)
        return {"loss_total": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def remix_loss(self, z_c: torch.Tensor, z_d: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean over classes of CE(classifier(z^c_i + z^d_j), y_i), 0-dim, for one random pair per class."""
        counts = (y[:, None] == torch.arange(self.num_classes, device=y.device)).sum(0)
        u, v = torch.rand(2, self.num_classes, device=y.device, dtype=torch.float64)
        i = (u * counts).long()
        j = (v * (counts - 1)).long()
        j = j + (j >= i)  # another one
        has_pair = counts >= 2
        i, j = i * has_pair, j * has_pair
        risks = F.cross_entropy(self.classifier(z_c[i] + z_d[j]), y[i], reduction="none")
        return (risks * has_pair).sum() / self.num_classes


def contrastive_loss(
    z: torch.Tensor,
    y: torch.Tensor,
    domains: torch.Tensor,
    weight: float = CONTRAST_WEIGHT,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Return the supervised contrastive loss of features z [n, d], 0-dim.

    Pairs of images have weight `weight` within and 1 - `weight` between domains.
    """
    z = F.normalize(z, dim=1)
    same_domain = domains[:, None] == domains[None]
    others = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    similarities = (z @ z.T / temperature).exp()
    similarities = torch.where(same_domain, weight * similarities, (1 - weight) * similarities)
    totals = EPSILON + (similarities * others).sum(1, keepdim=True)
    positives = (y[:, None] == y[None]) & others
    n_positives = positives.sum(1)
    logs = ((similarities / totals + EPSILON).log() * positives).sum(1) / n_positives.clamp(min=1)
    return -logs.sum() / (len(y) - (n_positives == 0).sum() + 1)
