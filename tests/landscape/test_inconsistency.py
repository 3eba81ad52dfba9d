"""The score where the answer is known, and against a search over directions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainbed.landscape.domain import Domain, statistics
from domainbed.landscape.hessian import full_hessian
from domainbed.landscape.inconsistency import DAMPING, diagonal_ratios, exact_ratios, inconsistency
from domainbed.networks import Classifier


def positive(rng: np.random.RandomState, n: int) -> torch.Tensor:
    root = rng.randn(n, n + 2)
    return torch.from_numpy(root @ root.T / n)


def test_quadratics_along_the_axes():
    """½(2x² + y²) and ½(x² + 6y²): within ½(2x² + y²) ≤ ε the second rises by at most 6ε, along y."""
    hessians = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([2.0, 1.0], [1.0, 6.0])]
    expected = torch.tensor([[1.0, 6.0], [2.0, 1.0]], dtype=torch.float64)
    for found in (exact_ratios(hessians), diagonal_ratios([h.diagonal() for h in hessians])):
        torch.testing.assert_close(found.ratios, expected)
        assert not found.damping.any()
        for epsilon in (0.0, 0.01, 0.1, 3.0):
            score = inconsistency([0.5, 0.3], found.ratios, epsilon)
            first, second = -0.2 + 6 * epsilon, 0.2 + 2 * epsilon
            assert score.score == pytest.approx(max(first, second))
            assert score.pair == ((0, 1) if first > second else (1, 0))
            assert score.score == pytest.approx(score.risk_gap + epsilon * score.ratio)


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_no_direction_does_better_and_one_as_well(seed: int, n: int):
    rng = np.random.RandomState(seed)
    a, b = positive(rng, n), positive(rng, n)
    found = exact_ratios([a, b]).ratios
    directions = torch.from_numpy(rng.randn(n, 4000))
    for first, second, ratio in ((a, b, found[0, 1]), (b, a, found[1, 0])):
        reached = (directions * (second @ directions)).sum(0) / (directions * (first @ directions)).sum(0)
        assert reached.max() <= ratio * (1 + 1e-8)
        values, vectors = torch.linalg.eig(torch.linalg.solve(first, second))
        best = vectors[:, values.real.argmax()].real
        torch.testing.assert_close(best @ second @ best / (best @ first @ best), ratio, rtol=1e-6, atol=0)


@given(st.integers(0, 2**31), st.permutations(range(3)))
def test_permuted_domains_and_scaled_hessians(seed: int, order: list[int]):
    rng = np.random.RandomState(seed)
    hessians = [positive(rng, 3) for _ in range(3)]
    risks = list(rng.rand(3))
    for ratios_of, of_each in ((exact_ratios, hessians), (diagonal_ratios, [h.diagonal() for h in hessians])):
        found = ratios_of(of_each).ratios
        permuted = ratios_of([of_each[i] for i in order]).ratios
        torch.testing.assert_close(permuted, found[order][:, order], rtol=1e-7, atol=0)
        a, b = inconsistency(risks, found, 0.1), inconsistency([risks[i] for i in order], permuted, 0.1)
        assert b.score == pytest.approx(a.score, rel=1e-7)
        assert tuple(order[i] for i in b.pair) == a.pair
        torch.testing.assert_close(ratios_of([100 * h for h in of_each]).ratios, found, rtol=1e-7, atol=0)
        tripled = ratios_of([of_each[0], 3 * of_each[1], of_each[2]]).ratios
        torch.testing.assert_close(tripled[0, 1], 3 * found[0, 1], rtol=1e-7, atol=0)


def test_identical_domains_differ_by_epsilon_alone():
    torch.manual_seed(0)
    head = Classifier(4, 3).double()
    domain = Domain(torch.randn(50, 4, dtype=torch.float64), torch.randint(3, (50,)))
    hessians = [full_hessian(head, domain)] * 2  # singular: a constant added to all classes changes nothing
    of_head = statistics(head, domain)
    for found in (exact_ratios(hessians), diagonal_ratios([of_head.hessian_diagonal] * 2)):
        torch.testing.assert_close(found.ratios, torch.ones(2, 2, dtype=torch.float64))
        assert not found.damping.any()
        assert inconsistency([of_head.risk] * 2, found.ratios, 0.25).score == pytest.approx(0.25)


def test_what_no_domain_curves_in_is_left_out_and_what_one_does_is_damped():
    flat = torch.diag(torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))
    curved = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    for found in (exact_ratios([flat, curved]), diagonal_ratios([flat.diagonal(), curved.diagonal()])):
        assert found.damping.tolist() == pytest.approx([4 * DAMPING, 0.0])
        assert found.ratios[0, 1].item() == pytest.approx(2 / (4 * DAMPING))
        assert found.ratios[1, 0].item() == pytest.approx(4.0)


def test_negative_curvature_is_damped_away():
    saddle = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    bowl = torch.eye(2, dtype=torch.float64)
    for found in (exact_ratios([saddle, bowl]), diagonal_ratios([saddle.diagonal(), bowl.diagonal()])):
        assert found.damping.tolist() == pytest.approx([1 + 2 * DAMPING, 0.0])
        assert found.ratios[0, 1].item() == pytest.approx(1 / (2 * DAMPING))
        assert found.ratios[1, 0].item() == pytest.approx(2.0)
    caps = [-bowl, -bowl]  # a maximum: no way up, so θ = 0 is best
    assert not exact_ratios(caps).ratios.any()


def test_risks_that_are_flat_everywhere():
    nothing = torch.zeros(2, 3, 3, dtype=torch.float64)
    for found in (exact_ratios(nothing), diagonal_ratios(nothing[:, 0])):
        assert not found.ratios.any()
    one_flat = [torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)]
    assert exact_ratios(one_flat).damping.tolist() == pytest.approx([DAMPING, 0.0])


def test_one_domain_is_consistent_with_nothing():
    with pytest.raises(ValueError, match="there is but one"):
        inconsistency([0.5], torch.ones(1, 1), 0.1)
