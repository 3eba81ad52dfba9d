"""Moments of per-sample gradients, against the gradients of single samples, value and gradient."""

import copy

import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import Variance
from torch import nn
from torch.nn import functional as F

from domainbed.gradients import (
    flat,
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
def test_equals_batch_grad_also_in_the_gradient_that_reaches_featurizer_and_head(
    moment: str, nonlinear: bool, n: int, d: int, classes: int
):
    torch.manual_seed(n)
    head = Classifier(d, classes, nonlinear).double()
    z = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    y = torch.randint(classes, (n,))
    ours, reference = MOMENTS[moment]
    logits, factors = gradient_factors(head, z, y)
    torch.testing.assert_close(logits, head(z))
    value = ours(factors)
    expected = reference(per_sample_gradients(copy.deepcopy(head), z, y))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-13)

    weights = torch.rand_like(value)  # another weight for each coordinate, so that no two can be exchanged
    gradients = torch.autograd.grad((weights * value**2).sum(), [z, *head.parameters()])
    twin = copy.deepcopy(head)
    expected = reference(per_sample_gradients(twin, z, y))
    expected_gradients = torch.autograd.grad((weights * expected**2).sum(), [z, *twin.parameters()])
    for g, e in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12)


def test_a_layer_without_bias_has_no_coordinates_for_it():
    head = nn.Linear(4, 3, bias=False).double()
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    _, factors = gradient_factors(head, z, y)
    residual = head(z).softmax(1) - F.one_hot(y, 3)
    each = torch.einsum("no,ni->noi", residual, z).flatten(1)
    torch.testing.assert_close(gradient_variance(factors), each.var(0, correction=0))


def test_batches_that_went_through_together_are_as_if_alone():
    head = Classifier(8, 3, is_nonlinear=True).double()
    z, y = torch.randn(9, 8, dtype=torch.float64), torch.randint(3, (9,))
    together = split_factors(gradient_factors(head, z, y)[1], [4, 5])
    alone = [gradient_factors(head, z[part], y[part])[1] for part in (slice(4), slice(4, 9))]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(gradient_variance(a), gradient_variance(b))


def test_other_heads_are_refused():
    with pytest.raises(ValueError, match=r"heads of linear layers only, not for LayerNorm"):
        gradient_factors(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), torch.rand(2, 4), torch.tensor([0, 1]))


def test_over_every_layer_it_equals_one_sample_after_the_other():
    torch.manual_seed(0)
    network = nn.Sequential(Featurizer((2, 8, 8), {}), Classifier(32, 3)).double()
    x, y = torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.randint(3, (5,))
    parameters = list(network.parameters())
    each = [
        torch.autograd.grad(F.cross_entropy(network(x[i : i + 1]), y[i : i + 1]), parameters, create_graph=True)
        for i in range(5)
    ]
    expected = torch.stack([flat(g) for g in each]).var(0, correction=0)
    value = network_gradient_variance(network, x, y)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    weights = torch.rand_like(value)
    ours = torch.autograd.grad((weights * value).sum(), parameters)
    theirs = torch.autograd.grad((weights * expected).sum(), parameters)
    for g, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(g, e, rtol=0, atol=1e-12)


def test_over_every_layer_it_equals_backpacks_variance():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    x, y = torch.rand(6, 2, 8, 8, dtype=torch.float64), torch.randint(3, (6,))
    value = network_gradient_variance(network, x, y)
    extended = extend(network)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))(extended(x.requires_grad_()), y)
    with backpack(Variance()):
        loss.backward()
    torch.testing.assert_close(value, flat(p.variance for p in extended.parameters()), rtol=0, atol=1e-12)


def test_no_sample_s_gradient_is_held():
    """At DomainNet's size they take 452 MB a copy; all domains' moments, with their gradient, less than 150."""
    head, y = nn.Linear(2048, 345), torch.randint(345, (5 * 32,))
    features = torch.rand(5 * 32, 2048, requires_grad=True)
    with PeakMemory() as memory:
        _, factors = gradient_factors(head, features, y)
        v = torch.stack([gradient_variance(domain) for domain in split_factors(factors, [32] * 5)])
        torch.autograd.grad(((v - v.mean(0)) ** 2).mean(), [features, *head.parameters()])
    assert 5 * 346 * 2049 * 4 < memory.peak < 150e6
