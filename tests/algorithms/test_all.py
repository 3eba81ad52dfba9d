"""Tests of every algorithm: formulas, training state, and no synchronization with the device."""

import io
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from domainbed.algorithms import DEFAULT_ALGORITHMS, get_algorithm_class
from domainbed.algorithms.base import Algorithm
from domainbed.hparams_registry import default_hparams
from tests.algorithms import formulas

# Hyperparameters with which twenty updates reach every branch.
HPARAMS = {
    "ERM": {},
    "CORAL": {"mmd_gamma": 3.0},
    "DANN": {"lambda": 0.7, "grad_penalty": 0.3, "d_steps_per_g_step": 2, "weight_decay_d": 0.01, "mlp_depth": 4},
    "IRM": {"irm_penalty_anneal_iters": 7, "irm_lambda": 50.0},
    "VREx": {"vrex_penalty_anneal_iters": 7, "vrex_lambda": 50.0},
    "Fish": {"meta_lr": 0.3},
    "Fishr": {"penalty_anneal_iters": 7, "lambda": 200.0},
}
VARIANTS = [("Fishr", variant) for variant in ("uncentered", "covariance", "all_layers")]
CASES = [(name, None) for name in HPARAMS] + VARIANTS


def make(name: str, variant: str | None = None, **hparams) -> Algorithm:
    hparams = {**default_hparams(name, "ColoredDigits"), **HPARAMS[name], **hparams}
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


def test_every_algorithm_is_tested():
    assert tuple(HPARAMS) == DEFAULT_ALGORITHMS


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
    defaults = default_hparams(name, "ColoredDigits")
    torch.manual_seed(0)
    algorithm = make(name, variant, **{k: v for k, v in changes.items() if k in defaults}).double()
    formula = getattr(formulas, name)(algorithm, algorithm.hparams)
    before = [p.detach().clone() for p in formula.parameters()]
    for t, domains in enumerate(batches(20, sizes, torch.float64)):
        algorithm.update(domains)
        formula.update(domains, t)
    parameters = [*algorithm.featurizer.parameters(), *algorithm.classifier.parameters()]
    for p, expected, old in zip(parameters, formula.parameters(), before, strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-10)
        assert not torch.allclose(p, old, atol=1e-4)
    x = batches(1, dtype=torch.float64)[0][0][0]
    torch.testing.assert_close(algorithm.predict(x), formula.logits(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("k", [0, 5, 7, 8, 11])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_restored_algorithm_equals_uninterrupted(name: str, variant: str | None, k: int):
    """They are equal bit for bit before, at and after the end of the warm-up, and in every phase of DANN."""
    torch.manual_seed(0)
    dropout = {"mlp_dropout": 0.5} if name == "DANN" else {}
    original = make(name, variant, **dropout)
    for domains in batches(k):
        original.update(domains)
    file = io.BytesIO()
    torch.save(original.training_state(), file)
    torch.manual_seed(7)
    restored = make(name, variant, **dropout)
    restored.load_training_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    results = []
    for algorithm in (original, restored):
        torch.manual_seed(k)  # the engine restores the random generators
        results.append([(algorithm.phase, algorithm.update(domains)) for domains in batches(20)[k:]])
    assert results[0] == results[1]
    states = [dict(leaves(algorithm.training_state())) for algorithm in (original, restored)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key])), key


def leaves(state, path=()):
    """Yield each tensor and number of a state, with its path."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, (*path, key))
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from leaves(value, (*path, i))
    elif isinstance(state, torch.Tensor | int | float):
        yield path, state


def test_state_of_another_algorithm_is_rejected():
    with pytest.raises(RuntimeError, match="averages"):
        make("Fishr").load_training_state(make("ERM").training_state())


class NoSynchronization(TorchDispatchMode):
    """A mode that fails if an operation makes the host wait for the device, or copies from unpinned memory.

    Operations of torch's optimizers are exempt, because Adam's step counters are on the host.
    """

    SYNCHRONIZING = (
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
            assert not name.removeprefix("_").startswith(self.SYNCHRONIZING), name
            by_mask = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
            assert not by_mask, "indexing by a mask"
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
    name: {"warm-up", "penalized"} for name in ("IRM", "VREx", "Fishr")
}


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_update_does_not_synchronize_or_create_modules(name: str, variant: str | None, monkeypatch: pytest.MonkeyPatch):
    """Use the meta device, which has no values that the host could read."""
    with torch.device("meta"):
        algorithm = make(name, variant)
        domains = [[(torch.rand_like(x), torch.zeros_like(y)) for x, y in batch] for batch in batches(20)]
    domains = [[(x.to("meta"), y.to("meta")) for x, y in batch] for batch in domains]

    def fail(self, *args, **kwargs):
        raise AssertionError("update created a module")

    monkeypatch.setattr(nn.Module, "__init__", fail)
    phases = []
    with NoSynchronization():
        for batch in domains:
            phases.append(algorithm.phase)
            metrics = algorithm.update(batch)
            for metric in metrics.values():
                assert metric.shape == ()
                assert not metric.requires_grad
                assert metric.device.type == "meta"
    assert set(phases) == PHASES.get(name, {"update"})


@pytest.mark.parametrize(
    "synchronize",
    [
        lambda x, y: x.sum().item(),
        lambda x, y: bool(x.sum() > 0),
        lambda x, y: x.nonzero(),
        lambda x, y: y[y > 0],
        lambda x, y: torch.tensor([1.0, 2.0]).to(x.device),
        lambda x, y: torch.equal(x, x),
        lambda x, y: torch.unique(y),
        lambda x, y: torch.nn.functional.one_hot(y),
    ],
)
def test_synchronization_is_detected(synchronize):
    """Also on a CPU, where all of these work."""
    x, y = torch.rand(4), torch.zeros(4, dtype=torch.long)
    synchronize(x, y)
    with pytest.raises(AssertionError), NoSynchronization():
        synchronize(x, y)


@pytest.mark.parametrize("copy_to_host", [torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy])
def test_copies_to_the_host_fail_on_the_meta_device(copy_to_host):
    """They are the reason to use it: on a CPU, nothing is copied, so `NoSynchronization` cannot see them."""
    x = torch.rand(4)
    with NoSynchronization():
        copy_to_host(x)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError, TypeError)), NoSynchronization():
        copy_to_host(x.to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_update_does_not_synchronize_with_a_gpu(name: str, variant: str | None):
    algorithm = make(name, variant).cuda()
    domains = [[(x.cuda(), y.cuda()) for x, y in batch] for batch in batches(20)]
    algorithm.update(domains[0])  # libraries may synchronize on first use
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [algorithm.update(batch) for batch in domains[1:]]
        with pytest.raises(RuntimeError, match="synchronizing"):  # detection works
            next(iter(results[0].values())).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(results) == 19
    assert all(metric.is_cuda for metrics in results for metric in metrics.values())


@pytest.mark.parametrize("name", list(HPARAMS))
def test_single_training_domain(name: str):
    hparams = default_hparams(name, "ColoredDigits")
    algorithm = get_algorithm_class(name)((2, 8, 8), 3, 1, hparams)
    for domains in batches(3, (6,)):
        metrics = algorithm.update(domains)
    assert all(torch.isfinite(metric) for metric in metrics.values())
