"""Moments of per-sample gradients, and their gradients, compared with references that compute each gradient."""

import copy

import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import Variance
from torch import nn
from torch.nn import functional as F

from domainbed.gradients import (
    flatten,
    gradient_covariance,
    gradient_factors,
    gradient_second_moment,
    gradient_variance,
    network_gradient_variance,
    split_factors,
)
from domainbed.networks import Classifier, Featurizer
from tests.algorithms.formulas import per_sample_gradients
from tests.memory import PeakMemory


def covariance(g: torch.Tensor) -> torch.Tensor:
    return torch.cov(g.T, correction=0)


MOMENTS = {
    "variance": (gradient_variance, lambda g: g.var(0, correction=0)),
    "second moment": (gradient_second_moment, lambda g: g.square().mean(0)),
    "covariance": (gradient_covariance, covariance),
}


@pytest.mark.parametrize("moment", list(MOMENTS))
@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize(("n", "d", "classes"), [(2, 4, 2), (13, 8, 5), (32, 16, 10)])
def test_moments_and_their_gradients_equal_backpacks(moment: str, nonlinear: bool, n: int, d: int, classes: int):
    torch.manual_seed(n)
    head = Classifier(d, classes, nonlinear).double()
    z = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    y = torch.randint(classes, (n,))
    compute, reference = MOMENTS[moment]
    logits, factors = gradient_factors(head, z, y)
    torch.testing.assert_close(logits, head(z))
    value = compute(factors)
    expected = reference(per_sample_gradients(copy.deepcopy(head), z, y))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-13)

    weights = torch.rand_like(value)  # a different weight per coordinate, to detect permutations
    gradients = torch.autograd.grad((weights * value**2).sum(), [z, *head.parameters()])
    head_copy = copy.deepcopy(head)
    expected = reference(per_sample_gradients(head_copy, z, y))
    expected_gradients = torch.autograd.grad((weights * expected**2).sum(), [z, *head_copy.parameters()])
    for g, e in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12)


def test_layer_without_bias():
    head = nn.Linear(4, 3, bias=False).double()
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    _, factors = gradient_factors(head, z, y)
    residual = head(z).softmax(1) - F.one_hot(y, 3)
    gradients = torch.einsum("no,ni->noi", residual, z).flatten(1)
    torch.testing.assert_close(gradient_variance(factors), gradients.var(0, correction=0))


def test_split_factors_equal_those_of_separate_batches():
    head = Classifier(8, 3, is_nonlinear=True).double()
    z, y = torch.randn(9, 8, dtype=torch.float64), torch.randint(3, (9,))
    split = split_factors(gradient_factors(head, z, y)[1], [4, 5])
    separate = [gradient_factors(head, z[part], y[part])[1] for part in (slice(4), slice(4, 9))]
    for a, b in zip(split, separate, strict=True):
        torch.testing.assert_close(gradient_variance(a), gradient_variance(b))


def test_unsupported_head_is_rejected():
    with pytest.raises(ValueError, match=r"only for heads of linear layers, not for LayerNorm"):
        gradient_factors(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), torch.rand(2, 4), torch.tensor([0, 1]))


def test_network_variance_equals_gradients_of_single_samples():
    torch.manual_seed(0)
    network = nn.Sequential(Featurizer((2, 8, 8), {}), Classifier(32, 3)).double()
    x, y = torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.randint(3, (5,))
    parameters = list(network.parameters())
    gradients = [
        torch.autograd.grad(F.cross_entropy(network(x[i : i + 1]), y[i : i + 1]), parameters, create_graph=True)
        for i in range(5)
    ]
    expected = torch.stack([flatten(g) for g in gradients]).var(0, correction=0)
    value = network_gradient_variance(network, x, y)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    weights = torch.rand_like(value)
    actual_gradients = torch.autograd.grad((weights * value).sum(), parameters)
    expected_gradients = torch.autograd.grad((weights * expected).sum(), parameters)
    for g, e in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12)


def test_network_variance_equals_backpacks():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    x, y = torch.rand(6, 2, 8, 8, dtype=torch.float64), torch.randint(3, (6,))
    value = network_gradient_variance(network, x, y)
    extended = extend(network)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))(extended(x.requires_grad_()), y)
    with backpack(Variance()):
        loss.backward()
    torch.testing.assert_close(value, flatten(p.variance for p in extended.parameters()), rtol=0, atol=1e-12)


def test_gradients_of_single_samples_are_not_kept_in_memory():
    """At the size of DomainNet they take 452 MB; the moments of all domains and their gradients, less than 150 MB."""
    head, y = nn.Linear(2048, 345), torch.randint(345, (5 * 32,))
    features = torch.rand(5 * 32, 2048, requires_grad=True)
    with PeakMemory() as memory:
        _, factors = gradient_factors(head, features, y)
        v = torch.stack([gradient_variance(domain) for domain in split_factors(factors, [32] * 5)])
        torch.autograd.grad(((v - v.mean(0)) ** 2).mean(), [features, *head.parameters()])
    assert 5 * 346 * 2049 * 4 < memory.peak < 150e6
