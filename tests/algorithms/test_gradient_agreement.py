"""Tests of IGA, AND-mask and SAND-mask."""

import pytest
import torch
from torch import nn

from domainbed.algorithms.base import concatenate, domain_risks, separate_risks
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
def test_separate_risks_respect_batch_norm(is_training: bool):
    """Each domain passes through the network by itself, except if the output depends on the whole batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double().train(is_training)
    minibatches = [(3 * i + torch.randn(n, 4).double(), torch.randint(3, (n,))) for i, n in enumerate((5, 2, 7))]
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    risks = torch.stack(separate_risks(network, minibatches))
    assert sizes == ([14] if is_training else [5, 2, 7])
    expected = domain_risks(network(concatenate(minibatches)[0]), minibatches)
    torch.testing.assert_close(risks, expected, atol=1e-12, rtol=0)
