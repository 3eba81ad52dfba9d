import pytest
import torch
from torch import nn

from domainbed.algorithms import get_algorithm_class
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams
from tests.memory import PeakMemory

DEFAULTS = default_hparams("Fishr", "ColoredDigits")


def make(num_classes: int = 3, num_domains: int = 3, **hparams):
    return get_algorithm_class("Fishr")((2, 8, 8), num_classes, num_domains, {**DEFAULTS, **hparams})


def test_update_needs_less_than_150_mb_at_the_size_of_domainnet():
    """This includes Adam and the averages, but no featurizer."""
    algorithm = make(345, 5, penalty_anneal_iters=0)
    algorithm.featurizer, algorithm.classifier = nn.Identity(), nn.Linear(2048, 345)
    algorithm.network = nn.Sequential(algorithm.featurizer, algorithm.classifier)
    algorithm.averages = torch.zeros(5, 345 * 2049)
    algorithm.optimizer = torch.optim.Adam(algorithm.classifier.parameters())
    domains = [(torch.rand(32, 2048, requires_grad=True), torch.randint(345, (32,))) for _ in range(5)]
    with PeakMemory() as memory:
        algorithm.update(domains)
    assert memory.peak < 150e6


def test_equal_domains_are_not_penalized():
    algorithm = make(penalty_anneal_iters=0)
    domain = (torch.rand(6, 2, 8, 8), torch.randint(3, (6,)))
    assert algorithm.update([domain] * 3)["penalty"] < 1e-12
    other = (torch.rand(6, 2, 8, 8), torch.randint(3, (6,)))
    assert algorithm.update([domain, domain, other])["penalty"] > 1e-9


def test_averages_are_updated_during_the_warm_up():
    algorithm = make(penalty_anneal_iters=5)
    domains = [(torch.rand(6, 2, 8, 8), torch.randint(3, (6,))) for _ in range(3)]
    metrics = algorithm.update(domains)
    assert metrics["penalty"] > 0
    assert metrics["loss"] == metrics["nll"]
    first = algorithm.averages.clone()
    algorithm.update(domains)
    assert (algorithm.averages > first).float().mean() > 0.9


@pytest.mark.parametrize("variant", ["covariances", "", "diagonal"])
def test_unknown_variant_is_rejected(variant: str):
    with pytest.raises(UsageError, match=r"unknown Fishr variant .*; .*covariance"):
        make(variant=variant)


def test_large_covariance_is_rejected():
    """32 features and 2,000 classes have 33 x 2,000 coordinates."""
    with pytest.raises(UsageError, match=r"3 matrices of size 66000 x 66000 \(52 GB\), and"):
        make(num_classes=2000, variant="covariance")
