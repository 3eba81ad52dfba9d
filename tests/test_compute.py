"""Precision and compilation of featurizers."""

import copy
import os

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters

from domainbed import compute
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.erm import ERM
from domainbed.compute import FeaturizerBase, enable_compilation, featurizers_of, runs_as_configured, set_precision
from domainbed.engine.config import JobConfig
from domainbed.engine.model import to_device
from domainbed.errors import UsageError
from domainbed.gradients import gradient_factors, gradient_variance, split_factors
from domainbed.hparams_registry import default_hparams
from tests.algorithms.test_all import CASES, batches, make

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restore_flags():
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


@pytest.fixture
def compiler() -> None:
    if reason := enable_compilation([], CPU):
        assert os.environ.get("DOMAINBED_TEST_COMPILER") != "1", reason
        pytest.skip(reason)


class OtherNetwork(Algorithm):
    def __init__(self) -> None:
        super().__init__((2, 8, 8), 3, 3, {})
        self.network = torch.nn.Linear(128, 3)


@pytest.mark.parametrize(("precision", "convolutions"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_matrix_products_never_use_tf32(precision: str, convolutions: bool):
    set_precision(precision, make("ERM"))
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_bf16_applies_only_to_layers_of_featurizers(name: str, variant: str | None):
    """Weights, gradients, features and metrics stay float32, and the results differ slightly."""
    torch.manual_seed(0)
    exact = make(name, variant)
    rounded = copy.deepcopy(exact)
    set_precision("bf16", rounded)
    for domains in batches(10):
        expected, metrics = exact.update(domains), rounded.update(domains)
        assert {metric.dtype for metric in metrics.values()} == {torch.float32}
    loss, expected_loss = (sum(v.item() for k, v in m.items() if "loss" in k) for m in (metrics, expected))
    assert loss == pytest.approx(expected_loss, rel=0.2, abs=0.05)
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in rounded.parameters() if p.grad is not None} == {torch.float32}
    x = batches(1)[0][0][0]
    features, exact_features = rounded.featurizer(x), exact.featurizer(x)
    assert features.dtype == torch.float32
    assert not torch.equal(features, exact_features)
    copied = copy.deepcopy(rounded)
    assert torch.equal(copied.featurizer(x), features), "a copy keeps the precision"
    set_precision("tf32", copied)
    assert not torch.equal(copied.featurizer(x), features)


def test_penalties_stay_float32_with_bf16():
    """Fishr's penalty for given features, bit for bit."""
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


def test_bf16_without_a_featurizer_is_rejected():
    with pytest.raises(UsageError, match=r"bf16 requires a featurizer from networks\.Featurizer; OtherNetwork has"):
        set_precision("bf16", OtherNetwork())
    set_precision("tf32", OtherNetwork())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_compiled_updates_equal_eager_within_rounding(name: str, variant: str | None, precision: str, compiler: None):
    torch.manual_seed(0)
    eager = make(name, variant)
    compiled = copy.deepcopy(eager)
    for algorithm in (eager, compiled):
        set_precision(precision, algorithm)
    assert enable_compilation(featurizers_of(compiled), CPU) == ""
    for domains in batches(10):
        eager.update(domains)
        compiled.update(domains)
    tolerance = {"rtol": 1e-3, "atol": 1e-5} if precision == "tf32" else {"rtol": 0.1, "atol": 1e-2}
    for p, q in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)
    assert compiled.state_dict().keys() == eager.state_dict().keys(), "saved models are the same"


@pytest.mark.slow
def test_process_compiles_once_for_all_jobs(compiler: None):
    """The algorithms and batch sizes differ."""

    def train(name: str, size: int) -> None:
        algorithm = make(name)
        enable_compilation(featurizers_of(algorithm), CPU)
        for domains in batches(2, (size,) * 3):
            algorithm.update(domains)
        with torch.no_grad():
            algorithm.predict(torch.rand(size, 2, 8, 8))

    # With and without gradients, for batches below 16, for which PyTorch has other convolutions, and from 16.
    train("Fish", 7)
    train("ERM", 31)
    before = counters["stats"]["unique_graphs"]
    for name, size in (("Fishr", 9), ("IRM", 12), ("Fish", 5), ("DANN", 6), ("DANN", 20), ("ERM", 40)):
        train(name, size)
    assert counters["stats"]["unique_graphs"] == before


def test_failed_compilation_falls_back_to_eager(
    compiler: None, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def broken(forward):
        def run(self, x):
            raise BackendCompilerFailed(print, RuntimeError("no kernel for that"), None)

        return run

    class Double(FeaturizerBase):
        @runs_as_configured
        def forward(self, x):
            return 2 * x

    monkeypatch.setattr(torch, "compile", broken)
    double = Double()
    double.is_compiled = True
    for _ in range(2):
        assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    output = capsys.readouterr().out
    assert output.count("Double cannot be compiled; falling back to eager mode: BackendCompilerFailed") == 1
    assert "no kernel for that" in output


@pytest.mark.parametrize("is_builtin", [True, False])
@pytest.mark.parametrize(("deterministic", "steps"), [(False, 1000), (True, 1000), (False, 999)])
def test_auto_compiles_builtin_algorithms_on_a_gpu(
    is_builtin: bool, deterministic: bool, steps: int, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    monkeypatch.setattr("domainbed.engine.model.enable_compilation", lambda f, device: calls.append(device) or "")
    config = JobConfig("ColoredDigits", "ERM", (2,), steps=steps, deterministic=deterministic)
    algorithm = make("ERM") if is_builtin else OtherNetwork()
    monkeypatch.setattr(type(algorithm), "to", lambda self, device: self)
    to_device(algorithm, config, torch.device("cuda"))
    assert bool(calls) is (is_builtin and not deterministic and steps == 1000)


def test_compilation_on_a_gpu_is_not_deterministic():
    config = JobConfig("ColoredDigits", "ERM", (2,), compile="on", deterministic=True)
    with pytest.raises(UsageError, match="cannot be combined with --deterministic on a GPU"):
        to_device(make("ERM"), config, torch.device("cuda"))


@pytest.mark.parametrize(("option", "steps", "expected"), [("on", 10, True), ("off", 5001, False), ("auto", 10, False)])
def test_compile_option(option: str, steps: int, expected: bool, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr("domainbed.engine.model.enable_compilation", lambda f, device: calls.append(device) or "")
    config = JobConfig("ColoredDigits", "ERM", (2,), compile=option, steps=steps)
    to_device(make("ERM"), config, CPU)
    assert bool(calls) is expected


def test_compile_on_without_a_compiler_is_rejected(monkeypatch: pytest.MonkeyPatch):
    def no_compiler(function):
        raise RuntimeError("no working C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compute._compiler_error.cache_clear()
    algorithm = make("ERM")
    try:
        with pytest.raises(UsageError, match="does not work on this machine: RuntimeError: no working C"):
            to_device(algorithm, JobConfig("ColoredDigits", "ERM", (2,), compile="on"), CPU)
    finally:
        compute._compiler_error.cache_clear()
    assert not any(f.is_compiled for f in featurizers_of(algorithm))
    algorithm.update(batches(1)[0])


def test_all_featurizers_are_found():
    class Two(ERM):
        def __init__(self) -> None:
            super().__init__((2, 8, 8), 3, 3, default_hparams("ERM", "ColoredDigits"))
            self.other = copy.deepcopy(self.featurizer)

    assert len(featurizers_of(Two())) == 2
