"""The score where the answer is known, and against a search over directions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domainbed.landscape.domain import Domain, statistics
from domainbed.landscape.hessian import full_hessian
from domainbed.landscape.inconsistency import (
    FLOOR,
    Ratios,
    diagonal_ratios,
    exact_ratios,
    inconsistencies,
    inconsistency,
)
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
            score = inconsistency([0.5, 0.3], found, epsilon)
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
        of_all, of_permuted = ratios_of(of_each), ratios_of([of_each[i] for i in order])
        found = of_all.ratios
        torch.testing.assert_close(of_permuted.ratios, found[order][:, order], rtol=1e-7, atol=0)
        a, b = inconsistency(risks, of_all, 0.1), inconsistency([risks[i] for i in order], of_permuted, 0.1)
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
        assert inconsistency([of_head.risk] * 2, found, 0.25).score == pytest.approx(0.25)


def test_what_no_domain_curves_in_is_left_out_and_what_one_does_is_damped():
    flat = torch.diag(torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))
    curved = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))
    for found in (exact_ratios([flat, curved]), diagonal_ratios([flat.diagonal(), curved.diagonal()])):
        assert found.damping.tolist() == pytest.approx([4 * FLOOR, 0.0])
        assert found.ratios[0, 1].item() == pytest.approx(2 / (4 * FLOOR))
        assert found.ratios[1, 0].item() == pytest.approx(4.0, rel=1e-4)


def test_negative_curvature_is_damped_away():
    saddle = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    bowl = torch.eye(2, dtype=torch.float64)
    for found in (exact_ratios([saddle, bowl]), diagonal_ratios([saddle.diagonal(), bowl.diagonal()])):
        assert found.damping.tolist() == pytest.approx([1 + 2 * FLOOR, 0.0])
        assert found.ratios[0, 1].item() == pytest.approx(1 / (2 * FLOOR))
        assert found.ratios[1, 0].item() == pytest.approx(2.0, rel=1e-4)
    caps = [-bowl, -bowl]  # a maximum: no way up, so θ = 0 is best
    assert not exact_ratios(caps).ratios.any()


def test_risks_that_are_flat_everywhere():
    nothing = torch.zeros(2, 3, 3, dtype=torch.float64)
    for found in (exact_ratios(nothing), diagonal_ratios(nothing[:, 0])):
        assert not found.ratios.any()
    one_flat = [torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)]
    assert exact_ratios(one_flat).damping.tolist() == pytest.approx([FLOOR, 0.0])


def test_one_domain_is_consistent_with_nothing():
    with pytest.raises(ValueError, match="there is but one"):
        inconsistency([0.5], Ratios(torch.ones(1, 1), torch.zeros(1)), 0.1)


@pytest.mark.parametrize("ways", [("exact", "diagonal"), ("diagonal",)])
def test_scores_of_training_domains_do_not_know_the_others(ways: tuple[str, ...]):
    """The test domain curves where the training domains don't, and one training domain almost does not."""
    diagonals = [torch.tensor(d, dtype=torch.float64) for d in ([4, 1e-4, 0], [1, 1, 0], [1, 1, 1])]
    hessians = [torch.diag(d) for d in diagonals] if "exact" in ways else None
    risks = [0.3, 0.2, 0.9]
    of_all = inconsistencies(risks, hessians, diagonals, 2, 0.5)
    of_training = inconsistencies(risks[:2], hessians and hessians[:2], diagonals[:2], 2, 0.5)
    assert list(of_all) == [(of, way) for of in ("training", "all") for way in ways]
    for way in ways:
        assert of_all["training", way] == of_training["training", way] == of_training["all", way]
        assert of_all["training", way].ratio == pytest.approx(1e4)
        assert of_all["training", way].damping == 0
        assert of_all["all", way].pair[1] == 2
        assert of_all["all", way].damping > 0
    assert list(inconsistencies(risks, hessians, diagonals, 1, 0.5)) == [("all", way) for way in ways]


def test_the_score_does_not_jump_where_damping_begins():
    def ratio(least: float) -> tuple[float, float]:
        hessians = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([1.0, least], [1.0, 1.0])]
        exact, diagonal = exact_ratios(hessians).ratios, diagonal_ratios([h.diagonal() for h in hessians]).ratios
        return exact[0, 1].item(), diagonal[0, 1].item()

    for least in (FLOOR, 1e-8, 1e-10, 0.0, -1e-8):
        for above, below in zip(ratio(least * 1.001 + 1e-12), ratio(least * 0.999 - 1e-12), strict=True):
            assert below == pytest.approx(above, rel=0.01)
            assert above <= 1.001 / FLOOR
