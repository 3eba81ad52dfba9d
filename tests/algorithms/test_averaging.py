"""Tests of SMA, ERM++, SAM and SAGM."""

import pytest
import torch
from torch import nn

from domainbed import networks
from domainbed.algorithms import ermplusplus, sma
from domainbed.algorithms.sam import gradient_norm
from domainbed.errors import UsageError
from tests.algorithms import checks, formulas_averaging
from tests.algorithms.test_all import batches

HPARAMS = {"SAM": {"rho": 0.3}, "SAGM": {"alpha": 0.05}}
WEIGHT_DECAY = {"weight_decay": 0.1, "lr": 0.005}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        *((name, {}, (6, 6, 6)) for name in HPARAMS),
        *((name, WEIGHT_DECAY, (4, 7, 5)) for name in HPARAMS),
        *((name, {"nonlinear_classifier": True}, (6,)) for name in HPARAMS),
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(name: str, changes: dict, sizes: tuple[int, ...]):
    checks.assert_equals_formula(name, getattr(formulas_averaging, name), {**HPARAMS[name], **changes}, sizes)


class FeaturizerWithBatchNorm(nn.Module):
    def __init__(self, channels: int, hparams: dict) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.n_outputs = 8 * 36

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


AVERAGES = {
    "SMA": (sma, {}),
    "ERMPlusPlus": (ermplusplus, {"linear_steps": 4, "linear_lr": 0.02}),
}


@pytest.mark.parametrize("has_batch_norm", [False, True])
@pytest.mark.parametrize(("changes", "sizes"), [({}, (6, 6, 6)), (WEIGHT_DECAY, (4, 7, 5))], ids=str)
@pytest.mark.parametrize("name", list(AVERAGES))
def test_averages_equal_the_formula_in_float64(
    name: str, changes: dict, sizes: tuple[int, ...], has_batch_norm: bool, monkeypatch: pytest.MonkeyPatch
):
    """After every update, with an average that starts at the ninth."""
    module, hparams = AVERAGES[name]
    monkeypatch.setattr(module, "START", 9)
    if has_batch_norm:
        monkeypatch.setitem(networks._FEATURIZERS, (8, 8), FeaturizerWithBatchNorm)
    torch.manual_seed(0)
    algorithm = checks.make(name, {**hparams, **changes}).double()
    formula = getattr(formulas_averaging, name)(algorithm, algorithm.hparams, start=9)
    x = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    for t, domains in enumerate(batches(20, sizes, torch.float64)):
        before = [p.detach().clone() for p in algorithm.featurizer.parameters()]
        algorithm.update(domains)
        formula.update(domains, t)
        checks.assert_same_weights(algorithm.network, formula.network)
        checks.assert_same_weights(algorithm.average.network, formula.average)
        torch.testing.assert_close(algorithm.predict(x), formula.logits(x), rtol=0, atol=1e-9)
        is_frozen = name == "ERMPlusPlus" and t <= 4
        assert is_frozen == all(map(torch.equal, before, algorithm.featurizer.parameters()))
        assert torch.equal(algorithm.network[1].weight, algorithm.average.network[1].weight) == (t < 8)


@pytest.mark.parametrize(("name", "start"), [("SMA", 100), ("ERMPlusPlus", 600)])
def test_averages_start_at_the_published_update(name: str, start: int):
    """From update `start` on, the average is that of the weights after updates start - 1, start, …"""
    algorithm = checks.make(name, {})
    algorithm.network = nn.Linear(1, 1, bias=False)
    algorithm.average.network = nn.Linear(1, 1, bias=False).requires_grad_(False)
    for u in range(1, start + 10):
        nn.init.constant_(algorithm.network.weight, u)
        algorithm.average.add(algorithm.network)
        expected = u if u < start else (start - 1 + u) / 2
        assert algorithm.average.network.weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", list(AVERAGES))
def test_average_stays_in_evaluation_mode(name: str, monkeypatch: pytest.MonkeyPatch):
    """Predictions are those of the average, whose batch norm uses its running statistics."""
    monkeypatch.setitem(networks._FEATURIZERS, (8, 8), FeaturizerWithBatchNorm)
    algorithm = checks.make(name, {})
    assert not any(m.training for m in algorithm.average.modules())
    algorithm.update(batches(1)[0])
    for mode in (True, False, True):
        algorithm.train(mode)
        assert algorithm.network.training is mode
        assert not any(m.training for m in algorithm.average.modules())
    x = torch.rand(4, 2, 8, 8)
    assert torch.allclose(algorithm.predict(x)[:1], algorithm.predict(x[:1]), atol=1e-6)
    assert not any(p.requires_grad for p in algorithm.average.parameters())


def test_batch_norm_of_ermplusplus_follows_the_batches_only_if_there_is_any():
    algorithm = checks.make("ERMPlusPlus", {})
    assert not algorithm.has_batch_norm


def test_frozen_batch_norm_of_ermplusplus_does_not_follow(monkeypatch: pytest.MonkeyPatch):
    class Frozen(FeaturizerWithBatchNorm):
        def train(self, mode: bool = True):
            super().train(mode)
            self.layers[1].eval()
            return self

    monkeypatch.setitem(networks._FEATURIZERS, (8, 8), Frozen)
    algorithm = checks.make("ERMPlusPlus", {})
    for domains in batches(3):
        algorithm.update(domains)
    assert not algorithm.average.network[0].layers[1].running_mean.any()


def test_phases_of_ermplusplus():
    algorithm = checks.make("ERMPlusPlus", {"linear_steps": 2})
    phases = []
    for domains in batches(5):
        phases.append(algorithm.phase)
        algorithm.update(domains)
    assert phases == ["head", "head", "head", "network", "network"]


def test_lars_is_rejected():
    with pytest.raises(UsageError, match="lars"):
        checks.make("ERMPlusPlus", {"lars": True})


@pytest.mark.parametrize("name", list(HPARAMS))
def test_zero_gradient_leaves_the_weights_finite(name: str):
    """The norm of the gradient is 0, by which it is divided."""
    algorithm = checks.make(name, HPARAMS[name])
    nn.init.zeros_(algorithm.classifier.weight)
    nn.init.constant_(algorithm.classifier.bias, 0.0)
    algorithm.classifier.bias.data[0] = 1000.0
    x, _ = batches(1)[0][0]
    assert algorithm.update([(x, torch.zeros(6, dtype=torch.long))])["loss"] == 0
    assert all(p.isfinite().all() for p in algorithm.parameters())


def test_gradient_norm_is_that_of_all_coordinates():
    gradients = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0], [12.0, 0.0]])]
    assert gradient_norm(gradients) == 13


def test_loss_of_sam_is_that_at_the_perturbed_weights():
    """It is larger than the loss at the weights, which is SAGM's."""
    losses = []
    for name in ("ERM", "SAGM", "SAM"):
        torch.manual_seed(0)
        losses.append(checks.make(name, HPARAMS.get(name, {})).update(batches(1)[0])["loss"].item())
    assert losses[0] == losses[1] < losses[2]
