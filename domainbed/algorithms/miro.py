"""MIRO: mutual information regularization with oracle (Cha, Lee, Park and Chun, ECCV 2022)."""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import Metrics, Minibatches, Unlabeled, concatenate, take_step
from domainbed.algorithms.erm import ERM
from domainbed.errors import UsageError
from domainbed.hparams import MAX_RATE, Hparam, Hparams

LAYERS = ("maxpool", "layer1", "layer2", "layer3", "layer4")  # of ResNets, from torchvision or timm
INITIAL_VARIANCE = 0.1
EPSILON = 1e-5


class MIRO(ERM):
    """Keeps the feature maps of five layers close to those of the pretrained network, in units of learned variances.

    The regularizer is Σ over layers of ½ mean[(a − a⁰)² / σ² + log σ²], with a the maps, a⁰ those of the frozen
    pretrained network, and σ² = softplus(β) + 1e-5 per channel. β has learning rate `lr` × `lr_mult`, and, as in the
    published code, weight decay.
    """

    REQUIRES_IMAGES = True
    SUPPORTS_COMPILATION = False  # compiled code may ignore hooks
    REQUIRES_PHOTOS = True
    HPARAMS = {"ld": Hparam(0.1, at_least=0), "lr_mult": Hparam(10.0, above=0, at_most=MAX_RATE)}

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        layers = dict(getattr(self.featurizer, "network", nn.Module()).named_children())
        if not all(name in layers for name in LAYERS) or not hparams.get("pretrained", True):
            raise UsageError('MIRO requires photographs and a pretrained ResNet, such as "backbone": "resnet50"')
        self.oracle = copy.deepcopy(self.featurizer).requires_grad_(False)
        self.oracle.is_frozen = True  # even if the statistics of the trained network's batch norm are not frozen
        self.oracle.train()
        with torch.no_grad():
            _, maps = self.feature_maps(self.oracle, torch.zeros(1, *input_shape))
        beta = math.log(math.expm1(INITIAL_VARIANCE - EPSILON))
        self.betas = nn.ParameterList(nn.Parameter(torch.full((1, a.shape[1], 1, 1), beta)) for a in maps)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.network.parameters())},
                {"params": list(self.betas), "lr": hparams["lr"] * hparams["lr_mult"]},
            ],
            lr=hparams["lr"],
            weight_decay=hparams["weight_decay"],
        )

    @staticmethod
    def feature_maps(featurizer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the features [n, d] of images and the maps [n, channels, height, width] of LAYERS."""
        maps: list[torch.Tensor] = []
        handles = [
            getattr(featurizer.network, name).register_forward_hook(lambda module, inputs, output: maps.append(output))
            for name in LAYERS
        ]
        try:
            return featurizer(x), maps
        finally:
            for handle in handles:
                handle.remove()

    def update(self, minibatches: Minibatches, unlabeled: Unlabeled = None) -> Metrics:
        x, y = concatenate(minibatches)
        z, maps = self.feature_maps(self.featurizer, x)
        with torch.no_grad():
            _, oracle_maps = self.feature_maps(self.oracle, x)
        penalties = []
        for a, oracle, beta in zip(maps, oracle_maps, self.betas, strict=True):
            variance = F.softplus(beta) + EPSILON
            penalties.append(
                ((a.to(variance.dtype) - oracle.to(variance.dtype)) ** 2 / variance + variance.log()).mean() / 2
            )
        penalty = torch.stack(penalties).sum()
        nll = F.cross_entropy(self.classifier(z), y)
        loss = nll + self.hparams["ld"] * penalty
        take_step(self.optimizer, loss)
        return {"loss": loss.detach(), "nll": nll.detach(), "reg_loss": penalty.detach()}
