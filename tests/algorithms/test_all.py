"""What holds for each of the seven algorithms: the formula, the checkpoint, no waiting for the device."""

import io
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import domainbed
from domainbed.algorithms import ALGORITHMS, get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.hparams_registry import default_hparams
from tests.algorithms import formulas

PACKAGE = Path(domainbed.__file__).parent
# Hyperparameters under which twenty updates pass through every branch.
BUSY = {
    "ERM": {},
    "CORAL": {"mmd_gamma": 3.0},
    "DANN": {"lambda": 0.7, "grad_penalty": 0.3, "d_steps_per_g_step": 2, "weight_decay_d": 0.01, "mlp_depth": 4},
    "IRM": {"irm_penalty_anneal_iters": 7, "irm_lambda": 50.0},
    "VREx": {"vrex_penalty_anneal_iters": 7, "vrex_lambda": 50.0},
    "Fish": {"meta_lr": 0.3},
    "Fishr": {"penalty_anneal_iters": 7, "lambda": 200.0},
}
VARIANTS = [("Fishr", variant) for variant in ("uncentered", "covariance", "all_layers")]
CASES = [(name, None) for name in BUSY] + VARIANTS


def make(name: str, variant: str | None = None, **hparams) -> Algorithm:
    hparams = {**default_hparams(name, "ColoredDigits"), **BUSY[name], **hparams}
    if variant is not None:
        hparams["variant"] = variant
    return get_algorithm_class(name)((2, 8, 8), 3, 3, hparams)


def batches(n_updates: int, sizes: tuple[int, ...] = (6, 6, 6), dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        [(torch.rand(n, 2, 8, 8, generator=generator, dtype=dtype), torch.randint(3, (n,), generator=generator))
         for n in sizes]
        for _ in range(n_updates)
    ]  # fmt: skip


def test_these_are_all_algorithms():
    assert list(BUSY) == list(ALGORITHMS._builtin)  # beside which other tests register their own


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nonlinear_classifier": True},
        {"weight_decay": 0.1, "weight_decay_g": 0.1, "lr": 0.01, "lr_g": 0.01},
        {"sizes": (4, 7, 5)},
    ],
    ids=["defaults", "nonlinear head", "weight decay", "unequal batches"],
)
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_twenty_updates_equal_the_formula_in_float64(name: str, variant: str | None, changes: dict):
    sizes = changes.get("sizes", (6, 6, 6))
    known = default_hparams(name, "ColoredDigits")
    torch.manual_seed(0)
    algorithm = make(name, variant, **{k: v for k, v in changes.items() if k in known}).double()
    formula = getattr(formulas, name)(algorithm, algorithm.hparams)
    before = [p.detach().clone() for p in formula.parameters()]
    for t, domains in enumerate(batches(20, sizes, torch.float64)):
        algorithm.update(domains)
        formula.update(domains, t)
    ours = [*algorithm.featurizer.parameters(), *algorithm.classifier.parameters()]
    for p, expected, old in zip(ours, formula.parameters(), before, strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-10)
        assert not torch.allclose(p, old, atol=1e-4)
    x = batches(1, dtype=torch.float64)[0][0][0]
    torch.testing.assert_close(algorithm.predict(x), formula.logits(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("k", [0, 5, 7, 8, 11])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_loaded_into_a_fresh_object_it_goes_on_as_if_never_stopped(name: str, variant: str | None, k: int):
    """Bit for bit: before, at and after the anneal, and at any of DANN's turns."""
    torch.manual_seed(0)
    dropout = {"mlp_dropout": 0.5} if name == "DANN" else {}
    whole = make(name, variant, **dropout)
    for domains in batches(k):
        whole.update(domains)
    file = io.BytesIO()
    torch.save(whole.training_state(), file)
    torch.manual_seed(7)
    fresh = make(name, variant, **dropout)
    fresh.load_training_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    told = []
    for algorithm in (whole, fresh):
        torch.manual_seed(k)  # the random generators are the engine's to restore
        told.append([(algorithm.phase, algorithm.update(domains)) for domains in batches(20)[k:]])
    assert told[0] == told[1]
    states = [dict(leaves(algorithm.training_state())) for algorithm in (whole, fresh)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key])), key


def leaves(state, path=()):
    """Everything in a state that is a tensor or a number, with the way to it."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, (*path, key))
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from leaves(value, (*path, i))
    elif isinstance(state, torch.Tensor | int | float):
        yield path, state


def test_the_state_of_another_algorithm_is_refused():
    with pytest.raises(RuntimeError, match="averages"):
        make("Fishr").load_training_state(make("ERM").training_state())


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_no_update_makes_the_host_wait_or_builds_a_network(
    name: str, variant: str | None, monkeypatch: pytest.MonkeyPatch
):
    algorithm = make(name, variant)

    def watch(method: str):
        original = getattr(torch.Tensor, method)

        def watched(self, *args, **kwargs):
            caller = sys._getframe(1).f_code.co_filename  # torch's Adam reads its step counter, which lies on the host
            assert PACKAGE not in Path(caller).parents, f"{caller} made the host wait for the device by {method}"
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, method, watched)

    for method in ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy", "nonzero"):
        watch(method)

    def refuse(self, *args, **kwargs):
        raise AssertionError("update made a module")

    monkeypatch.setattr(nn.Module, "__init__", refuse)
    phases = []
    for domains in batches(20):
        phases.append(algorithm.phase)
        for figure in algorithm.update(domains).values():
            assert figure.shape == ()
            assert not figure.requires_grad
    annealed = {"warm-up", "penalised"}
    expected = {
        "DANN": {"discriminator", "generator"},
        "IRM": annealed,
        "VREx": annealed,
        "Fishr": annealed,
    }
    assert set(phases) == expected.get(name, {"update"})


@pytest.mark.parametrize("name", list(BUSY))
def test_one_training_domain_is_enough(name: str):
    hparams = default_hparams(name, "ColoredDigits")
    algorithm = get_algorithm_class(name)((2, 8, 8), 3, 1, hparams)
    for domains in batches(3, (6,)):
        figures = algorithm.update(domains)
    assert all(torch.isfinite(figure) for figure in figures.values())
