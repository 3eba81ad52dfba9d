"""Tests of GroupDRO, EQRM, URM and TRM."""

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from domainbed.algorithms.eqrm import kernel_quantile
from domainbed.errors import UsageError
from tests.algorithms import checks, formulas_robust
from tests.algorithms.test_all import batches

# Hyperparameters with which twenty updates reach every branch.
HPARAMS = {
    "GroupDRO": {"groupdro_eta": 0.3},
    "EQRM": {"eqrm_burnin_iters": 7.0, "eqrm_quantile": 0.9, "eqrm_lr": 0.002},
    "URM": {"urm_adv_lambda": 0.7, "urm_discriminator_hidden_layers": 2},
    "TRM": {"iters": 7, "cos_lambda": 0.3, "groupdro_eta": 0.3},
}
WEIGHT_DECAY = {"weight_decay": 0.1, "lr": 0.01}
NONLINEAR = {"nonlinear_classifier": True}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        *((name, {}, (6, 6, 6)) for name in HPARAMS),
        *((name, WEIGHT_DECAY, (4, 7, 5)) for name in HPARAMS),
        *((name, NONLINEAR, (6, 6, 6)) for name in ("GroupDRO", "EQRM", "URM")),
        ("EQRM", {"eqrm_burnin_iters": 7.5}, (6, 6)),
        ("EQRM", {"eqrm_burnin_iters": 0.0, "eqrm_quantile": 0.5}, (6, 6, 6)),
        ("URM", {"urm_generator_output": "relu", "urm_discriminator_hidden_layers": 1}, (6, 6, 6)),
        ("URM", {"urm_generator_output": "sigmoid", "urm_discriminator_hidden_layers": 3}, (6, 6, 6)),
        ("URM", {"urm_discriminator_optimizer": "sgd", "weight_decay": 0.1}, (6, 6, 6)),
        ("URM", {"urm_discriminator_label_smoothing": 0.2}, (6, 6, 6)),
        ("TRM", {"class_balanced": True, "iters": 0}, (6, 6, 6)),
        ("TRM", {"trm_series": "paper"}, (6, 6, 6)),
        ("TRM", {}, (6, 6)),
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(name: str, changes: dict, sizes: tuple[int, ...]):
    checks.assert_equals_formula(name, getattr(formulas_robust, name), {**HPARAMS[name], **changes}, sizes)


def test_single_domain_of_groupdro_is_erm():
    checks.assert_single_domain_is_erm("GroupDRO", HPARAMS["GroupDRO"])


# EQRM


@pytest.mark.parametrize("alpha", [0.5, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("risks", [[0.1, 0.7], [0.3, 0.2, 1.5], [2.0, 2.0, 2.1, 0.4, 0.9]], ids=str)
def test_quantile_of_the_kernel_density_estimate(risks: list[float], alpha: float):
    """It solves F(q) = alpha, and its gradient is that of the first bracket with a constant position in it."""
    r = torch.tensor(risks, dtype=torch.float64, requires_grad=True)
    quantile = kernel_quantile(r, alpha)
    bandwidth = 1.06 * r.std() * len(risks) ** -0.2
    assert torch.special.ndtr((quantile - r) / bandwidth).mean().item() == pytest.approx(alpha, abs=1e-7)
    plain = formulas_robust.kernel_quantile(list(r), alpha)
    assert quantile.item() == pytest.approx(plain.item(), abs=1e-12)
    (actual,), (expected,) = torch.autograd.grad(quantile, r), torch.autograd.grad(plain, r)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantile_of_equal_risks_is_not_finite(dtype: torch.dtype):
    """The scale of the kernel is 0, so the job ends (the published code raises ValueError)."""
    assert kernel_quantile(torch.full((3,), 0.7, dtype=dtype), 0.75).isnan()
    algorithm = checks.make("EQRM", {**HPARAMS["EQRM"], "eqrm_burnin_iters": 0.0})
    domain = batches(1)[0][0]
    assert algorithm.update([domain] * 3)["loss"].isnan()


def test_quantile_is_computed_in_float64():
    risks = torch.tensor([0.3, 0.2, 1.5])
    quantile = kernel_quantile(risks, 0.75)
    assert quantile.dtype == torch.float32
    assert quantile == kernel_quantile(risks.double(), 0.75).float()


def test_caveat_of_eqrm():
    assert "eqrm_lr is not used" in checks.make("EQRM", {"eqrm_burnin_iters": 1796.97}).caveat
    assert checks.make("EQRM", {}).caveat == ""


# URM


@pytest.mark.parametrize(("output", "low"), [("tanh", -1), ("relu", 0), ("sigmoid", 0)])
def test_noise_is_uniform(output: str, low: int):
    """A Kolmogorov-Smirnov test of the noise that the discriminator sees."""
    algorithm = checks.make("URM", {"urm_generator_output": output})
    seen = []
    algorithm.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    torch.manual_seed(0)
    algorithm.update(batches(1, (64, 64))[0])
    real, noise, fake = seen
    assert torch.equal(real, fake)  # the features are those from before the first step
    assert noise.shape == real.shape
    assert kstest(noise.flatten().numpy(), "uniform", (low, 1 - low)).pvalue > 0.01


@pytest.mark.parametrize(("is_real", "low"), [(True, 0.8), (False, 0.0)])
def test_smoothed_labels_are_uniform(is_real: bool, low: float, monkeypatch: pytest.MonkeyPatch):
    algorithm = checks.make("URM", {"urm_discriminator_label_smoothing": 0.2})
    targets = []
    monkeypatch.setattr(
        "torch.nn.functional.binary_cross_entropy_with_logits", lambda logits, target: targets.append(target)
    )
    torch.manual_seed(0)
    algorithm.discriminator_loss(torch.zeros(1000, 32), is_real)
    assert kstest(targets[0].flatten().numpy(), "uniform", (low, 0.2)).pvalue > 0.01


def test_features_of_urm_are_bounded_in_predictions():
    algorithm = checks.make("URM", {})
    x = 100 * batches(1)[0][0][0]
    assert algorithm.featurizer(x).abs().max() <= 1
    assert torch.equal(algorithm.predict(x), algorithm.classifier(algorithm.featurizer(x)))


@pytest.mark.parametrize(
    "hparams", [{"urm_generator_output": "identity"}, {"urm_discriminator_optimizer": "rmsprop"}], ids=str
)
def test_unknown_options_of_urm_are_rejected(hparams: dict):
    with pytest.raises(UsageError, match=r"must be .* not"):
        checks.make("URM", hparams)


# TRM


@pytest.mark.parametrize("series", ["code", "paper"])
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 3.0, 30.0])
def test_inverse_hessian_product(scale: float, series: str):
    """Also where the sum exceeds 10, at once or after some terms."""
    torch.manual_seed(0)
    algorithm = checks.make("TRM", {"trm_series": series}).double()
    probe = nn.Linear(32, 3).double()
    z, y = torch.randn(6, 32, dtype=torch.float64), torch.randint(3, (6,))
    g = scale * torch.randn(3, 32, dtype=torch.float64)
    risk = nn.functional.cross_entropy(probe(z), y)
    expected = formulas_robust.neumann_series(risk, probe.weight, g, series == "paper")
    actual = algorithm.inverse_hessian_product(probe.requires_grad_(False), z, g)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_head_of_trm_is_linear_and_feels_the_cross_entropy_alone():
    """Neither the probes nor the weights α reach the classifier."""
    updated = []
    for cos_lambda in (0.0, 5.0):
        torch.manual_seed(0)
        algorithm = checks.make("TRM", {"iters": 0, "cos_lambda": cos_lambda, "nonlinear_classifier": True}).double()
        assert isinstance(algorithm.classifier, nn.Linear)
        algorithm.update(batches(1, dtype=torch.float64)[0])
        updated.append(algorithm)
    assert torch.equal(*(algorithm.classifier.weight for algorithm in updated))
    assert not torch.equal(*(algorithm.featurizer.convs[0].weight for algorithm in updated))


def test_reported_transfer_risk_is_that_of_the_old_weights():
    """With α_Qi = 1/2 at first, it is the mean risk of each probe in the other domains (cos_lambda is 0)."""
    torch.manual_seed(0)
    algorithm = checks.make("TRM", {"iters": 0, "cos_lambda": 0.0, "groupdro_eta": 1.0}).double()
    domains = batches(1, dtype=torch.float64)[0]
    z = [algorithm.featurizer(x).detach() for x, _ in domains]
    reported = algorithm.update(domains)["trm_loss"]
    risks = [
        nn.functional.cross_entropy(probe(z[i]), domains[i][1])
        for q, probe in enumerate(algorithm.probes)
        for i in range(3)
        if i != q
    ]
    assert reported.item() == pytest.approx(sum(risks).item() / 6, abs=1e-12)
    assert (algorithm.alpha.sum(1) > 1).all()


def test_unknown_series_is_rejected():
    with pytest.raises(ValueError, match="trm_series"):
        checks.make("TRM", {"trm_series": "neumann"})
