"""What holds for each of the seven algorithms: the formula, the checkpoint, no waiting for the device."""

import io
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from domainbed.algorithms import ALGORITHMS, get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.hparams_registry import default_hparams
from tests.algorithms import formulas

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


class NoWaiting(TorchDispatchMode):
    """Refuses whatever makes the host wait for the device, or copies to it from memory that is not pinned.

    Adam's own step counters lie on the host, so what torch's optimizers do does not count.
    """

    WAITS = (
        "local_scalar_dense",
        "nonzero",
        "equal",
        "unique",
        "masked_select",
        "lift_fresh",
        "bincount",
        "is_nonzero",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0].rstrip("_")
        if not called_by_an_optimizer():
            assert not name.removeprefix("_").startswith(self.WAITS), name
            by_mask = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
            assert not by_mask, "index by a mask"
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy") and not called_by_an_optimizer():
            devices = {t.device for t in (*args, result) if isinstance(t, torch.Tensor)}
            assert len(devices) == 1, f"a copy between {devices}"
        return result


def called_by_an_optimizer() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if "/torch/optim/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


PHASES = {"DANN": {"discriminator", "generator"}} | {
    name: {"warm-up", "penalised"} for name in ("IRM", "VREx", "Fishr")
}


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_no_update_makes_the_host_wait_or_builds_a_network(
    name: str, variant: str | None, monkeypatch: pytest.MonkeyPatch
):
    """On the meta device, which has no numbers for the host to read, so that none can steer a branch."""
    with torch.device("meta"):
        algorithm = make(name, variant)
        domains = [[(torch.rand_like(x), torch.zeros_like(y)) for x, y in batch] for batch in batches(20)]
    domains = [[(x.to("meta"), y.to("meta")) for x, y in batch] for batch in domains]

    def refuse(self, *args, **kwargs):
        raise AssertionError("update made a module")

    monkeypatch.setattr(nn.Module, "__init__", refuse)
    phases = []
    with NoWaiting():
        for batch in domains:
            phases.append(algorithm.phase)
            figures = algorithm.update(batch)
            for figure in figures.values():
                assert figure.shape == ()
                assert not figure.requires_grad
                assert figure.device.type == "meta"
    assert set(phases) == PHASES.get(name, {"update"})


@pytest.mark.parametrize(
    "wait",
    [
        lambda x, y: x.sum().item(),
        lambda x, y: bool(x.sum() > 0),
        lambda x, y: x.tolist(),
        lambda x, y: x.sum().cpu(),
        lambda x, y: x.cpu().numpy(),
        lambda x, y: x.nonzero(),
        lambda x, y: y[y > 0],
        lambda x, y: torch.tensor([1.0, 2.0]).to(x.device),
        lambda x, y: torch.equal(x, x),
        lambda x, y: torch.unique(y),
        lambda x, y: torch.nn.functional.one_hot(y),
    ],
)
def test_that_test_finds_what_waits(wait):
    x, y = torch.rand(4, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NoWaiting():
        wait(x, y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_no_update_makes_the_host_wait_for_a_gpu(name: str, variant: str | None):
    algorithm = make(name, variant).cuda()
    domains = [[(x.cuda(), y.cuda()) for x, y in batch] for batch in batches(20)]
    algorithm.update(domains[0])  # libraries may wait as they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        told = [algorithm.update(batch) for batch in domains[1:]]
        with pytest.raises(RuntimeError, match="synchronizing"):  # torch does look
            next(iter(told[0].values())).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(told) == 19
    assert all(figure.is_cuda for figures in told for figure in figures.values())


@pytest.mark.parametrize("name", list(BUSY))
def test_one_training_domain_is_enough(name: str):
    hparams = default_hparams(name, "ColoredDigits")
    algorithm = get_algorithm_class(name)((2, 8, 8), 3, 1, hparams)
    for domains in batches(3, (6,)):
        figures = algorithm.update(domains)
    assert all(torch.isfinite(figure) for figure in figures.values())
