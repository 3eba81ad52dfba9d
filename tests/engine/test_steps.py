"""Captured updates equal eager ones: on a CPU with a stand-in for CUDA graphs, on a GPU with CUDA graphs."""

import copy
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.dann import DANN
from domainbed.algorithms.erm import ERM
from domainbed.engine import steps as engine_steps
from domainbed.engine import train as engine_train
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.graphs import CudaGraphs
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.steps import CapturedSteps, EagerSteps, make_steps, should_capture
from domainbed.errors import UsageError
from domainbed.hparams_registry import default_hparams
from domainbed.records import read_job
from tests.algorithms.test_all import CASES, PHASES, leaves, make
from tests.engine.tape import Tape

UPDATES = 50


def batches(n: int, size: int = 6) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [(torch.rand(size, 2, 8, 8, generator=generator), torch.randint(3, (size,), generator=generator))
         for _ in range(3)]
        for _ in range(n)
    ]  # fmt: skip


def with_fused_adam(algorithm: Algorithm) -> Algorithm:
    """Use the same Adam implementation as the stand-in, so that only the capture can make a difference."""
    for value in vars(algorithm).values():
        if isinstance(value, torch.optim.Adam):
            for group in value.param_groups:
                group["fused"] = True
    return algorithm


def record_phases(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each call of `update` appends its phase."""
    phases: list[str] = []
    update = type(algorithm).update

    def recording(self, *args):
        phases.append(self.phase)
        return update(self, *args)

    monkeypatch.setattr(type(algorithm), "update", recording)
    return phases


def assert_same(captured: Algorithm, eager: Algorithm, **tolerance: float) -> None:
    actual, expected = (
        {path: torch.as_tensor(leaf).cpu() for path, leaf in leaves(algorithm.training_state())
         if "param_groups" not in path}
        for algorithm in (captured, eager)
    )  # fmt: skip
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        torch.testing.assert_close(actual[path], value, **tolerance)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_captured_updates_equal_eager_updates(name: str, variant: str | None, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit, across penalty annealing and DANN's phases, with dropout."""
    torch.manual_seed(0)
    changes = {"mlp_dropout": 0.5} if name == "DANN" else {}
    eager = with_fused_adam(make(name, variant, **changes))
    captured = copy.deepcopy(eager)
    torch.manual_seed(5)
    expected = [{k: v.item() for k, v in eager.update(batch).items()} for batch in batches(UPDATES)]
    calls = record_phases(captured, monkeypatch)
    tape = Tape()
    steps = CapturedSteps(captured, tape)
    torch.manual_seed(5)
    metrics = [{k: float(v) for k, v in steps.update(batch).items()} for batch in batches(UPDATES)]
    assert steps.reason == ""
    phases = PHASES.get(name, {"update"})
    if variant == "all_layers":  # torch may choose a different memory format in each call
        assert_same(captured, eager, rtol=1e-4, atol=1e-6)
    else:
        assert metrics == expected
        assert_same(captured, eager, rtol=0, atol=0)
    assert sorted(calls) == sorted(3 * list(phases))
    assert tape.captured == len(phases)
    assert tape.replayed == UPDATES - 2 * len(phases)


def test_captured_updates_equal_those_of_the_default_adam_within_rounding():
    """In float64: Adam amplifies the rounding of small gradients, by how much depends on the processor."""
    torch.manual_seed(0)
    eager = make("Fishr").double()
    captured = copy.deepcopy(eager)
    steps = CapturedSteps(captured, Tape())
    for batch in batches(UPDATES):
        exact = [(x.double(), y) for x, y in batch]
        eager.update(exact)
        steps.update(exact)
    assert not steps.reason
    assert_same(captured, eager, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("stop", [1, 2, 3, 6, 7, 8, 20])
@pytest.mark.parametrize("name", ["IRM", "DANN"])
def test_resumed_captured_updates_equal_undisturbed(name: str, stop: int):
    """Also from a checkpoint between the captures of two phases, and if resumed eagerly."""
    torch.manual_seed(0)
    undisturbed = with_fused_adam(make(name))
    first = copy.deepcopy(undisturbed)
    for batch in batches(30):
        undisturbed.update(batch)
    steps = CapturedSteps(first, Tape())
    for batch in batches(30)[:stop]:
        steps.update(batch)
    for engine in (lambda algorithm: CapturedSteps(algorithm, Tape()), EagerSteps):
        second = make(name)
        second.load_training_state(copy.deepcopy(first.training_state()))
        steps = engine(second)
        for batch in batches(30)[stop:]:
            steps.update(batch)
        assert_same(second, undisturbed, rtol=0, atol=0)


def test_captured_updates_receive_unlabeled_images():
    class Adapting(ERM):
        def update(self, minibatches, unlabeled=None):
            loss = self.predict(unlabeled[0]).square().mean() + F.cross_entropy(self.predict(minibatches[0][0]),
                                                                                minibatches[0][1])  # fmt: skip
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return {"loss": loss.detach(), "constant": 3.0}

    torch.manual_seed(0)
    eager = with_fused_adam(Adapting((2, 8, 8), 3, 3, default_hparams("ERM", "ColoredDigits")))
    captured = copy.deepcopy(eager)
    steps = CapturedSteps(captured, Tape())
    for batch, other in zip(batches(10), batches(20)[10:], strict=True):
        unlabeled = [x for x, _ in other]
        expected = eager.update(batch, unlabeled)
        assert {k: float(v) for k, v in steps.update(batch, unlabeled).items()} == {
            k: float(v) for k, v in expected.items()
        }
    assert not steps.reason
    assert_same(captured, eager, rtol=0, atol=0)


class UserAlgorithm(ERM):
    """A user's algorithm. Subclasses do something that a replay would not repeat."""

    def __init__(self) -> None:
        super().__init__((2, 8, 8), 3, 3, default_hparams("ERM", "ColoredDigits"))
        self.register_buffer("mean", torch.zeros(()))
        self.count = 0
        self.rate = 1.0
        self.seen: list[float] = []
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3)

    def weight(self, loss: torch.Tensor) -> torch.Tensor | float:
        """Return the weight of the loss."""
        return 1.0

    def update(self, minibatches, unlabeled=None):
        loss = F.cross_entropy(self.predict(minibatches[0][0]), minibatches[0][1])
        loss = loss * self.weight(loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


class ReadsTheLoss(UserAlgorithm):
    def weight(self, loss):
        return 0.5 if loss.item() > 1 else 1.0


class Counts(UserAlgorithm):
    def weight(self, loss):
        self.count += 1
        return 1 / self.count


class Decays(UserAlgorithm):
    def weight(self, loss):
        self.rate *= 0.9
        return self.rate


class Appends(UserAlgorithm):
    def weight(self, loss):
        self.seen.append(1.0)
        return 1 / len(self.seen)


class Replaces(UserAlgorithm):
    def weight(self, loss):
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return self.mean


class DrawsWithNumpy(UserAlgorithm):
    def weight(self, loss):
        return float(np.random.beta(1, 1))


class DrawsWithPython(UserAlgorithm):
    def weight(self, loss):
        return random.random()


class Schedules(UserAlgorithm):
    def update(self, minibatches, unlabeled=None):
        metrics = super().update(minibatches)
        self.scheduler.step()
        return metrics


class HasUnsavableAttribute(UserAlgorithm):
    def weight(self, loss):
        self.odd = iter([1, 2])
        return 1.0


class ChangesHparams(UserAlgorithm):
    def weight(self, loss):
        self.hparams["lr"] *= 0.5
        return self.hparams["lr"]


class ChangesModuleAttribute(UserAlgorithm):
    def weight(self, loss):
        self.featurizer.temperature = getattr(self.featurizer, "temperature", 1.0) / 2
        return self.featurizer.temperature


class ReusesMemory(UserAlgorithm):
    """Replaces a tensor by one that may be allocated at the same address."""

    def weight(self, loss):
        old = self.mean.clone()
        self.mean = None
        self.mean = 0.9 * old + 0.1 * loss.detach()
        return self.mean


class ChangesObject(UserAlgorithm):
    """Defines a training state that contains a mutable object, and changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = deque([1.0], maxlen=5)

    def training_state(self):
        return [self.network.state_dict(), self.queue, np.ones(3)]

    def weight(self, loss):
        self.queue.append(len(self.queue) + 1.0)
        return self.queue[-1]


class CounterWrapsAround(UserAlgorithm):
    """Resets its counter, but not in the update that is checked."""

    @property
    def phase(self) -> str:
        return "mine"

    def weight(self, loss):
        self.count = (self.count + 1) % 3
        return 1.0 + self.count


class SynchronizesLater(UserAlgorithm):
    """Synchronizes with the device, but not in the update that is checked: only capturing it fails."""

    phase = "mine"

    def weight(self, loss):
        self.count += 1
        return 0.5 if self.count > 2 and loss.item() > 1 else 1.0


class Accumulates(UserAlgorithm):
    """Adds up the gradients of several updates, and takes a step in the last of them."""

    updates = 4

    @property
    def phase(self) -> str:
        return "step" if self.count % self.updates == self.updates - 1 else "accumulate"

    def update(self, minibatches, unlabeled=None):
        takes_step = self.phase == "step"
        self.count += 1
        loss = F.cross_entropy(self.predict(minibatches[0][0]), minibatches[0][1])
        loss.backward()
        if takes_step:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return {"loss": loss.detach()}


class AccumulatesTwo(Accumulates):
    updates = 2

    @property
    def phase(self) -> str:
        return super().phase


class FadesIn(DANN):
    """Depends on the update count in a way that the inherited `phase` does not reflect."""

    def __init__(self) -> None:
        super().__init__((2, 8, 8), 3, 3, default_hparams("DANN", "ColoredDigits"))

    def discriminator_loss(self, z, y, domains):
        return super().discriminator_loss(z, y, domains) * min(1, self.update_count / 10)


@pytest.mark.parametrize(
    ("algorithm_class", "reason"),
    [
        (ReadsTheLoss, "synchronizes with the device"),
        (Counts, "counts on the host (count), but Counts does not define a `phase` of its own"),
        (FadesIn, "counts on the host (update_count), but FadesIn does not define a `phase` of its own"),
        (Decays, "changes rate on the host"),
        (Appends, "changes seen"),
        (Replaces, "replaces the tensor mean"),
        (DrawsWithNumpy, "numpy's random generator"),
        (DrawsWithPython, "python's random generator"),
        (Schedules, "on the host"),
        (HasUnsavableAttribute, "self.odd (of type list_iterator) cannot be saved"),
        (ChangesHparams, "changes hparams.lr on the host"),
        (ChangesModuleAttribute, "changes featurizer.temperature on the host"),
        (ReusesMemory, "replaces the tensor mean"),
        (ChangesObject, "changes 1 on the host"),
        (CounterWrapsAround, "count does not increase by 1 in every update"),
        (SynchronizesLater, "not permitted when stream is capturing"),
        (Accumulates, "accumulates into the gradients of a previous update"),
        (AccumulatesTwo, "accumulates into the gradients of a previous update"),
    ],
)
def test_update_that_cannot_be_captured_runs_eagerly(
    algorithm_class: type[Algorithm], reason: str, capsys: pytest.CaptureFixture
):
    torch.manual_seed(0)
    eager = with_fused_adam(algorithm_class())
    captured = copy.deepcopy(eager)
    metrics = []
    for update in (eager.update, (steps := CapturedSteps(captured, Tape())).update):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        metrics.append([[value.item() for value in update(batch).values()] for batch in batches(12)])
    assert metrics[0] == metrics[1]
    for p, q in zip(eager.parameters(), captured.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [value for value in vars(captured).values() if isinstance(value, int)] == [
        value for value in vars(eager).values() if isinstance(value, int)
    ]
    assert reason in steps.reason
    assert capsys.readouterr().out.count("falling back to eager updates") == 1


def test_job_fails_if_the_device_is_unusable_after_a_failed_capture():
    steps = CapturedSteps(SynchronizesLater(), Tape(survives_failure=False))
    for batch in batches(2):
        steps.update(batch)
    with pytest.raises(UsageError, match=r"cannot capture the updates of SynchronizesLater \(.*; pass --engine eager"):
        steps.update(batches(1)[0])


def test_batch_of_another_shape_runs_eagerly():
    torch.manual_seed(0)
    eager = with_fused_adam(make("ERM"))
    captured = copy.deepcopy(eager)
    tape = Tape()
    steps = CapturedSteps(captured, tape)
    for size in (6, 6, 6, 6, 1, 6, 9):
        (batch,) = batches(1, size)
        assert float(steps.update(batch)["loss"]) == float(eager.update(batch)["loss"])
    assert tape.replayed == 3
    assert_same(captured, eager, rtol=0, atol=0)


def test_usage_error_of_the_update_itself_is_raised():
    class Fails(UserAlgorithm):
        def weight(self, loss):
            self.seen.append(1.0)
            if len(self.seen) == 2:
                raise UsageError("from the update")
            return 1.0

    steps = CapturedSteps(Fails(), Tape())
    steps.update(batches(1)[0])
    with pytest.raises(UsageError, match="from the update"):
        steps.update(batches(1)[0])
    assert steps.reason == ""


@pytest.mark.parametrize(("engine", "on_cpu", "on_gpu"), [("auto", False, True), ("eager", False, False)])
def test_auto_captures_on_a_gpu_only(engine: str, on_cpu: bool, on_gpu: bool):
    assert should_capture(engine, torch.device("cpu")) is on_cpu
    assert should_capture(engine, torch.device("cuda")) is on_gpu


def test_engine_captured_requires_a_gpu():
    with pytest.raises(UsageError, match="requires a GPU"):
        should_capture("captured", torch.device("cpu"))


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (False, "cpu")])
def test_step_counters_are_where_the_implementation_of_adam_requires_them(fused: bool, device: str):
    """The device is a stand-in: fused kernels on a GPU read counters there."""
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(2, device="meta"))])
    (group,) = adam.param_groups
    adam.state[group["params"][0]]["step"] = torch.zeros(())
    group["fused"] = fused
    engine_steps._set_flags(adam, {"capturable": False})
    assert adam.state[group["params"][0]]["step"].device.type == device


def test_eager_steps_reset_a_captured_optimizer():
    """As when a job started on a GPU is resumed without one."""
    torch.manual_seed(0)
    plain = make("ERM")
    for batch in batches(4):
        plain.update(batch)
    other = copy.deepcopy(plain)
    for group in other.optimizer.param_groups:
        group.update(capturable=True)
    steps = make_steps(other, torch.device("cpu"), is_captured=False)
    for batch in batches(8)[4:]:
        plain.update(batch)
        steps.update(batch)
    assert_same(other, plain, rtol=0, atol=0)
    assert not any(group["capturable"] for group in other.optimizer.param_groups)


@pytest.mark.parametrize(
    "stop_at", [None, 5, 12, 21], ids=["undisturbed", "stopped early", "stopped at captures", "stopped late"]
)
def test_records_of_a_captured_job_equal_those_of_an_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None
):
    """Metrics are means over updates, so no update is counted twice or lost, also if the job is stopped and resumed."""
    hparams = '{"irm_penalty_anneal_iters": 8, "batch_size": 8, "irm_lambda": 10}'

    def config(folder: str) -> JobConfig:
        return JobConfig(
            "ColoredDigits",
            "IRM",
            (2,),
            hparams=hparams,
            steps=25,
            checkpoint_freq=10,
            output_dir=str(tmp_path / folder),
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # tapes are graphs of the host
    engine_train.train(config("eager"))
    tapes: list[Tape] = []
    monkeypatch.setattr("domainbed.engine.setup.should_capture", lambda engine, device: True)
    monkeypatch.setattr(engine_steps, "CudaGraphs", lambda device: tapes.append(Tape()) or tapes[-1])
    if stop_at is not None:
        calls = iter(range(1000))
        with pytest.raises(Interrupted):
            engine_train.train(config("captured"), JobControl(should_stop=lambda: next(calls) >= stop_at))
    engine_train.train(config("captured"))
    eager, captured = (read_job(tmp_path / folder)[0] for folder in ("eager", "captured"))
    assert [r["step"] for r in captured] == [r["step"] for r in eager] == [0, 10, 20, 24]
    for actual, expected in zip(captured, eager, strict=True):
        for name in ("loss", "nll", "penalty"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5)
        for name in ("env0_in_acc", "env1_in_acc", "env2_in_acc"):
            assert actual[name] == pytest.approx(expected[name], abs=0.01)
    assert tapes[-1].captured == 2 or stop_at in (12, 21)
    assert sum(tape.replayed for tape in tapes) > 10


@pytest.fixture
def gpu_without_tf32() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("requires a GPU")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_captured_updates_equal_eager_updates_on_a_gpu(name: str, variant: str | None, gpu_without_tf32: torch.device):
    torch.manual_seed(0)
    eager = make(name, variant).to(gpu_without_tf32)
    captured = copy.deepcopy(eager)
    steps = make_steps(captured, gpu_without_tf32, is_captured=True)
    assert isinstance(steps, CapturedSteps)
    assert isinstance(steps._graphs, CudaGraphs)
    for batch in batches(UPDATES):
        on_gpu = [(x.cuda(), y.cuda()) for x, y in batch]
        expected = {k: v.item() for k, v in eager.update(on_gpu).items()}
        metrics = {k: float(v) for k, v in steps.update(on_gpu).items()}
        assert metrics == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert steps.reason == ""
    assert len(steps._captured) == len(PHASES.get(name, {"update"}))
    assert_same(captured, eager, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("algorithm_class", [ReadsTheLoss, Counts, Replaces, Schedules, SynchronizesLater])
def test_update_that_cannot_be_captured_runs_eagerly_on_a_gpu(algorithm_class, gpu_without_tf32: torch.device):
    torch.manual_seed(0)
    eager = algorithm_class().to(gpu_without_tf32)
    captured = copy.deepcopy(eager)
    steps = make_steps(captured, gpu_without_tf32, is_captured=True)
    if algorithm_class is SynchronizesLater and not CudaGraphs.survives_failure:
        pytest.skip("a failed capture leaves the GPU unusable in this version of torch")
    for batch in batches(12):
        on_gpu = [(x.cuda(), y.cuda()) for x, y in batch]
        eager.update(on_gpu), steps.update(on_gpu)
    assert steps.reason
    for p, q in zip(eager.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-4)
