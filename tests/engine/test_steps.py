"""Captured updates against those as they are written: on a CPU by a stand-in for CUDA graphs, on a GPU by these."""

import copy
import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.dann import DANN
from domainbed.algorithms.erm import ERM
from domainbed.engine import steps as engine_steps
from domainbed.engine import train as engine_train
from domainbed.engine.config import JobConfig
from domainbed.engine.graphs import CudaGraphs
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.steps import CapturedSteps, EagerSteps, are_captured, make_steps
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
    """So that all that is left to differ is the capture."""
    for value in vars(algorithm).values():
        if isinstance(value, torch.optim.Adam):
            for group in value.param_groups:
                group["fused"] = True
    return algorithm


def counted(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The phases in which its `update` runs."""
    phases: list[str] = []
    update = type(algorithm).update

    def counting(self, *args):
        phases.append(self.phase)
        return update(self, *args)

    monkeypatch.setattr(type(algorithm), "update", counting)
    return phases


def assert_same(captured: Algorithm, eager: Algorithm, **tolerance: float) -> None:
    ours, theirs = (
        {path: torch.as_tensor(leaf).cpu() for path, leaf in leaves(algorithm.training_state())
         if "param_groups" not in path}
        for algorithm in (captured, eager)
    )  # fmt: skip
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        torch.testing.assert_close(ours[path], value, **tolerance)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_captured_updates_give_the_same_bits(name: str, variant: str | None, monkeypatch: pytest.MonkeyPatch):
    """Over the anneal and all of DANN's turns, dropout included."""
    torch.manual_seed(0)
    changes = {"mlp_dropout": 0.5} if name == "DANN" else {}
    eager = with_fused_adam(make(name, variant, **changes))
    captured = copy.deepcopy(eager)
    torch.manual_seed(5)
    expected = [{k: v.item() for k, v in eager.update(batch).items()} for batch in batches(UPDATES)]
    calls = counted(captured, monkeypatch)
    tape = Tape()
    steps = CapturedSteps(captured, tape)
    torch.manual_seed(5)
    told = [{k: float(v) for k, v in steps.update(batch).items()} for batch in batches(UPDATES)]
    assert steps.reason == ""
    phases = PHASES.get(name, {"update"})
    if variant == "all_layers":  # whose memory format torch chooses anew at every call
        assert_same(captured, eager, rtol=1e-4, atol=1e-6)
    else:
        assert told == expected
        assert_same(captured, eager, rtol=0, atol=0)
    assert sorted(calls) == sorted(3 * list(phases))
    assert tape.captured == len(phases)
    assert tape.replayed == UPDATES - 2 * len(phases)


def test_the_plain_adam_is_the_same_within_rounding():
    torch.manual_seed(0)
    eager = make("Fishr")
    captured = copy.deepcopy(eager)
    steps = CapturedSteps(captured, Tape())
    for batch in batches(UPDATES):
        eager.update(batch)
        steps.update(batch)
    assert not steps.reason
    assert_same(captured, eager, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3, 6, 7, 8, 20])
@pytest.mark.parametrize("name", ["IRM", "DANN"])
def test_gone_on_with_it_gives_the_same_bits(name: str, stop: int):
    """Also from a checkpoint between the recording of two phases, and by the other engine."""
    torch.manual_seed(0)
    whole = with_fused_adam(make(name))
    first = copy.deepcopy(whole)
    for batch in batches(30):
        whole.update(batch)
    steps = CapturedSteps(first, Tape())
    for batch in batches(30)[:stop]:
        steps.update(batch)
    for engine in (lambda algorithm: CapturedSteps(algorithm, Tape()), EagerSteps):
        second = make(name)
        second.load_training_state(copy.deepcopy(first.training_state()))
        steps = engine(second)
        for batch in batches(30)[stop:]:
            steps.update(batch)
        assert_same(second, whole, rtol=0, atol=0)


def test_unlabeled_images_are_seen_too():
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


class Written(ERM):
    """A user's own algorithm, with something that the device alone would not do."""

    def __init__(self) -> None:
        super().__init__((2, 8, 8), 3, 3, default_hparams("ERM", "ColoredDigits"))
        self.register_buffer("mean", torch.zeros(()))
        self.count = 0
        self.rate = 1.0
        self.seen: list[float] = []
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3)

    def weight(self, loss: torch.Tensor) -> torch.Tensor | float:
        """Of the loss."""
        return 1.0

    def update(self, minibatches, unlabeled=None):
        loss = F.cross_entropy(self.predict(minibatches[0][0]), minibatches[0][1])
        loss = loss * self.weight(loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


class ReadsTheLoss(Written):
    def weight(self, loss):
        return 0.5 if loss.item() > 1 else 1.0


class Counts(Written):
    def weight(self, loss):
        self.count += 1
        return 1 / self.count


class Decays(Written):
    def weight(self, loss):
        self.rate *= 0.9
        return self.rate


class Appends(Written):
    def weight(self, loss):
        self.seen.append(1.0)
        return 1 / len(self.seen)


class Replaces(Written):
    def weight(self, loss):
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return self.mean


class DrawsWithNumpy(Written):
    def weight(self, loss):
        return float(np.random.beta(1, 1))


class DrawsWithPython(Written):
    def weight(self, loss):
        return random.random()


class Schedules(Written):
    def update(self, minibatches, unlabeled=None):
        figures = super().update(minibatches)
        self.scheduler.step()
        return figures


class HasAnOddAttribute(Written):
    def weight(self, loss):
        self.odd = {1, 2}
        return 1.0


class ChangesItsHparams(Written):
    def weight(self, loss):
        self.hparams["lr"] *= 0.5
        return self.hparams["lr"]


class ChangesAModulesAttribute(Written):
    def weight(self, loss):
        self.featurizer.temperature = getattr(self.featurizer, "temperature", 1.0) / 2
        return self.featurizer.temperature


class HandsItsPlaceBack(Written):
    """The new tensor may come to lie where the old one lay."""

    def weight(self, loss):
        old = self.mean.clone()
        self.mean = None
        self.mean = 0.9 * old + 0.1 * loss.detach()
        return self.mean


class ChangesAnObject(Written):
    """With a state of its own that holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = deque([1.0], maxlen=5)

    def training_state(self):
        return [self.network.state_dict(), self.queue, np.ones(3)]

    def weight(self, loss):
        self.queue.append(len(self.queue) + 1.0)
        return self.queue[-1]


class Wraps(Written):
    """Its counter begins anew, which the watched update does not show."""

    @property
    def phase(self) -> str:
        return "mine"

    def weight(self, loss):
        self.count = (self.count + 1) % 3
        return 1.0 + self.count


class WaitsLater(Written):
    """Not yet when it is watched: only the recording finds it."""

    phase = "mine"

    def weight(self, loss):
        self.count += 1
        return 0.5 if self.count > 2 and loss.item() > 1 else 1.0


class FadesIn(DANN):
    """A subclass of one that has phases, of which what it adds is no part."""

    def __init__(self) -> None:
        super().__init__((2, 8, 8), 3, 3, default_hparams("DANN", "ColoredDigits"))

    def discriminator_loss(self, z, domains):
        return super().discriminator_loss(z, domains) * min(1, self.update_count / 10)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (ReadsTheLoss, "waits for the device"),
        (Counts, "counts on the host (count), and Counts has no `phase` of its own"),
        (FadesIn, "counts on the host (update_count), and FadesIn has no `phase` of its own"),
        (Decays, "changes rate on the host"),
        (Appends, "changes seen"),
        (Replaces, "keeps mean in a new place"),
        (DrawsWithNumpy, "numpy's random generator"),
        (DrawsWithPython, "python's random generator"),
        (Schedules, "on the host"),
        (HasAnOddAttribute, "attribute 'odd', a set"),
        (ChangesItsHparams, "changes hparams.lr on the host"),
        (ChangesAModulesAttribute, "changes featurizer.temperature on the host"),
        (HandsItsPlaceBack, "keeps mean in a new place"),
        (ChangesAnObject, "changes 1 on the host"),
        (Wraps, "its count does not rise by 1 each time"),
        (WaitsLater, "not permitted when stream is capturing"),
    ],
)
def test_what_cannot_be_captured_runs_as_it_is_written(
    written: type[Algorithm], reason: str, capsys: pytest.CaptureFixture
):
    torch.manual_seed(0)
    eager = with_fused_adam(written())
    captured = copy.deepcopy(eager)
    told = []
    for update in (eager.update, (steps := CapturedSteps(captured, Tape())).update):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        told.append([[figure.item() for figure in update(batch).values()] for batch in batches(12)])
    assert told[0] == told[1]
    for p, q in zip(eager.parameters(), captured.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [value for value in vars(captured).values() if isinstance(value, int)] == [
        value for value in vars(eager).values() if isinstance(value, int)
    ]
    assert reason in steps.reason
    assert capsys.readouterr().out.count("run as they are written") == 1


def test_where_a_failed_recording_leaves_disorder_the_job_ends_with_advice():
    steps = CapturedSteps(WaitsLater(), Tape(survives=False))
    for batch in batches(2):
        steps.update(batch)
    with pytest.raises(UsageError, match=r"WaitsLater's updates can't be captured \(.*; with --engine eager they run"):
        steps.update(batches(1)[0])


def test_batches_of_another_shape_are_not_replayed():
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


def test_an_updates_own_mistake_is_not_taken_for_a_reason():
    class Mistaken(Written):
        def weight(self, loss):
            self.seen.append(1.0)
            if len(self.seen) == 2:
                raise UsageError("mine")
            return 1.0

    steps = CapturedSteps(Mistaken(), Tape())
    steps.update(batches(1)[0])
    with pytest.raises(UsageError, match="mine"):
        steps.update(batches(1)[0])
    assert steps.reason == ""


@pytest.mark.parametrize(("engine", "on_cpu", "on_gpu"), [("auto", False, True), ("eager", False, False)])
def test_auto_captures_where_there_is_a_gpu(engine: str, on_cpu: bool, on_gpu: bool):
    assert are_captured(engine, torch.device("cpu")) is on_cpu
    assert are_captured(engine, torch.device("cuda")) is on_gpu


def test_without_a_gpu_nothing_is_captured():
    with pytest.raises(UsageError, match="needs a GPU"):
        are_captured("captured", torch.device("cpu"))


def test_a_captured_runs_optimizer_is_a_plain_one_again():
    """As where a job that began on a GPU goes on without."""
    torch.manual_seed(0)
    plain = make("ERM")
    for batch in batches(4):
        plain.update(batch)
    other = copy.deepcopy(plain)
    for group in other.optimizer.param_groups:
        group.update(capturable=True)
    steps = make_steps(other, torch.device("cpu"), captured=False)
    for batch in batches(8)[4:]:
        plain.update(batch)
        steps.update(batch)
    assert_same(other, plain, rtol=0, atol=0)
    assert not any(group["capturable"] for group in other.optimizer.param_groups)


@pytest.mark.parametrize("stop_at", [None, 5, 12, 21], ids=["whole", "stopped early", "as graphs begin", "late"])
def test_a_captured_job_writes_the_records_of_an_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None
):
    """Its figures are means over updates, so that none was told twice or lost; also if it was stopped and went on."""
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

    engine_train.train(config("eager"))
    tapes: list[Tape] = []
    monkeypatch.setattr(engine_train, "are_captured", lambda engine, device: True)
    monkeypatch.setattr(engine_steps, "CudaGraphs", lambda device: tapes.append(Tape()) or tapes[-1])
    if stop_at is not None:
        asked = iter(range(1000))
        with pytest.raises(Interrupted):
            engine_train.train(config("captured"), should_stop=lambda: next(asked) >= stop_at)
    engine_train.train(config("captured"))
    eager, captured = (read_job(tmp_path / folder)[0] for folder in ("eager", "captured"))
    assert [r["step"] for r in captured] == [r["step"] for r in eager] == [0, 10, 20, 24]
    for ours, theirs in zip(captured, eager, strict=True):
        for name in ("loss", "nll", "penalty"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)
        assert [ours[f"env{i}_in_acc"] for i in range(3)] == pytest.approx(
            [theirs[f"env{i}_in_acc"] for i in range(3)], abs=0.01
        )
    assert tapes[-1].captured == 2 or stop_at in (12, 21)
    assert sum(tape.replayed for tape in tapes) > 10


@pytest.fixture
def gpu_without_rounding() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_on_a_gpu_captured_updates_are_the_same_within_rounding(
    name: str, variant: str | None, gpu_without_rounding: torch.device
):
    torch.manual_seed(0)
    eager = make(name, variant).to(gpu_without_rounding)
    captured = copy.deepcopy(eager)
    steps = make_steps(captured, gpu_without_rounding, captured=True)
    assert isinstance(steps, CapturedSteps)
    assert isinstance(steps._graphs, CudaGraphs)
    for batch in batches(UPDATES):
        on_gpu = [(x.cuda(), y.cuda()) for x, y in batch]
        expected = {k: v.item() for k, v in eager.update(on_gpu).items()}
        told = {k: float(v) for k, v in steps.update(on_gpu).items()}
        assert told == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert steps.reason == ""
    assert len(steps._recorded) == len(PHASES.get(name, {"update"}))
    assert_same(captured, eager, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("written", [ReadsTheLoss, Counts, Replaces, Schedules, WaitsLater])
def test_on_a_gpu_what_cannot_be_captured_runs_as_it_is_written(written, gpu_without_rounding: torch.device):
    torch.manual_seed(0)
    eager = written().to(gpu_without_rounding)
    captured = copy.deepcopy(eager)
    steps = make_steps(captured, gpu_without_rounding, captured=True)
    if written is WaitsLater and not CudaGraphs.survives:
        pytest.skip("a recording that fails ends the job on this torch")
    for batch in batches(12):
        on_gpu = [(x.cuda(), y.cuda()) for x, y in batch]
        eager.update(on_gpu), steps.update(on_gpu)
    assert steps.reason
    for p, q in zip(eager.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-4)
