"""Tests of MMD, CDANN, CAD, CondCAD, CausIRL, Transfer and RDM."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from domainbed.algorithms.distances import coral_distance, gaussian_kernel, mmd_distance, moments, weighted_moments
from domainbed.errors import UsageError
from tests.algorithms import checks, formulas_alignment
from tests.algorithms.test_all import batches

# Hyperparameters with which twenty updates reach every branch.
HPARAMS = {
    "MMD": {"mmd_gamma": 3.0},
    "CDANN": {"lambda": 0.7, "grad_penalty": 0.3, "d_steps_per_g_step": 2, "mlp_depth": 4, "mlp_width": 32},
    "CAD": {"lmbda": 1.0},
    "CondCAD": {"lmbda": 1.0},
    "CausIRL_CORAL": {"mmd_gamma": 3.0},
    "CausIRL_MMD": {"mmd_gamma": 3.0},
    "Transfer": {"t_lambda": 3.0, "lr_d": 0.05, "delta": 0.2},
    "RDM": {"rdm_penalty_anneal_iters": 7, "rdm_lr": 0.002, "rdm_lambda": 2.0, "variance_weight": 0.5},
}
WEIGHT_DECAY = {"weight_decay": 0.1, "lr": 0.01}
NONLINEAR = {"nonlinear_classifier": True}
CDANN_DECAY = {"weight_decay_g": 0.1, "weight_decay_d": 0.01, "lr_g": 0.01, "beta1": 0.0, "d_steps_per_g_step": 1}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        *((name, {}, (6, 6, 6)) for name in HPARAMS),
        *((name, WEIGHT_DECAY, (4, 7, 5)) for name in HPARAMS if name not in ("RDM", "CDANN")),
        ("CDANN", {**CDANN_DECAY, **NONLINEAR}, (4, 7, 5)),
        ("CDANN", {"grad_penalty": 0.0}, (6, 6)),
        ("CAD", {"is_normalized": True, "temperature": 0.05}, (6, 6, 6)),
        ("CAD", {"is_flipped": False}, (6, 6, 6)),
        ("CondCAD", {"is_normalized": True, "temperature": 0.05}, (3, 3, 3)),
        ("CondCAD", {"is_flipped": False}, (3, 3, 3)),
        ("CausIRL_CORAL", {}, (3, 2)),
        ("CausIRL_CORAL", {}, (6,)),
        ("CausIRL_MMD", {}, (3, 2)),
        ("CausIRL_MMD", {}, (6,)),
        ("Transfer", NONLINEAR, (6, 6, 6)),
        ("Transfer", {"delta": 50.0, "d_steps_per_g": 2}, (6, 6, 6)),
        ("Transfer", {}, (6,)),
        ("RDM", {**WEIGHT_DECAY, **NONLINEAR}, (4, 4)),
        # With large steps, rounding in the kernel of scale 1000 would grow to more than 1e-10.
        ("RDM", {"rdm_penalty_anneal_iters": 0, "rdm_lr": 1e-4}, (4, 4, 4)),
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(name: str, changes: dict, sizes: tuple[int, ...]):
    checks.assert_equals_formula(name, getattr(formulas_alignment, name), {**HPARAMS[name], **changes}, sizes)


@pytest.mark.parametrize("name", ["MMD", "CAD", "CondCAD"])
def test_single_domain_is_erm(name: str):
    """There is nothing to align, so the penalty is a constant 0."""
    checks.assert_single_domain_is_erm(name, HPARAMS[name])


def gradients_of(loss: torch.Tensor, z: list[torch.Tensor]) -> torch.Tensor:
    """Return the gradient with respect to features, or 0 if they have no influence."""
    gradients = torch.autograd.grad(loss, z, allow_unused=True) if loss.requires_grad else [None] * len(z)
    return torch.cat([torch.zeros_like(z_e) if g is None else g for z_e, g in zip(z, gradients, strict=True)])


# Distances


def test_discrepancy_of_equal_samples_is_zero():
    z = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    distance = mmd_distance(z, z[[3, 1, 0, 2, 4]])
    assert distance.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(distance, z)[0].isfinite().all()
    assert gaussian_kernel(z, z).diagonal().tolist() == pytest.approx([7.0] * 5)


def test_weighted_moments_are_those_of_the_rows():
    torch.manual_seed(0)
    z, weights = torch.randn(7, 4, dtype=torch.float64), torch.tensor([1.0, 0, 1, 1, 0, 0, 1], dtype=torch.float64)
    actual, expected = weighted_moments(z, weights), moments(z[weights == 1])
    torch.testing.assert_close(actual.mean, expected.mean)
    torch.testing.assert_close(actual.deviations[weights == 1], expected.deviations)
    assert actual.n == expected.n
    assert (actual.deviations[weights == 0] == 0).all()


@pytest.mark.parametrize("d", [2, 8, 9, 10, 40], ids="{} features".format)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_distance_of_covariances_equals_theirs(d: int, is_weighted: bool):
    """With 9 rows; equal for few and many features, with its gradient."""
    torch.manual_seed(d)
    z = torch.randn(9, d, dtype=torch.float64, requires_grad=True)
    is_first = torch.tensor([True, False, True, True, False, False, True, False, True])
    if is_weighted:
        weights = is_first.to(z.dtype)
        actual = coral_distance(weighted_moments(z, weights), weighted_moments(z, 1 - weights))
    else:
        actual = coral_distance(moments(z[is_first]), moments(z[~is_first]))
    expected = formulas_alignment.coral(z[is_first], z[~is_first])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(distance, z)[0] for distance in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shift", [0.0, 0.01, 1.0])
def test_distance_of_covariances_is_accurate_in_float32(shift: float):
    """Similar domains with a common direction of large variance, after ReLU: squared norms of covariances cancel."""
    torch.manual_seed(0)
    common = torch.randn(96, 1, dtype=torch.float64) * torch.rand(2048, dtype=torch.float64)
    z = (0.5 + common + 0.01 * torch.randn(96, 2048, dtype=torch.float64)).relu()
    a, b = z[:48], z[48:] * (1 + shift)
    expected = formulas_alignment.coral(a, b)
    actual = coral_distance(moments(a.float()), moments(b.float()))
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=0)


# CDANN


def test_phases_of_cdann():
    """The discriminator's turn trains it and the embeddings, the generator's turn the others."""
    algorithm = checks.make("CDANN", {"d_steps_per_g_step": 2})
    domains = batches(1)[0]
    for phase in "dgddgddg":
        assert algorithm.phase[0] == phase
        before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
        algorithm.update(domains)
        changed = {name.split(".")[0] for name, p in algorithm.named_parameters() if not torch.equal(p, before[name])}
        expected = {"discriminator", "class_embeddings"} if phase == "d" else {"featurizer", "classifier"}
        assert changed == expected


@pytest.mark.parametrize("labels", [[0, 0, 1], [2, 0, 2], [0, 0, 0]], ids=str)
def test_weights_of_cdann_depend_on_the_largest_label(labels: list[int]):
    """A class counts 1 / (1 + the largest label of the batch), which may be less than the number of classes."""
    torch.manual_seed(0)
    algorithm = checks.make("CDANN", {"grad_penalty": 0.3}).double()
    formula = formulas_alignment.CDANN(algorithm, algorithm.hparams)
    domains = [(x, torch.tensor(labels)) for x, _ in batches(1, (3, 3, 3), torch.float64)[0]]
    loss = algorithm.update(domains)["disc_loss"]
    torch.testing.assert_close(loss, formula.domain_loss(domains).detach())


# CAD and CondCAD


@pytest.mark.parametrize("is_flipped", [True, False])
@pytest.mark.parametrize("name", ["CAD", "CondCAD"])
@pytest.mark.parametrize(
    "labels",
    [
        [[0, 1], [2, 3], [4, 5]],  # no sample has a partner
        [[0, 0], [1, 1], [2, 2]],  # only in its own domain
        [[0, 1], [0, 2], [0, 3]],  # only in other domains, and only some samples
        [[0, 0], [0, 0], [0, 0]],
        [[0, 0, 1, 2]],  # a single domain
        [[0], [0]],
        [[0]],
    ],
    ids=str,
)
def test_rows_without_partner_have_finite_gradients(name: str, is_flipped: bool, labels: list[list[int]]):
    torch.manual_seed(0)
    algorithm = checks.make(name, {"is_flipped": is_flipped}, len(labels))
    formula = getattr(formulas_alignment, name)(algorithm, algorithm.hparams)
    formula.featurizer = torch.nn.Identity()
    z = [torch.randn(len(row), 4, dtype=torch.float64, requires_grad=True) for row in labels]
    y = [torch.tensor(row) for row in labels]
    domains = torch.cat([torch.full_like(row, e) for e, row in enumerate(y)])
    penalty = algorithm.bottleneck_loss(torch.cat(z), torch.cat(y), domains)
    # A sum over no terms is dropped. With a single sample, CAD's softmax has no candidates.
    losses = formula.penalties(list(zip(z, y, strict=True)))
    expected = sum(losses) / len(losses) if losses else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(gradients_of(penalty, z), gradients_of(expected, z))


@pytest.mark.parametrize("name", ["CAD", "CondCAD"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_penalty_is_finite_for_large_features(name: str, scale: float):
    """Similarities are up to 10^6, and most probabilities underflow."""
    torch.manual_seed(0)
    z = (scale * torch.randn(18, 32)).requires_grad_(True)
    y, domains = torch.randint(3, (18,)), torch.arange(18) // 6
    penalty = checks.make(name, {}).bottleneck_loss(z, y, domains)
    assert penalty.isfinite()
    assert torch.autograd.grad(penalty, z)[0].isfinite().all()


def test_projection_of_cad_is_rejected():
    with pytest.raises(UsageError, match="is_project"):
        checks.make("CAD", {"is_project": True})


# CausIRL


@pytest.mark.parametrize("name", ["CausIRL_CORAL", "CausIRL_MMD"])
@pytest.mark.parametrize(
    ("sizes", "firsts"),
    [
        ((6, 6, 6), (0, 0, 0)),  # the first mixture is empty
        ((6, 6, 6), (0, 1, 0)),  # it has one row
        ((6, 6, 6), (1, 1, 0)),
        ((6, 6, 6), (2, 0, 5)),
        ((6, 6, 6), (5, 5, 5)),
        *(((6,), (r,)) for r in range(6)),
        ((2, 2), (1, 1)),
        ((2, 2), (1, 0)),
        ((1, 1), (0, 0)),
        ((3,), (2,)),
    ],
    ids=str,
)
def test_distance_of_mixtures(
    name: str, sizes: tuple[int, ...], firsts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    """The first r rows of each domain against the others; 0, with gradient 0, if there are fewer than two of either."""
    torch.manual_seed(0)
    algorithm = checks.make(name, {}, len(sizes))
    z = [torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in sizes]
    draws = iter([(r + 0.5) / n for r, n in zip(firsts, sizes, strict=True)])
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(next(draws)))
    actual = algorithm.distance(z)
    actual = torch.zeros((), dtype=torch.float64) if actual is None else actual
    parts = [[z_e[i] for z_e, r in zip(z, firsts, strict=True) for i in range(len(z_e)) if (i < r) == is_first]
             for is_first in (True, False)]  # fmt: skip
    expected = torch.zeros((), dtype=torch.float64)
    if min(map(len, parts)) > 1:
        expected = getattr(formulas_alignment, name).distance(*parts)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients_of(actual, z), gradients_of(expected, z))


def test_sizes_of_the_first_mixture_are_uniform_and_independent(monkeypatch: pytest.MonkeyPatch):
    """r is uniform on 0, …, n - 1 in each domain of n samples."""
    algorithm = checks.make("CausIRL_CORAL", {}, 2)
    z = [torch.randn(3, 4), torch.randn(4, 4)]
    masks = []
    where = torch.where

    def recording(condition, chosen, other):
        masks.append(chosen.tolist())
        return where(condition, chosen, other)

    monkeypatch.setattr(torch, "where", recording)
    torch.manual_seed(0)
    counts: Counter = Counter()
    for _ in range(1200):
        algorithm.distance(z)
        first, second = masks[-1][:3], masks[-1][3:]
        r = sum(first), sum(second)
        assert masks[-1] == [i < r[0] for i in range(3)] + [i < r[1] for i in range(4)]
        counts[r] += 1
    assert set(counts) == {(i, j) for i in range(3) for j in range(4)}
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_distance_that_is_not_a_number_is_not_penalized():
    for name in ("CausIRL_CORAL", "CausIRL_MMD"):
        z = [torch.full((6, 4), torch.nan)] * 3
        assert checks.make(name, {}).distance(z) == 0


# Transfer


def test_gda_never_trains_the_network():
    algorithm = checks.make("Transfer", {"gda": True})
    before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
    for domains in batches(5):
        algorithm.update(domains)
    for name, p in algorithm.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("adversarial_classifier")), name
    assert "never trained" in algorithm.caveat
    assert checks.make("Transfer", {}).caveat == ""


def test_gda_equals_the_formula_in_float64():
    hparams = {**HPARAMS["Transfer"], "gda": True}
    unchanged = ("featurizer", "classifier")
    checks.assert_equals_formula("Transfer", formulas_alignment.Transfer, hparams, unchanged=unchanged)


@pytest.mark.parametrize(("delta", "is_reached"), [(0.01, True), (50.0, False)])
@pytest.mark.parametrize("nonlinear", [False, True])
def test_adversarial_head_stays_in_the_ball_around_the_head(delta: float, is_reached: bool, nonlinear: bool):
    """All of its parameters as one vector."""
    algorithm = checks.make("Transfer", {"delta": delta, "lr_d": 0.1, "nonlinear_classifier": nonlinear}).double()
    for domains in batches(3, dtype=torch.float64):
        algorithm.update(domains)
    pairs = zip(algorithm.adversarial_classifier.parameters(), algorithm.classifier.parameters(), strict=True)
    distance = torch.cat([(a - c).flatten() for a, c in pairs]).norm().item()
    assert distance > 0
    assert (distance == pytest.approx(delta, rel=1e-9)) == is_reached
    assert distance <= delta * (1 + 1e-9)


def test_adversarial_head_equal_to_the_head_stays_there():
    """A single domain has no gap; the distance 0 must not become NaN."""
    algorithm = checks.make("Transfer", {}, 1)
    algorithm.update(batches(1, (6,))[0])
    pairs = zip(algorithm.adversarial_classifier.parameters(), algorithm.classifier.parameters(), strict=True)
    assert all(torch.equal(a, c) for a, c in pairs)


# RDM


def test_penalties_of_rdm_compare_the_worst_domain_with_all():
    torch.manual_seed(0)
    algorithm = checks.make("RDM", HPARAMS["RDM"]).double()
    domains = batches(1, dtype=torch.float64)[0]
    losses = [F.cross_entropy(algorithm.predict(x), y, reduction="none").detach() for x, y in domains]
    worst = max(losses, key=lambda part: part.mean().item())
    metrics = algorithm.update(domains)
    assert metrics.keys() == {"total_loss", "erm_loss", "matching_penalty", "variance_penalty"}
    assert metrics["total_loss"] == metrics["erm_loss"]  # in the warm-up
    torch.testing.assert_close(metrics["variance_penalty"], torch.cat(losses).var() + worst.var())
    gammas = [10.0**k for k in range(-4, 4)]
    expected = formulas_alignment.discrepancy(list(worst), list(torch.cat(losses)), gammas)
    torch.testing.assert_close(metrics["matching_penalty"], expected)


@pytest.mark.parametrize("anneal_iters", [0, 2])
def test_learning_rate_of_rdm_changes_with_the_phase(anneal_iters: int):
    algorithm = checks.make("RDM", {"rdm_penalty_anneal_iters": anneal_iters})
    rates, counts = [], []
    for domains in batches(4):
        algorithm.update(domains)
        rates.append(algorithm.optimizer.param_groups[0]["lr"])
        counts.append(int(next(iter(algorithm.optimizer.state.values()))["step"]))
    assert rates == [1e-3] * anneal_iters + [1.5e-5] * (4 - anneal_iters)
    assert counts == [*range(1, anneal_iters + 1), *range(1, 5 - anneal_iters)]
