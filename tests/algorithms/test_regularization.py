"""Tests of spectral decoupling, IB-ERM and IB-IRM."""

import pytest
import torch
from torch.nn import functional as F

from tests.algorithms import checks, formulas_regularization
from tests.algorithms.test_all import batches

HPARAMS = {
    "SD": {"sd_reg": 0.3},
    "IB_ERM": {"ib_penalty_anneal_iters": 7, "ib_lambda": 20.0},
    "IB_IRM": {
        "irm_penalty_anneal_iters": 7,
        "irm_lambda": 30.0,
        "ib_penalty_anneal_iters": 11,
        "ib_lambda": 20.0,
    },
}
WEIGHT_DECAY = {"weight_decay": 0.1, "lr": 0.01}


@pytest.mark.parametrize(
    ("name", "changes", "sizes"),
    [
        *((name, {}, (6, 6, 6)) for name in HPARAMS),
        *((name, WEIGHT_DECAY, (4, 7, 5)) for name in HPARAMS),
        *((name, {"nonlinear_classifier": True}, (6, 6)) for name in HPARAMS),
        *((name, {}, (6,)) for name in HPARAMS),
        ("IB_ERM", {"ib_penalty_anneal_iters": 0}, (6, 6, 6)),
        ("IB_IRM", {"ib_penalty_anneal_iters": 7}, (6, 6, 6)),
        ("IB_IRM", {"irm_penalty_anneal_iters": 12, "ib_penalty_anneal_iters": 3}, (6, 6, 6)),
        ("IB_ERM", {"ib_lambda": 0.0}, (6, 6, 6)),  # Adam is reset nevertheless
    ],
    ids=str,
)
def test_twenty_updates_equal_the_formula_in_float64(name: str, changes: dict, sizes: tuple[int, ...]):
    checks.assert_equals_formula(name, getattr(formulas_regularization, name), {**HPARAMS[name], **changes}, sizes)


@pytest.mark.parametrize(
    ("irm", "ib", "expected"),
    [
        (2, 4, "ww ww pw pw pp pp"),
        (4, 2, "ww ww wp wp pp pp"),
        (3, 3, "ww ww ww pp pp pp"),
        (0, 0, "pp pp pp pp pp pp"),
    ],
)
@pytest.mark.parametrize("weight", [10.0, 0.0])
def test_phases_of_ib_irm(irm: int, ib: int, expected: str, weight: float):
    """They depend on the counts alone, because Adam is reset whatever the weights."""
    hparams = {
        "irm_penalty_anneal_iters": irm,
        "ib_penalty_anneal_iters": ib,
        "ib_lambda": weight,
        "irm_lambda": weight,
    }
    algorithm = checks.make("IB_IRM", hparams)
    phases = []
    for domains in batches(6):
        phases.append("".join(part.split()[1][0] for part in algorithm.phase.split(", ")))
        algorithm.update(domains)
    assert " ".join(phases) == expected


def test_phases_of_ib_erm_without_a_penalty():
    algorithm = checks.make("IB_ERM", {"ib_penalty_anneal_iters": 2, "ib_lambda": 0.0})
    phases = []
    for domains in batches(4):
        phases.append(algorithm.phase)
        algorithm.update(domains)
    assert phases == ["warm-up", "warm-up", "penalized", "penalized"]


def test_metrics_of_sd():
    """The loss is the cross-entropy alone, as published."""
    algorithm = checks.make("SD", {"sd_reg": 5.0})
    x, y = (torch.cat(parts) for parts in zip(*batches(1)[0], strict=True))
    logits = algorithm.predict(x).detach()
    metrics = algorithm.update(batches(1)[0])
    torch.testing.assert_close(metrics["loss"], F.cross_entropy(logits, y))
    torch.testing.assert_close(metrics["penalty"], logits.square().mean())
