"""Hessians, leading directions and slices compared with closed forms and single evaluations."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.landscape import hessian, slices
from domainbed.landscape.domain import Domain
from domainbed.landscape.hessian import FlatNetwork, full_hessian, leading_directions
from domainbed.landscape.slices import LINE_POINTS, PLANE_POINTS, filter_normalized_direction
from domainbed.networks import MNIST_CNN, Classifier
from domainbed.terminal import ProgressBar


def make_domains(n: int = 30, features: int = 5, classes: int = 3) -> list[Domain]:
    torch.manual_seed(4)
    return [
        Domain((1 + i) * torch.randn(n, features, dtype=torch.float64), torch.randint(classes, (n,))) for i in range(3)
    ]


def test_hessian_of_logistic_regression_equals_its_formula(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hessian, "HESSIAN_CHUNK_SIZE", 7)
    (domain, *_) = make_domains()
    head = nn.Linear(5, 3).double()
    p = head(domain.x).softmax(1)
    a = torch.cat([domain.x, torch.ones(30, 1, dtype=torch.float64)], 1)
    logit_hessians = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nij,na,nb->iajb", logit_hessians, a, a) / 30  # weight and bias together
    index = torch.arange(18).view(3, 6)
    order = torch.cat([index[:, :5].flatten(), index[:, 5]])
    torch.testing.assert_close(full_hessian(head, domain), expected.reshape(18, 18)[order][:, order])


def test_too_large_hessian_raises():
    with pytest.raises(ValueError, match="at most 3000"):
        full_hessian(nn.Linear(999, 4), Domain(torch.zeros(2, 999), torch.tensor([0, 1])))


@pytest.mark.parametrize("limit", [0, 3000])
def test_leading_directions_are_eigenvectors_of_the_mean_hessian(limit: int, monkeypatch: pytest.MonkeyPatch):
    domains = make_domains()
    head = Classifier(5, 3).double()
    mean = torch.stack([full_hessian(head, domain) for domain in domains]).mean(0)
    monkeypatch.setattr(hessian, "MAX_HESSIAN_SIZE", limit)  # 0: only Hessian-vector products
    monkeypatch.setattr(hessian, "EIGENVALUE_TOLERANCE", 1e-10)
    found = leading_directions(head, domains, 2)
    values, vectors = torch.linalg.eigh(mean)
    for k in range(2):
        assert (found[:, k] @ vectors[:, -1 - k]).abs().item() == pytest.approx(1, abs=1e-8)
        assert found[:, k].max() == found[:, k].abs().max()
        assert (found[:, k] @ mean @ found[:, k]).item() == pytest.approx(values[-1 - k].item())
    assert torch.equal(found, leading_directions(head, domains, 2))


def test_random_directions_have_the_norm_of_each_filter():
    torch.manual_seed(0)
    network = nn.Sequential(MNIST_CNN((2, 8, 8), (8, 8)), Classifier(8, 3))
    direction = FlatNetwork(network).unflatten(filter_normalized_direction(network, torch.Generator().manual_seed(1)))
    for name, p in network.named_parameters():
        if p.dim() == 1:
            assert not direction[name].any()
        else:
            norms = p.flatten(1).norm(dim=1)
            torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), norms)
    again = filter_normalized_direction(network, torch.Generator().manual_seed(1))
    assert torch.equal(again, torch.cat([d.flatten() for d in direction.values()]))


def test_slices_hold_the_risks_at_their_positions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slices, "CHUNK_SIZE", 11)
    domains = make_domains()
    head = Classifier(5, 3).double()
    bars = []
    monkeypatch.setattr(slices, "ProgressBar", lambda **kwargs: bars.append(ProgressBar(**kwargs)) or bars[0])
    found = slices.compute_slices(head, domains, ["a", "b", "test"], 2, seed=5)
    assert bars[0].n == bars[0].total > 0
    assert list(found.lines) == ["random direction", "leading curvature of a", "leading curvature of b"]
    assert found.planes["random directions"].dtype == torch.float64
    hessians = [full_hessian(head, domain) for domain in domains[:2]]
    again = slices.compute_slices(head, domains, ["a", "b", "test"], 2, hessians, seed=5)
    for name, line in found.lines.items():
        torch.testing.assert_close(again.lines[name], line, rtol=1e-9, atol=0)
    risks = [F.cross_entropy(head(x), y).item() for x, y in domains]
    for line in found.lines.values():
        assert line.shape == (3, LINE_POINTS)
        assert line[:, LINE_POINTS // 2].tolist() == pytest.approx(risks, rel=1e-12)
    for plane in found.planes.values():
        assert plane.shape == (3, PLANE_POINTS, PLANE_POINTS)
        assert plane[:, PLANE_POINTS // 2, PLANE_POINTS // 2].tolist() == pytest.approx(risks, rel=1e-12)

    generator = torch.Generator().manual_seed(5)
    first_random, second_random = (filter_normalized_direction(head, generator) for _ in range(2))
    flat_network = FlatNetwork(head)
    norm = flat_network.weights.norm()

    def risk(shift: torch.Tensor, domain: Domain) -> float:
        weights = flat_network.unflatten(flat_network.weights + shift)
        return F.cross_entropy(F.linear(domain.x, weights["weight"], weights["bias"]), domain.y).item()

    for e, domain in enumerate(domains):
        assert found.lines["random direction"][e, 3].item() == pytest.approx(
            risk(found.line_positions[3] * first_random, domain)
        )
        leading = norm * leading_directions(head, [domains[1]], 1)[:, 0]
        assert found.lines["leading curvature of b"][e, -1].item() == pytest.approx(risk(leading, domain))
        positions = found.plane_positions
        expected = risk(positions[2] * first_random + positions[11] * second_random, domain)
        assert found.planes["random directions"][e, 2, 11].item() == pytest.approx(expected)
        first, second = (norm * leading_directions(head, domains[:2], 2)).unbind(1)
        expected = risk(positions[0] * first + positions[5] * second, domain)
        assert found.planes["leading curvature"][e, 0, 5].item() == pytest.approx(expected)


def test_planes_hold_one_shifted_vector_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """The weights of a ResNet-50 at all points of a plane take 27 GB."""
    monkeypatch.setattr(slices, "LINE_POINTS", 41)
    monkeypatch.setattr(slices, "PLANE_POINTS", 7)
    (domain, *_) = make_domains()
    head = Classifier(5, 3).double()
    n_alive, summed_loss = [], FlatNetwork.summed_loss

    def counted_loss(self: FlatNetwork, weights: torch.Tensor, chunk: Domain) -> torch.Tensor:
        objects = gc.get_objects() if len(n_alive) % 20 == 0 else []  # takes a while
        n_alive.append(sum(type(x) is torch.Tensor and x.shape == (18,) for x in objects))
        return summed_loss(self, weights, chunk)

    hessians = [full_hessian(head, domain)]
    monkeypatch.setattr(FlatNetwork, "summed_loss", counted_loss)
    slices.compute_slices(head, [domain], ["a"], 1, hessians)
    assert len(n_alive) == 2 * 41 + 2 * 49
    assert max(n_alive) < 30


def test_planes_equal_the_sums_of_the_two_shifts_bit_for_bit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slices, "PLANE_POINTS", 5)
    domains = make_domains()
    head = Classifier(5, 3).double()
    found = slices.compute_slices(head, domains, ["a", "b", "test"], 2, seed=5)
    generator = torch.Generator().manual_seed(5)
    u, v = (filter_normalized_direction(head, generator) for _ in range(2))
    flat = FlatNetwork(head)
    shifts = [a * u + b * v for a in found.plane_positions for b in found.plane_positions]
    with torch.no_grad():
        rows = [[float(flat.summed_loss(flat.weights + s, d).double()) / len(d.y) for s in shifts] for d in domains]
    assert torch.equal(found.planes["random directions"], torch.tensor(rows, dtype=torch.float64).view(3, 5, 5))
