"""Precision and compilation of featurizers: what they change, and what they must leave as it is."""

import copy
import os

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from domainbed import compute
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.erm import ERM
from domainbed.compute import Featurizing, featurizers_of, runs_as_configured, set_compiled, set_precision
from domainbed.engine.config import JobConfig
from domainbed.engine.model import to_device
from domainbed.errors import UsageError
from domainbed.gradients import gradient_factors, gradient_variance, split_factors
from domainbed.hparams_registry import default_hparams
from tests.algorithms.test_all import CASES, batches, make

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def flags_restored():
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


@pytest.fixture
def compiler() -> None:
    if reason := set_compiled([], CPU):
        assert os.environ.get("DOMAINBED_TEST_COMPILER") != "1", reason
        pytest.skip(reason)


class OwnNetwork(Algorithm):
    def __init__(self) -> None:
        super().__init__((2, 8, 8), 3, 3, {})
        self.network = torch.nn.Linear(128, 3)


@pytest.mark.parametrize(("precision", "convolutions"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_matrices_are_never_multiplied_in_tf32(precision: str, convolutions: bool):
    set_precision(precision, make("ERM"))
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_on_a_cpu_fp32_and_tf32_are_the_same_bits(name: str, variant: str | None):
    torch.manual_seed(0)
    first = make(name, variant)
    second = copy.deepcopy(first)
    for algorithm, precision in ((first, "fp32"), (second, "tf32")):
        set_precision(precision, algorithm)
        for domains in batches(3):
            algorithm.update(domains)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_bf16_is_for_the_featurizers_layers_alone(name: str, variant: str | None):
    """Weights, their gradients, features and figures stay float32; and it does something, but not much."""
    torch.manual_seed(0)
    exact = make(name, variant)
    rounded = copy.deepcopy(exact)
    set_precision("bf16", rounded)
    for domains in batches(10):
        expected, told = exact.update(domains), rounded.update(domains)
        assert {figure.dtype for figure in told.values()} == {torch.float32}
    loss, expected_loss = (sum(v.item() for k, v in t.items() if "loss" in k) for t in (told, expected))
    assert loss == pytest.approx(expected_loss, rel=0.2, abs=0.05)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in rounded.parameters() if p.grad is not None} == {torch.float32}
    x = batches(1)[0][0][0]
    features, theirs = rounded.featurizer(x), exact.featurizer(x)
    assert features.dtype == torch.float32
    assert not torch.equal(features, theirs)
    copied = copy.deepcopy(rounded)
    assert torch.equal(copied.featurizer(x), features), "a copy computes as the original"
    set_precision("tf32", copied)
    assert not torch.equal(copied.featurizer(x), features)


def test_under_bf16_penalties_and_their_gradients_are_float32s():
    """Fishr's, of given features, to the last bit."""
    torch.manual_seed(0)
    exact = make("Fishr", penalty_anneal_iters=0)
    rounded = copy.deepcopy(exact)
    set_precision("bf16", rounded)
    domains = batches(1)[0]
    z = rounded.featurizer(torch.cat([x for x, _ in domains])).detach()
    _, factors = gradient_factors(exact.classifier, z, torch.cat([y for _, y in domains]))
    v = torch.stack([gradient_variance(f) for f in split_factors(factors, [6, 6, 6])])
    rounded.update(domains)
    assert torch.equal(rounded.averages, v.detach())


def test_bf16_of_a_network_that_is_not_ours_is_refused():
    with pytest.raises(UsageError, match=r"bf16 is for featurizers that networks\.Featurizer makes; OwnNetwork has"):
        set_precision("bf16", OwnNetwork())
    set_precision("tf32", OwnNetwork())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_compiled_updates_are_the_same_within_rounding(name: str, variant: str | None, precision: str, compiler: None):
    torch.manual_seed(0)
    plain = make(name, variant)
    compiled = copy.deepcopy(plain)
    for algorithm in (plain, compiled):
        set_precision(precision, algorithm)
    assert set_compiled(featurizers_of(compiled), CPU) == ""
    for domains in batches(10):
        plain.update(domains)
        compiled.update(domains)
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if precision == "tf32" else {"rtol": 0.1, "atol": 1e-2}
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)
    assert compiled.state_dict().keys() == plain.state_dict().keys(), "a saved model knows nothing of it"


@pytest.mark.slow
def test_a_process_compiles_once_for_all_jobs(compiler: None):
    """Whatever the algorithm, and the batch size that its draw of hyperparameters gives."""

    def train(name: str, size: int) -> None:
        algorithm = make(name)
        set_compiled(featurizers_of(algorithm), CPU)
        for domains in batches(2, (size,) * 3):
            algorithm.update(domains)
        with torch.no_grad():
            algorithm.predict(torch.rand(size, 2, 8, 8))

    train("ERM", 7)
    train("DANN", 6)  # which also computes features without a gradient, in training
    before = counters["stats"]["unique_graphs"]
    for name, size in (("Fishr", 9), ("IRM", 12), ("Fish", 5), ("ERM", 31)):
        train(name, size)
    assert counters["stats"]["unique_graphs"] == before


def test_a_featurizer_that_torch_cannot_compile_runs_as_it_is_written(
    compiler: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def broken(forward):
        def run(self, x):
            raise BackendCompilerFailed(print, RuntimeError("no kernel for that"), None)

        return run

    class Odd(Featurizing):
        @runs_as_configured
        def forward(self, x):
            return 2 * x

    monkeypatch.setattr(torch, "compile", broken)
    odd = Odd()
    odd.is_compiled = True
    for _ in range(2):
        assert torch.equal(odd(torch.ones(2)), torch.full((2,), 2.0))
    told = capsys.readouterr().out
    assert told.count("Odd is not compiled: BackendCompilerFailed") == 1
    assert "no kernel for that" in told


@pytest.mark.parametrize("algorithm", ["ours", "another's"])
@pytest.mark.parametrize(("deterministic", "steps"), [(False, 1000), (True, 1000), (False, 999)])
def test_auto_compiles_on_a_gpu_what_is_known_to_allow_it(
    algorithm: str, deterministic: bool, steps: int, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr("domainbed.engine.model.set_compiled", lambda f, device: asked.append(device) or "")
    config = JobConfig("ColoredDigits", "ERM", (2,), steps=steps, deterministic=deterministic)
    made = make("ERM") if algorithm == "ours" else OwnNetwork()
    monkeypatch.setattr(type(made), "to", lambda self, device: self)
    to_device(made, config, torch.device("cuda"))
    assert bool(asked) is (algorithm == "ours" and not deterministic and steps == 1000)


def test_a_gpus_compiled_kernels_are_not_deterministic():
    config = JobConfig("ColoredDigits", "ERM", (2,), compile="on", deterministic=True)
    with pytest.raises(UsageError, match="can't be --deterministic on a GPU"):
        to_device(make("ERM"), config, torch.device("cuda"))


@pytest.mark.parametrize(("wanted", "steps", "is_asked"), [("on", 10, True), ("off", 5001, False), ("auto", 10, False)])
def test_compilation_is_as_asked(wanted: str, steps: int, is_asked: bool, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("domainbed.engine.model.set_compiled", lambda f, device: asked.append(device) or "")
    config = JobConfig("ColoredDigits", "ERM", (2,), compile=wanted, steps=steps)
    to_device(make("ERM"), config, CPU)
    assert bool(asked) is is_asked


def test_without_a_compiler_on_is_a_mistake(monkeypatch: pytest.MonkeyPatch):
    def no_compiler(function):
        raise RuntimeError("no working C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compute._why_not_compiled.cache_clear()
    algorithm = make("ERM")
    try:
        with pytest.raises(UsageError, match=r"^--compile on: torch\.compile fails here: RuntimeError: no working C"):
            to_device(algorithm, JobConfig("ColoredDigits", "ERM", (2,), compile="on"), CPU)
    finally:
        compute._why_not_compiled.cache_clear()
    assert not any(f.is_compiled for f in featurizers_of(algorithm))
    algorithm.update(batches(1)[0])


def test_of_a_subclass_the_featurizers_are_found():
    class Two(ERM):
        def __init__(self) -> None:
            super().__init__((2, 8, 8), 3, 3, default_hparams("ERM", "ColoredDigits"))
            self.other = copy.deepcopy(self.featurizer)

    assert len(featurizers_of(Two())) == 2
