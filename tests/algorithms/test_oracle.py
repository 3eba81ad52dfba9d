"""Tests of MIRO, with a ResNet-18 of random weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed import networks
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.miro import MIRO
from domainbed.backbones import without_weights
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams
from tests.algorithms import checks, formulas_oracle

SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the backbones, which support images of any size, for small ones."""
    monkeypatch.setitem(networks._FEATURIZERS, SHAPE[1:], networks._backbone)


def make(**hparams) -> Algorithm:
    torch.manual_seed(0)
    with without_weights():
        return MIRO(SHAPE, 3, 3, {**default_hparams("MIRO", "PACS"), "backbone": "resnet18", **hparams})


def batches(n_updates: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        [(torch.randn(2, *SHAPE, generator=generator, dtype=dtype), torch.randint(3, (2,), generator=generator))
         for _ in range(3)]
        for _ in range(n_updates)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "hparams", [{"ld": 0.7, "lr": 5e-4}, {"weight_decay": 0.1, "ld": 3.0, "lr": 5e-4, "lr_mult": 30.0}], ids=str
)
def test_twenty_updates_equal_the_formula_in_float64(hparams: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchvision.models.resnet.ResNet", checks.NarrowResNet)
    algorithm = make(**hparams).double()
    formula = formulas_oracle.MIRO(algorithm, algorithm.hparams)
    before = {
        name: [p.clone() for p in getattr(algorithm, name).parameters()] for name in ("network", "betas", "oracle")
    }
    for t, domains in enumerate(batches(20, torch.float64)):
        algorithm.update(domains)
        formula.update(domains, t)
    for name in ("featurizer", "classifier", "betas", "oracle"):
        checks.assert_same_weights(getattr(algorithm, name), getattr(formula, name))
    for name, old in before.items():
        is_same = [
            torch.allclose(p, q, atol=1e-4) for p, q in zip(getattr(algorithm, name).parameters(), old, strict=True)
        ]
        assert all(is_same) if name == "oracle" else not any(is_same), name
    x = batches(1, torch.float64)[0][0][0]
    torch.testing.assert_close(algorithm.predict(x), formula.logits(x), rtol=0, atol=1e-9)


def test_initial_state():
    """The variances are 0.1, one per channel; the oracle is a frozen copy; β has a learning rate of its own."""
    algorithm = make(lr=0.002, lr_mult=5.0, weight_decay=0.1)
    assert [tuple(beta.shape) for beta in algorithm.betas] == [(1, c, 1, 1) for c in (64, 64, 128, 256, 512)]
    for beta in algorithm.betas:
        torch.testing.assert_close(F.softplus(beta) + 1e-5, torch.full_like(beta, 0.1))
    checks.assert_same_weights(algorithm.oracle, algorithm.featurizer, 0.0)
    assert not any(p.requires_grad for p in algorithm.oracle.parameters())
    groups = [(group["lr"], group["weight_decay"], len(group["params"])) for group in algorithm.optimizer.param_groups]
    assert groups == [(0.002, 0.1, 62), (0.01, 0.1, 5)]


def test_first_penalty_is_that_of_the_variances():
    """At first the maps equal those of the oracle: each layer adds ½ log 0.1."""
    metrics = make().update(batches(1)[0])
    torch.testing.assert_close(metrics["reg_loss"], 5 * torch.tensor(0.1).log() / 2, rtol=1e-4, atol=0)


def test_batch_norm_is_frozen_in_both_networks():
    algorithm = make().train()
    algorithm.update(batches(1)[0])
    norms = [m for m in algorithm.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 * 20
    for norm in norms:
        assert not norm.training
        assert not norm.running_mean.any()


@pytest.mark.parametrize("hparams", [{"pretrained": False}, {"backbone": "vgg11"}], ids=str)
def test_other_networks_are_rejected(hparams: dict):
    with pytest.raises(UsageError, match="MIRO requires photographs and a pretrained ResNet"):
        make(**hparams)


def test_small_images_are_rejected():
    with pytest.raises(UsageError, match="MIRO requires photographs and a pretrained ResNet"):
        MIRO((2, 8, 8), 3, 3, default_hparams("MIRO", "ColoredDigits"))
