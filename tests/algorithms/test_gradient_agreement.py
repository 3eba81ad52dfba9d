"""Tests of IGA, AND-mask and SAND-mask."""

import pytest
import torch
from torch import nn

from domainbed.algorithms.base import domain_risks, outputs_by_domain, separate_risks
from tests.algorithms import checks, formulas_gradient_agreement
from tests.algorithms.test_all import batches

HPARAMS = {"IGA": {"penalty": 30.0}, "ANDMask": {"tau": 0.9}, "SANDMask": {"tau": 0.5, "k": 1e-4}}
WEIGHT_DECAY = {"weight_decay": 0.1, "lr": 0.01}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        *((name, {}, (6, 6, 6)) for name in HPARAMS),
        *((name, WEIGHT_DECAY, (4, 7, 5)) for name in HPARAMS),
        *((name, {"nonlinear_classifier": True}, (6, 6)) for name in HPARAMS),
        *((name, {}, (6,)) for name in HPARAMS),
        ("ANDMask", {"tau": 1.0}, (6, 6, 6)),
        ("ANDMask", {"tau": 0.5}, (5, 5, 5, 5)),
        ("SANDMask", {"k": 10.0}, (6, 6, 6)),
        ("SANDMask", {"tau": 0.0}, (6, 6, 6)),
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(name: str, changes: dict, sizes: tuple[int, ...]):
    formula = getattr(formulas_gradient_agreement, name)
    checks.assert_equals_formula(name, formula, {**HPARAMS[name], **changes}, sizes)


def test_single_domain_of_iga_is_erm():
    checks.assert_single_domain_is_erm("IGA", HPARAMS["IGA"])


GRADIENTS = [  # of four coordinates in three domains
    [1.0, 2.0, 3.0],
    [1.0, -2.0, 3.0],
    [0.0, 2.0, 3.0],
    [0.0, 0.0, 0.0],
]


@pytest.mark.parametrize(
    ("tau", "expected"), [(1.0, [1, 0, 0, 0]), (0.6, [1, 0, 1, 0]), (0.3, [1, 1, 1, 0]), (0.0, [1, 1, 1, 1])]
)
def test_and_mask(tau: float, expected: list[int]):
    """The sign of 0 is 0."""
    mask = checks.make("ANDMask", {"tau": tau}).mask(torch.tensor(GRADIENTS).T)
    assert mask.tolist() == expected


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("k", [0.1, 10.0])
def test_sand_mask(tau: float, k: float):
    """Also if all gradients are equal, so that their variance is 0."""
    gradients = [*GRADIENTS, [2.0, 2.0, 2.0]]
    algorithm = checks.make("SANDMask", {"tau": tau, "k": k})
    formula = formulas_gradient_agreement.SANDMask(algorithm, algorithm.hparams)
    mask = algorithm.mask(torch.tensor(gradients, dtype=torch.float64).T)
    assert mask.tolist() == pytest.approx([formula.mask(g) for g in gradients], abs=1e-14)
    if tau == 1.0:
        assert mask.max() <= 1e-17


def test_sand_mask_learns_nothing_by_default():
    algorithm = checks.make("SANDMask", {})
    assert algorithm.hparams["tau"] == 1
    before = [p.detach().clone() for p in algorithm.parameters()]
    for domains in batches(10):
        algorithm.update(domains)
    assert all(torch.equal(p, old) for p, old in zip(algorithm.parameters(), before, strict=True))
    assert "nothing is learned" in algorithm.caveat
    assert checks.make("SANDMask", {"tau": 0.99}).caveat == ""


def test_weight_decay_is_not_masked():
    algorithm = checks.make("SANDMask", {"weight_decay": 0.1})
    before = [p.detach().clone() for p in algorithm.parameters()]
    algorithm.update(batches(1)[0])
    for p, old in zip(algorithm.parameters(), before, strict=True):
        decayed = old.abs() > 0.01
        assert (p.abs() < old.abs())[decayed].all()


@pytest.mark.parametrize("is_training", [True, False])
def test_batch_norm_normalizes_each_domain_by_itself(is_training: bool):
    """As in the published code of the methods that use these functions, also if all images pass at once."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().train(is_training)
    minibatches = [(3 * i + torch.randn(n, 4).double(), torch.randint(3, (n,))) for i, n in enumerate((5, 2, 7))]
    expected = torch.stack([nn.functional.cross_entropy(network(x), y) for x, y in minibatches])
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    outputs = outputs_by_domain(network, minibatches)
    assert sizes == ([5, 2, 7] if is_training else [14])
    for risks in (domain_risks(outputs, minibatches), torch.stack(separate_risks(network, minibatches))):
        torch.testing.assert_close(risks, expected, atol=1e-12, rtol=0)


class Normalized(nn.Module):
    """A featurizer with batch norm, for images [n, 2, 8, 8]."""

    def __init__(self, *args) -> None:
        super().__init__()
        self.n_outputs = 5
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.BatchNorm1d(5))
        self.activation = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        *[(name, [6, 6, 6]) for name in ("CORAL", "MMD", "GroupDRO", "EQRM", "MTL", "Mixup", "IGA", "ANDMask", "Fish")],
        *[(name, [18]) for name in ("ERM", "IRM", "VREx", "Fishr")],
    ],
)
def test_images_that_are_normalized_together(name: str, passes: list[int], monkeypatch: pytest.MonkeyPatch):
    """Those that the published code passes through the featurizer at once."""
    monkeypatch.setattr("domainbed.networks.Featurizer", Normalized)
    algorithm = checks.make(name, {})
    sizes: list[int] = []
    algorithm.featurizer.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    algorithm.update(batches(1)[0])
    assert sizes == passes


def test_mldg_keeps_the_running_statistics(monkeypatch: pytest.MonkeyPatch):
    """The published code discards the copies of the network that images pass through."""
    monkeypatch.setattr("domainbed.networks.Featurizer", Normalized)
    algorithm = checks.make("MLDG", {})
    before = {name: buffer.clone() for name, buffer in algorithm.named_buffers()}
    weights = algorithm.classifier.weight.clone()
    for minibatches in batches(2):
        algorithm.update(minibatches)
    assert all(torch.equal(buffer, before[name]) for name, buffer in algorithm.named_buffers())
    assert not torch.equal(weights, algorithm.classifier.weight)
