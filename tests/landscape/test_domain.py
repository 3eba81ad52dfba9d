"""Domain statistics compared with per-sample gradients and autograd's Hessian, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from domainbed.gradients import flatten
from domainbed.landscape import domain as domain_module
from domainbed.landscape.distances import QUANTITIES, mean_over_pairs, pair_distances, relative_distances
from domainbed.landscape.domain import Domain, DomainStatistics, measure_domain
from domainbed.landscape.hessian import FlatNetwork
from domainbed.networks import MNIST_CNN, Classifier


def make_domain(n: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> Domain:
    torch.manual_seed(seed)
    return Domain(torch.randn(n, *shape, dtype=torch.float64), torch.randint(max(classes, 2), (n,)))


def risk(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], y.double())
    return F.cross_entropy(logits, y)


def sample_gradients(network: nn.Module, domain: Domain) -> torch.Tensor:
    rows = []
    for x, y in zip(domain.x, domain.y, strict=True):
        rows.append(flatten(torch.autograd.grad(risk(network(x[None]), y[None]), list(network.parameters()))))
    return torch.stack(rows)


def hessian(network: nn.Module, domain: Domain) -> torch.Tensor:
    flat_network = FlatNetwork(network)

    def risk_at(weights: torch.Tensor) -> torch.Tensor:
        return risk(torch.func.functional_call(network, flat_network.unflatten(weights), (domain.x,)), domain.y)

    return torch.autograd.functional.hessian(risk_at, flat_network.weights)


def gauss_newton(network: nn.Module, domain: Domain) -> torch.Tensor:
    flat_network = FlatNetwork(network)

    def logits_at(weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(network, flat_network.unflatten(weights), (domain.x,))

    jacobians = torch.autograd.functional.jacobian(logits_at, flat_network.weights)  # [n, classes, coordinates]
    total = torch.zeros(jacobians.shape[2], jacobians.shape[2], dtype=torch.float64)
    for j, outputs, y in zip(jacobians, logits_at(flat_network.weights), domain.y, strict=True):
        h = torch.autograd.functional.hessian(lambda z, y=y: risk(z[None], y[None]), outputs)
        total += j.T @ h @ j
    return total / len(domain.y)


HEADS = {
    "linear": lambda classes: Classifier(6, classes),
    "nonlinear": lambda classes: Classifier(16, classes, is_nonlinear=True),
    "without bias": lambda classes: nn.Linear(6, classes, bias=False),
    "nested, with tanh": lambda classes: nn.Sequential(
        nn.Linear(6, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, classes)
    ),
}


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("head", list(HEADS))
def test_head_statistics_equal_autograd(head: str, classes: int, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(domain_module, "CHUNK_SIZE", chunk)
    torch.manual_seed(classes)
    network = HEADS[head](classes).double()
    domain = make_domain(23, (16 if head == "nonlinear" else 6,), classes)
    found = measure_domain(network, domain)
    g = sample_gradients(network, domain)
    assert found.curvature == "Hessian"
    assert found.risk == pytest.approx(risk(network(domain.x), domain.y).item(), abs=1e-14)
    logits = network(domain.x)
    correct = [int(z.argmax() if classes > 1 else z > 0) == y for z, y in zip(logits, domain.y, strict=True)]
    assert found.accuracy == sum(correct) / 23
    torch.testing.assert_close(found.gradient_mean, g.mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(found.gradient_variance, g.var(0, correction=0), rtol=0, atol=1e-14)
    h = hessian(network, domain)
    torch.testing.assert_close(found.hessian_diagonal, h.diagonal(), rtol=0, atol=1e-13)
    expected = F.cosine_similarity(g.var(0, correction=0), h.diagonal(), dim=0).item()
    assert found.cosine == pytest.approx(expected, abs=1e-12)
    assert all(p.grad is None and not hasattr(p, "diag_h") for p in network.parameters())  # the network is unchanged


class FunctionalActivation(nn.Module):
    """A network that is not a chain of layers because its activation is not a module."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 4), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x)))


NETWORKS = {
    "functional activation": (lambda classes: FunctionalActivation(classes), (6,)),
    "layer unsupported by BackPACK": (
        lambda classes: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, classes)),
        (6,),
    ),
    "featurizer and head": (
        lambda classes: nn.Sequential(MNIST_CNN((1, 8, 8), (8, 8, 8)), Classifier(8, classes)),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize(("max_elements", "classes"), [(1, 3), (700, 2), (2**26, 3), (2**26, 1)])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_other_networks_use_the_gauss_newton_matrix(
    name: str, classes: int, max_elements: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(domain_module, "MAX_GRADIENT_ELEMENTS", max_elements)
    make, shape = NETWORKS[name]
    torch.manual_seed(classes)
    network = make(classes).double().eval()
    domain = make_domain(5, shape, classes)
    found = measure_domain(network, domain)
    g = sample_gradients(network, domain)
    assert found.curvature == "GGN"
    torch.testing.assert_close(found.gradient_mean, g.mean(0), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.gradient_variance, g.var(0, correction=0), rtol=0, atol=1e-13)
    torch.testing.assert_close(found.hessian_diagonal, gauss_newton(network, domain).diagonal(), rtol=0, atol=1e-12)


class Scaled(nn.Sequential):
    """A subclass of nn.Sequential that also scales its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def partly_frozen_head() -> nn.Module:
    head = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    head[0].weight.requires_grad_(False)
    return head


SHARED = nn.Tanh()
UNSUPPORTED_HEADS = {
    "in-place activation": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)),
    "shared layer": lambda: nn.Sequential(nn.Linear(6, 4), SHARED, nn.Linear(4, 4), SHARED, nn.Linear(4, 3)),
    "frozen weight": partly_frozen_head,
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 3)),
    "subclass of Sequential": lambda: Scaled(nn.Linear(6, 3)),
    "GELU": lambda: nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("head", list(UNSUPPORTED_HEADS))
def test_unsupported_heads_use_the_gauss_newton_matrix(head: str):
    torch.manual_seed(0)
    network = UNSUPPORTED_HEADS[head]().double().eval()
    domain = make_domain(5, (6,), 3)
    found = measure_domain(network, domain)
    assert found.curvature == "GGN"
    for p in network.parameters():
        p.requires_grad_()
    g = sample_gradients(network, domain)
    torch.testing.assert_close(found.gradient_variance, g.var(0, correction=0), rtol=0, atol=1e-13)


def test_random_state_is_unchanged():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    domain = Domain(torch.ones(4, 6, dtype=torch.float64), torch.tensor([0, 1, 0, 1]))
    measure_domain(HEADS["linear"](2).double(), domain)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    HEADS["linear"](2)
    assert torch.equal(after, torch.get_rng_state())
    assert not torch.equal(before, after)  # because the head drew its weights


def test_distances_equal_explicit_loops_and_follow_permutations():
    domains = [measure_domain(HEADS["linear"](3).double(), make_domain(9, (6,), 3, seed)) for seed in (1, 2, 3)]
    found = pair_distances(domains)
    assert list(found) == list(QUANTITIES)
    for name, matrix in found.items():
        for i, a in enumerate(domains):
            for j, b in enumerate(domains):
                difference = getattr(a, name) - getattr(b, name)
                expected = torch.as_tensor(difference, dtype=torch.float64).square().sum().item()
                assert matrix[i, j].item() == pytest.approx(expected, rel=1e-12)
        assert mean_over_pairs(matrix) == pytest.approx(((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3).item())
    order = [2, 0, 1]
    for name, matrix in pair_distances([domains[i] for i in order]).items():
        torch.testing.assert_close(matrix, found[name][order][:, order], rtol=0, atol=0)


def test_distances_between_identical_domains_are_zero():
    network, domain = HEADS["linear"](3).double(), make_domain(9, (6,), 3)
    domains = [measure_domain(network, domain)] * 2
    assert all(not matrix.any() for matrix in pair_distances(domains).values())
    assert list(relative_distances(domains, pair_distances(domains)).values()) == [0.0] * 4


def test_each_pair_is_subtracted_once():
    class Subtractions(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.n += function is torch.ops.aten.sub.Tensor
            return function(*args, **(kwargs or {}))

    v = torch.arange(3, dtype=torch.float64)
    domains = [DomainStatistics(i, 0.5, i * v, i * v, i * v, "Hessian") for i in range(3)]
    with Subtractions() as subtractions:
        pair_distances(domains)
    assert subtractions.n == 3 * len(QUANTITIES)


def test_relative_distances_are_scale_invariant():
    def scaled(factor: float) -> list[DomainStatistics]:
        values = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64) * factor
        return [DomainStatistics(v.sum().item(), 0.5, v, v, v, "Hessian") for v in values]

    small, large = (relative_distances(domains, pair_distances(domains)) for domains in map(scaled, (1e-3, 10.0)))
    assert small == pytest.approx(large)
    assert large["gradient_mean"] == pytest.approx(13 / ((5 + 10) / 2))
