"""Inconsistency scores compared with known solutions and with a search over directions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainbed.landscape.domain import Domain, measure_domain
from domainbed.landscape.hessian import full_hessian
from domainbed.landscape.inconsistency import (
    MIN_EIGENVALUE,
    CurvatureRatios,
    diagonal_ratios,
    exact_ratios,
    inconsistency_score,
    inconsistency_scores,
)
from domainbed.networks import Classifier


def random_positive_definite(rng: np.random.RandomState, n: int) -> torch.Tensor:
    root = rng.randn(n, n + 2)
    return torch.from_numpy(root @ root.T / n)


def test_axis_aligned_quadratics():
    """½(2x² + y²) and ½(x² + 6y²): within ½(2x² + y²) ≤ ε the second rises by at most 6ε, along y."""
    hessians = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([2.0, 1.0], [1.0, 6.0])]
    expected = torch.tensor([[1.0, 6.0], [2.0, 1.0]], dtype=torch.float64)
    for found in (exact_ratios(hessians), diagonal_ratios([h.diagonal() for h in hessians])):
        torch.testing.assert_close(found.ratios, expected)
        assert not found.damping.any()
        for epsilon in (0.0, 0.01, 0.1, 3.0):
            score = inconsistency_score([0.5, 0.3], found, epsilon)
            first, second = -0.2 + 6 * epsilon, 0.2 + 2 * epsilon
            assert score.score == pytest.approx(max(first, second))
            assert score.pair == ((0, 1) if first > second else (1, 0))
            assert score.score == pytest.approx(score.risk_gap + epsilon * score.ratio)


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_ratio_is_the_maximum_over_directions(seed: int, n: int):
    rng = np.random.RandomState(seed)
    a, b = random_positive_definite(rng, n), random_positive_definite(rng, n)
    found = exact_ratios([a, b]).ratios
    directions = torch.from_numpy(rng.randn(n, 4000))
    for first, second, ratio in ((a, b, found[0, 1]), (b, a, found[1, 0])):
        quotients = (directions * (second @ directions)).sum(0) / (directions * (first @ directions)).sum(0)
        assert quotients.max() <= ratio * (1 + 1e-8)
        values, vectors = torch.linalg.eig(torch.linalg.solve(first, second))
        best = vectors[:, values.real.argmax()].real
        torch.testing.assert_close(best @ second @ best / (best @ first @ best), ratio, rtol=1e-6, atol=0)


@given(st.integers(0, 2**31), st.permutations(range(3)))
def test_permuting_domains_and_scaling_hessians(seed: int, order: list[int]):
    rng = np.random.RandomState(seed)
    hessians = [random_positive_definite(rng, 3) for _ in range(3)]
    risks = list(rng.rand(3))
    for compute, curvatures in ((exact_ratios, hessians), (diagonal_ratios, [h.diagonal() for h in hessians])):
        original, permuted = compute(curvatures), compute([curvatures[i] for i in order])
        found = original.ratios
        torch.testing.assert_close(permuted.ratios, found[order][:, order], rtol=1e-7, atol=0)
        a = inconsistency_score(risks, original, 0.1)
        b = inconsistency_score([risks[i] for i in order], permuted, 0.1)
        assert b.score == pytest.approx(a.score, rel=1e-7)
        assert tuple(order[i] for i in b.pair) == a.pair
        torch.testing.assert_close(compute([100 * h for h in curvatures]).ratios, found, rtol=1e-7, atol=0)
        tripled = compute([curvatures[0], 3 * curvatures[1], curvatures[2]]).ratios
        torch.testing.assert_close(tripled[0, 1], 3 * found[0, 1], rtol=1e-7, atol=0)


def test_score_of_identical_domains_is_epsilon():
    torch.manual_seed(0)
    head = Classifier(4, 3).double()
    domain = Domain(torch.randn(50, 4, dtype=torch.float64), torch.randint(3, (50,)))
    hessians = [full_hessian(head, domain)] * 2  # singular: adding a constant to all logits changes nothing
    statistics = measure_domain(head, domain)
    for found in (exact_ratios(hessians), diagonal_ratios([statistics.hessian_diagonal] * 2)):
        torch.testing.assert_close(found.ratios, torch.ones(2, 2, dtype=torch.float64))
        assert not found.damping.any()
        assert inconsistency_score([statistics.risk] * 2, found, 0.25).score == pytest.approx(0.25)


def test_directions_flat_in_all_domains_are_excluded_and_others_damped():
    flat = torch.diag(torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))
    curved = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    for found in (exact_ratios([flat, curved]), diagonal_ratios([flat.diagonal(), curved.diagonal()])):
        assert found.damping.tolist() == pytest.approx([4 * MIN_EIGENVALUE, 0.0])
        assert found.ratios[0, 1].item() == pytest.approx(2 / (4 * MIN_EIGENVALUE))
        assert found.ratios[1, 0].item() == pytest.approx(4.0, rel=1e-4)


def test_negative_curvature_is_damped():
    saddle = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    bowl = torch.eye(2, dtype=torch.float64)
    for found in (exact_ratios([saddle, bowl]), diagonal_ratios([saddle.diagonal(), bowl.diagonal()])):
        assert found.damping.tolist() == pytest.approx([1 + 2 * MIN_EIGENVALUE, 0.0])
        assert found.ratios[0, 1].item() == pytest.approx(1 / (2 * MIN_EIGENVALUE))
        assert found.ratios[1, 0].item() == pytest.approx(2.0, rel=1e-4)
    caps = [-bowl, -bowl]  # at a maximum, θ = 0 is optimal
    assert not exact_ratios(caps).ratios.any()


def test_flat_risks():
    zeros = torch.zeros(2, 3, 3, dtype=torch.float64)
    for found in (exact_ratios(zeros), diagonal_ratios(zeros[:, 0])):
        assert not found.ratios.any()
    one_flat = [torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)]
    assert exact_ratios(one_flat).damping.tolist() == pytest.approx([MIN_EIGENVALUE, 0.0])


def test_single_domain_raises():
    with pytest.raises(ValueError, match="requires at least two domains"):
        inconsistency_score([0.5], CurvatureRatios(torch.ones(1, 1), torch.zeros(1)), 0.1)


@pytest.mark.parametrize("kinds", [("exact", "diagonal"), ("diagonal",)])
def test_scores_of_training_domains_ignore_the_test_domain(kinds: tuple[str, ...]):
    """The test domain is curved along a direction in which the training domains are flat."""
    diagonals = [torch.tensor(d, dtype=torch.float64) for d in ([4, 1e-4, 0], [1, 1, 0], [1, 1, 1])]
    hessians = [torch.diag(d) for d in diagonals] if "exact" in kinds else None
    risks = [0.3, 0.2, 0.9]
    all_scores = inconsistency_scores(risks, hessians, diagonals, 2, 0.5)
    training_scores = inconsistency_scores(risks[:2], hessians and hessians[:2], diagonals[:2], 2, 0.5)
    assert list(all_scores) == [(domain_set, kind) for domain_set in ("training", "all") for kind in kinds]
    for kind in kinds:
        assert all_scores["training", kind] == training_scores["training", kind] == training_scores["all", kind]
        assert all_scores["training", kind].ratio == pytest.approx(1e4)
        assert all_scores["training", kind].damping == 0
        assert all_scores["all", kind].pair[1] == 2
        assert all_scores["all", kind].damping > 0
    assert list(inconsistency_scores(risks, hessians, diagonals, 1, 0.5)) == [("all", kind) for kind in kinds]


def test_score_is_continuous_at_the_damping_threshold():
    def ratios(smallest: float) -> tuple[float, float]:
        hessians = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([1.0, smallest], [1.0, 1.0])]
        exact, diagonal = exact_ratios(hessians).ratios, diagonal_ratios([h.diagonal() for h in hessians]).ratios
        return exact[0, 1].item(), diagonal[0, 1].item()

    for smallest in (MIN_EIGENVALUE, 1e-8, 1e-10, 0.0, -1e-8):
        for above, below in zip(ratios(smallest * 1.001 + 1e-12), ratios(smallest * 0.999 - 1e-12), strict=True):
            assert below == pytest.approx(above, rel=0.01)
            assert above <= 1.001 / MIN_EIGENVALUE
