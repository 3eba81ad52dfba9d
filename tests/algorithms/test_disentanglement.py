"""Tests of ADRMX."""

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from domainbed.algorithms.adrmx import contrastive_loss
from tests.algorithms import checks, formulas_disentanglement
from tests.algorithms.test_all import batches

HPARAMS = {
    "cnt_lambda": 0.8,
    "dclf_lambda": 0.6,
    "disc_lambda": 0.7,
    "rmxd_lambda": 1.3,
    "mlp_width": 32,
    "mlp_depth": 4,
}


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (6, 6, 6)),
        ({"weight_decay": 0.1, "beta1": 0.0}, (4, 7, 5)),  # the published code ignores weight_decay
        ({"d_steps_per_g_step": 1, "nonlinear_classifier": True}, (6, 6)),
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(changes: dict, sizes: tuple[int, ...]):
    checks.assert_equals_formula("ADRMX", formulas_disentanglement.ADRMX, {**HPARAMS, **changes}, sizes)


def test_phases():
    """Counting from 1, the generator is trained in updates 2, 5, 8, …, and no other weights change."""
    algorithm = checks.make("ADRMX", HPARAMS)
    phases = []
    for domains in batches(9):
        phases.append(algorithm.phase[0])
        before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
        algorithm.update(domains)
        changed = {name.split(".")[0] for name, p in algorithm.named_parameters() if not torch.equal(p, before[name])}
        is_discriminator = phases[-1] == "d"
        assert changed == ({"discriminator"} if is_discriminator else set(formulas_disentanglement.TRAINED))
    assert "".join(phases) == "dgddgddgd"


class Recorder(nn.Module):
    """A head that records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.seen.append(z)
        return torch.zeros(len(z), 3)


def draw_pairs(n_draws: int, y: torch.Tensor) -> torch.Tensor:
    """Return the pairs (i, j) that the remix loss draws for each class, [n_draws, classes, 2]."""
    algorithm = checks.make("ADRMX", HPARAMS)
    algorithm.classifier = Recorder()
    numbers = torch.arange(len(y), dtype=torch.float32)
    z_c = torch.stack([numbers, torch.zeros(len(y))], 1)
    z_d = torch.stack([torch.zeros(len(y)), numbers], 1)
    torch.manual_seed(0)
    for _ in range(n_draws):
        algorithm.remix_loss(z_c, z_d, y)
    return torch.stack(algorithm.classifier.seen).long()


def test_remixed_pairs_are_distinct_and_uniform():
    """Two different numbers below the size of the class, which index the whole batch as in the published code."""
    pairs = draw_pairs(3000, torch.tensor([0, 1, 1, 2, 2, 2, 2, 1]))  # classes of 1, 3 and 4 samples
    for k, m in ((1, 3), (2, 4)):
        i, j = pairs[:, k, 0], pairs[:, k, 1]
        assert max(i.max(), j.max()) < m
        assert (i != j).all()
        counts = torch.bincount(i * m + j, minlength=m * m).view(m, m)
        assert chisquare(counts[~torch.eye(m, dtype=torch.bool)].numpy()).pvalue > 0.01


def test_classes_that_occur_once_add_nothing_to_the_remix_loss():
    """The sum over classes is divided by the number of all classes."""
    algorithm = checks.make("ADRMX", HPARAMS)
    algorithm.classifier = Recorder()  # whose logits are equal, so each risk is log 3
    z = torch.randn(4, 32)
    for labels, n_pairs in (([0, 1, 1, 2], 1), ([0, 0, 1, 1], 2), ([0, 1, 2, 2], 1)):
        loss = algorithm.remix_loss(z, z, torch.tensor(labels))
        torch.testing.assert_close(loss, n_pairs * torch.tensor(3.0).log() / 3)
    assert algorithm.remix_loss(z[:3], z[:3], torch.tensor([0, 1, 2])) == 0


def test_update_if_no_class_occurs_twice():
    """The published code fails; here the remix and contrastive losses are 0, and the others are minimized."""
    algorithm = checks.make("ADRMX", HPARAMS, 1)
    x, _ = batches(1, (3,))[0][0]
    algorithm.update([(x, torch.tensor([0, 1, 2]))])
    before = [p.detach().clone() for p in algorithm.network.parameters()]
    metrics = algorithm.update([(x, torch.tensor([0, 1, 2]))])
    assert metrics["loss_remix"] == 0
    assert metrics["loss_cnt"] == 0
    assert all(p.isfinite().all() for p in algorithm.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(algorithm.network.parameters(), before, strict=True))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 1, 2, 2, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]], ids=str)
def test_contrastive_loss(labels: list[int]):
    """Also with samples that have no positives."""
    torch.manual_seed(0)
    z = torch.randn(5, 4, dtype=torch.float64)
    actual = contrastive_loss(z, torch.tensor(labels), torch.tensor([0, 1, 0, 1, 2]))
    expected = formulas_disentanglement.ADRMX.contrast(None, z, labels)
    assert actual.item() == pytest.approx(float(expected), abs=1e-12)


def test_predictions_are_those_of_the_label_features():
    """As in the published code, not of their difference with the domain features."""
    algorithm = checks.make("ADRMX", HPARAMS)
    x = batches(1)[0][0][0]
    assert torch.equal(algorithm.predict(x), algorithm.classifier(algorithm.featurizer(x)))


def test_heads_are_always_nonlinear_and_adam_has_no_weight_decay():
    algorithm = checks.make("ADRMX", {**HPARAMS, "weight_decay": 0.1, "nonlinear_classifier": False})
    for head, outputs in ((algorithm.classifier, 3), (algorithm.classifier_c, 3), (algorithm.classifier_d, 3)):
        widths = [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)]
        assert widths == [(32, 16), (16, 8), (8, outputs)]
    for optimizer in (algorithm.optimizer, algorithm.disc_opt):
        (group,) = optimizer.param_groups
        assert (group["weight_decay"], group["betas"]) == (0, (0.5, 0.9))
