"""Tests of Mixup, SagNet, RSC and SelfReg."""

from collections import Counter

import pytest
import torch
from scipy.stats import beta, chisquare, kstest
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import sagnet
from domainbed.algorithms.base import random_permutation
from tests.algorithms import checks, formulas_mixing
from tests.algorithms.test_all import batches

HPARAMS = {
    "Mixup": {"mixup_alpha": 0.5},
    "SagNet": {"sag_w_adv": 3.0},
    "RSC": {"rsc_f_drop_factor": 0.4, "rsc_b_drop_factor": 0.3},
    "SelfReg": {},
}
WEIGHT_DECAY = {"weight_decay": 0.1, "lr": 0.01}
NONLINEAR = {"nonlinear_classifier": True}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        *((name, {}, (6, 6, 6)) for name in HPARAMS),
        *((name, {**NONLINEAR, **WEIGHT_DECAY}, (4, 7, 5)) for name in HPARAMS),
        *((name, {}, (6,)) for name in HPARAMS),
        ("Mixup", {"mixup_alpha": 0.1}, (6, 6)),
        ("Mixup", {"mixup_alpha": 10.0}, (6, 6, 6, 6)),
        ("RSC", {"rsc_f_drop_factor": 0.0, "rsc_b_drop_factor": 0.5}, (6, 6, 6)),
        ("RSC", {"rsc_f_drop_factor": 0.5, "rsc_b_drop_factor": 0.0}, (6, 6, 6)),
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(name: str, changes: dict, sizes: tuple[int, ...]):
    checks.assert_equals_formula(name, getattr(formulas_mixing, name), {**HPARAMS[name], **changes}, sizes)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_permutations_are_uniform(n: int):
    torch.manual_seed(0)
    counts = Counter(tuple(random_permutation(n, torch.device("cpu")).tolist()) for _ in range(2400))
    assert all(sorted(order) == list(range(n)) for order in counts)
    assert len(counts) == {1: 1, 2: 2, 4: 24}[n]
    assert n == 1 or chisquare(list(counts.values())).pvalue > 0.01


# Mixup


def draw_lambda(alpha: float, n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return checks.make("Mixup", {"mixup_alpha": alpha}).draw_lambda(n, torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0, 10.0])
def test_lambda_follows_the_beta_distribution(alpha: float):
    assert kstest(draw_lambda(alpha, 5000).numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


def test_lambda_of_a_small_alpha():
    """Most draws are so close to 0 or 1 that they are not representable; the others follow the distribution."""
    lam = draw_lambda(0.01, 20000)
    inner = lam[(lam > 1e-12) & (lam < 1 - 1e-12)].numpy()
    low, high = beta(0.01, 0.01).cdf([1e-12, 1 - 1e-12])
    assert len(inner) / 20000 == pytest.approx(high - low, abs=0.02)
    assert kstest(inner, lambda x: (beta(0.01, 0.01).cdf(x) - low) / (high - low)).pvalue > 0.01
    assert (lam < 0.5).double().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 10.0])
def test_lambda_is_drawn_in_float64(alpha: float):
    lam = draw_lambda(alpha, 1000, torch.float32)
    assert lam.dtype == torch.float32
    assert ((lam >= 0) & (lam <= 1)).all()
    assert torch.equal(lam, draw_lambda(alpha, 1000).float())


def test_mixup_pairs_each_domain_with_the_next_of_a_random_cycle(monkeypatch: pytest.MonkeyPatch):
    """Images of domain d are d + 1 everywhere, so that a mixture tells its pair, and labels are 0, 1, 2."""
    algorithm = checks.make("Mixup", {})
    seen = []
    monkeypatch.setattr(algorithm, "draw_lambda", lambda n, like: torch.full((n,), 0.25, dtype=like.dtype))
    algorithm.network[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 0, 0, 0].clone()))
    domains = [(torch.full((4, 2, 8, 8), 10.0**d), torch.full((4,), d)) for d in range(3)]
    pairs = {0.25 * 10.0**i + 0.75 * 10.0**j: (i, j) for i in range(3) for j in range(3)}
    torch.manual_seed(0)
    cycles = Counter()
    for _ in range(200):
        algorithm.update(domains)
        found = [pairs[value.item()] for value in seen.pop().view(3, 4)[:, 0]]
        assert [j for _, j in found] == [i for i, _ in found[1:] + found[:1]]
        cycles[tuple(i for i, _ in found)] += 1
    assert len(cycles) == 6
    assert chisquare(list(cycles.values())).pvalue > 0.01


def test_mixup_of_a_single_domain_is_erm():
    checks.assert_single_domain_is_erm("Mixup", HPARAMS["Mixup"])


# SagNet


def test_style_and_content_are_those_of_one_other_sample():
    torch.manual_seed(0)
    z = torch.randn(7, 32, dtype=torch.float64)
    content, mean, var = sagnet.normalize(z)
    mixed_content, mixed_mean, mixed_var = sagnet.normalize(sagnet.randomize_style(z))
    torch.testing.assert_close(mixed_content, content, rtol=0, atol=1e-4)
    partners = []
    for i in range(7):  # the same fraction a of the way, for the mean and for the variance, to one other sample
        a_mean = ((mixed_mean[i] - mean) / (mean[i] - mean))[:, 0]
        a_var = ((mixed_var[i] - var) / (var[i] - var))[:, 0]
        matches = [j for j in range(7) if j != i and abs(a_mean[j] - a_var[j]) < 1e-3 and 0 <= a_mean[j] <= 1]
        is_unmixed = torch.allclose(mixed_mean[i], mean[i]) and torch.allclose(mixed_var[i], var[i], atol=1e-4)
        assert is_unmixed or len(matches) == 1
        partners.append(i if is_unmixed else matches[0])
    assert sorted(partners) == list(range(7))

    swapped_content, swapped_mean, swapped_var = sagnet.normalize(sagnet.randomize_content(z))
    torch.testing.assert_close(swapped_mean, mean)
    torch.testing.assert_close(swapped_var, var, rtol=1e-4, atol=1e-4)
    sources = [(content - row).abs().sum(1).argmin().item() for row in swapped_content]
    assert sorted(sources) == list(range(7))


def test_fractions_of_sagnet_are_uniform():
    """Between samples of mean 0 and 1 and equal variance, the mean of a mixture is a or 1 - a."""
    torch.manual_seed(0)
    row = torch.randn(32, dtype=torch.float64)
    row -= row.mean()
    z = torch.stack([row + i % 2 for i in range(4000)])
    means = sagnet.randomize_style(z).mean(1)
    is_mixed = (means > 1e-9) & (means < 1 - 1e-9)
    assert is_mixed.double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert kstest(means[is_mixed].numpy(), "uniform").pvalue > 0.01


def test_content_has_no_gradient():
    z = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
    projection = torch.randn(32, dtype=torch.float64)
    torch.manual_seed(0)
    (gradient,) = torch.autograd.grad((sagnet.randomize_content(z) * projection).sum(), z)
    torch.manual_seed(0)
    order = random_permutation(5, z.device)
    content, _, _ = sagnet.normalize(z.detach())
    mean, var = z.mean(1, keepdim=True), z.var(1, keepdim=True)
    ((content[order] * (var + 1e-5).sqrt() + mean) * projection).sum().backward()
    torch.testing.assert_close(gradient, z.grad)


def test_prediction_of_sagnet_is_not_randomized():
    algorithm = checks.make("SagNet", {})
    x = batches(1)[0][0][0]
    assert torch.equal(algorithm.predict(x), algorithm.classifier(algorithm.featurizer(x)))


# RSC


def test_masks_of_rsc(monkeypatch: pytest.MonkeyPatch):
    """A third of the features is muted, in a third of the samples."""
    algorithm = checks.make("RSC", {}).double()
    inputs = []
    algorithm.classifier.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    algorithm.update(batches(1, dtype=torch.float64)[0])
    z, _, masked = inputs
    muted = (masked == 0) & (z != 0)
    assert sorted(muted.sum(1).tolist()) == [0] * 12 + [11] * 6


def test_equal_gradients_mute_all_features():
    """No gradient is below the quantile, and no change below that of the changes, which are equal."""
    algorithm = checks.make("RSC", {})
    with torch.no_grad():
        algorithm.classifier.weight.zero_()
    inputs = []
    algorithm.classifier.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    algorithm.update(batches(1)[0])
    assert (inputs[-1] == 0).all()


# SelfReg


def partners_of(algorithm, domains, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return the partners of each sample, which are the permutations of an update in the order of the labels."""
    found: list[torch.Tensor] = []
    argsort = torch.Tensor.argsort

    def recording(self, *args, **kwargs):
        result = argsort(self, *args, **kwargs)
        if self.is_floating_point():
            found.append(result)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "argsort", recording)
        algorithm.update(domains)
    return found


def test_partners_are_uniform_within_the_classes_of_all_domains(monkeypatch: pytest.MonkeyPatch):
    algorithm = checks.make("SelfReg", {})
    x = torch.rand(3, 2, 8, 8)
    # Sorted, the labels are 0 0 0 1 1 1 2 2 2.
    domains = [(x, torch.tensor([2, 0, 1])), (x, torch.tensor([0, 0, 2])), (x, torch.tensor([1, 2, 1]))]
    torch.manual_seed(0)
    counts = [Counter() for _ in range(6)]
    for _ in range(150):
        pair = partners_of(algorithm, domains, monkeypatch)
        assert len(pair) == 2
        for p, permutation in enumerate(pair):
            for c in range(3):
                part = permutation[3 * c : 3 * c + 3].tolist()
                assert sorted(part) == [3 * c, 3 * c + 1, 3 * c + 2]
                counts[3 * p + c][tuple(part)] += 1
    for count in counts:
        assert len(count) == 6
        assert chisquare(list(count.values())).pvalue > 0.01


def test_lambda_of_selfreg_follows_the_beta_distribution(monkeypatch: pytest.MonkeyPatch):
    """λ is the weight of the first of two mixed partners."""
    algorithm = checks.make("SelfReg", {})
    drawn = []
    lerp = torch.lerp

    def recording(start, end, weight):
        drawn.append(weight.item())
        return lerp(start, end, weight)

    monkeypatch.setattr(torch, "lerp", recording)
    torch.manual_seed(0)
    domains = batches(1, (2,))[0]
    for _ in range(300):
        algorithm.update(domains)
    assert drawn[::2] == drawn[1::2]  # the same for logits and features
    assert kstest(drawn[::2], beta(0.5, 0.5).cdf).pvalue > 0.01


def test_projector_keeps_its_weights_and_moves_its_statistics():
    algorithm = checks.make("SelfReg", {})
    before = {name: value.clone() for name, value in algorithm.projector.state_dict().items()}
    for domains in batches(3):
        algorithm.update(domains)
    for name, value in algorithm.projector.state_dict().items():
        assert torch.equal(value, before[name]) == name.endswith(("weight", "bias")), name
    linear = [layer for layer in algorithm.projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(32, 64), (64, 64), (64, 32)]


def test_penalty_is_scaled_by_a_small_cross_entropy():
    """By min(CE, 1). With one class in the batch and a large bias, CE is small."""
    for bias in (0.0, 3.0):
        torch.manual_seed(0)
        algorithm = checks.make("SelfReg", {}).double()
        with torch.no_grad():
            algorithm.classifier.bias[0] += bias
        domains = [(x, torch.zeros_like(y)) for x, y in batches(1, dtype=torch.float64)[0]]
        metrics = algorithm.update(domains)
        assert (metrics["nll"] < 0.5) == (bias > 0)
        expected = metrics["nll"] + min(metrics["nll"].item(), 1) * metrics["penalty"]
        torch.testing.assert_close(metrics["loss"], expected)


def test_mixup_loss_is_a_cross_entropy_with_two_labels():
    """With λ = 1 it is that of the first of each pair: the mean over all domains."""
    torch.manual_seed(0)
    algorithm = checks.make("Mixup", {}).double()
    domains = batches(1, dtype=torch.float64)[0]
    expected = sum(F.cross_entropy(algorithm.predict(x), y) for x, y in domains) / 3
    algorithm.draw_lambda = lambda n, like: torch.ones(n, dtype=like.dtype)
    torch.testing.assert_close(algorithm.update(domains)["loss"], expected.detach())
