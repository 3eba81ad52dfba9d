"""Realistic algorithms of users: what they keep is saved, restored, part of the model, or named in a message."""

import collections
import copy
import importlib
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.erm import ERM
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.model import load_model
from domainbed.engine.train import train
from domainbed.errors import AlgorithmError, UsageError
from domainbed.records import read_job

SHAPE = (2, 8, 8)


def job(folder: Path, **others) -> JobConfig:
    arguments = {"steps": 6, "checkpoint_freq": 2, "hparams": '{"batch_size": 4}', "save_every": 1e-9}
    return JobConfig("ColoredDigits", "Mine", (2,), output_dir=str(folder), **arguments, **others)


def run(folder: Path, algorithm: type[Algorithm]) -> list[dict]:
    """Train a job, and the same job with an interruption after each update; return the records, which are equal."""
    records = []
    with ALGORITHMS.temporarily("Mine", algorithm):
        train(job(folder / "whole"))
        for n in itertools.count(1):
            asked = itertools.count()
            try:
                train(job(folder / "stopped"), JobControl(should_stop=lambda asked=asked, n=n: next(asked) > 4 * n))
                break
            except Interrupted:
                assert n < 50
    for name in ("whole", "stopped"):
        of_job = read_job(folder / name)[0]
        records.append([{k: v for k, v in r.items() if k not in ("step_time", "mem_gb", "args")} for r in of_job])
    assert records[0] == records[1]
    return records[0]


class Prototypes(ERM):
    """Predicts with tensors that are neither buffers nor parameters."""

    def __init__(self, *args):
        super().__init__(*args)
        self.prototypes = torch.zeros(self.classifier.in_features)

    def update(self, minibatches, unlabeled=None):
        self.prototypes = self.prototypes + 1
        return super().update(minibatches)

    def predict(self, x):
        return super().predict(x) + torch.stack([self.prototypes.mean(), -self.prototypes.mean()])


class LateBuffer(ERM):
    """Registers buffers in `update`, and fills an empty one."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("shift", None)

    def update(self, minibatches, unlabeled=None):
        if self.shift is None:
            self.shift = torch.tensor([1.0, -1.0])
            self.featurizer.register_buffer("late", torch.tensor([2.0]))
        self.shift += 1
        return super().update(minibatches)

    def predict(self, x):
        return super().predict(x) + (0 if self.shift is None else self.shift * self.featurizer.late)


class Root(ERM):
    """Predicts NaN for negative pixels, which no image has, but random ones do."""

    def predict(self, x):
        return super().predict(x.sqrt())


def test_predictions_that_are_not_numbers_do_not_fail_the_check_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    run(tmp_path, Root)
    assert (tmp_path / "whole" / "done").exists()
    assert "warning" not in capsys.readouterr().out


def test_model_that_lacks_what_predict_uses_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture):
    run(tmp_path, Prototypes)
    assert (
        f"warning: {tmp_path / 'whole' / 'model.pkl'} does not predict what Prototypes predicts: models contain "
        "parameters, buffers and hyperparameters, but no other attributes; make what predict uses a buffer"
    ) in capsys.readouterr().out


def test_buffers_that_updates_register_are_part_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture):
    run(tmp_path, LateBuffer)
    assert "warning" not in capsys.readouterr().out
    with ALGORITHMS.temporarily("Mine", LateBuffer):
        model = load_model(tmp_path / "whole" / "model.pkl").algorithm
    assert model.shift.tolist() == [7.0, 5.0]
    assert model.featurizer.late.tolist() == [2.0]


class LazyNorm(ERM):
    def __init__(self, *args):
        super().__init__(*args)
        self.network = nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(), nn.LazyLinear(2))
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1)


class Snapshots(ERM):
    """Copies its network in `update`, and counts in nested containers."""

    def __init__(self, *args):
        super().__init__(*args)
        self.snapshots = []
        self.stats = collections.defaultdict(lambda: collections.defaultdict(list))

    def update(self, minibatches, unlabeled=None):
        metrics = super().update(minibatches)
        self.snapshots = [*self.snapshots[-1:], copy.deepcopy(self.network)]
        self.stats["updates"]["loss"].append(float(metrics["loss"]))
        difference = (
            sum((a - b).norm() for a, b in zip(*(s.parameters() for s in self.snapshots[-2:]), strict=True))
            if (len(self.snapshots) > 1)
            else torch.zeros(())
        )
        return {**metrics, "moved": difference.detach(), "n": len(self.stats["updates"]["loss"])}


class Lookahead(torch.optim.Optimizer):
    """A wrapper whose state_dict has other keys than torch's."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.n = base, 0
        self.slow = [p.detach().clone() for group in base.param_groups for p in group["params"]]
        self.param_groups, self.defaults, self.state = base.param_groups, base.defaults, collections.defaultdict(dict)

    def step(self, closure=None):
        self.base.step()
        self.n += 1
        if self.n % 2 == 0:
            parameters = [p for group in self.param_groups for p in group["params"]]
            for slow, p in zip(self.slow, parameters, strict=True):
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)

    def zero_grad(self, set_to_none=True):
        self.base.zero_grad(set_to_none)

    def state_dict(self):
        return {"lookahead_state": {"n": self.n, "slow": self.slow}, "base_optimizer": self.base.state_dict()}

    def load_state_dict(self, state):
        self.n = state["lookahead_state"]["n"]
        for slow, saved in zip(self.slow, state["lookahead_state"]["slow"], strict=True):
            slow.copy_(saved)
        self.base.load_state_dict(state["base_optimizer"])


class Wrapped(ERM):
    def __init__(self, *args):
        super().__init__(*args)
        self.optimizer = Lookahead(torch.optim.Adam(self.network.parameters(), 0.01))


@dataclass(frozen=True, slots=True)
class Settings:
    scale: float = 2.0


class Configured(ERM):
    def __init__(self, *args):
        super().__init__(*args)
        self.settings = Settings()

    def predict(self, x):
        return super().predict(x) * self.settings.scale


class Streams(ERM):
    """Keeps an iterator, which no checkpoint can contain, and saves its position instead."""

    UNSAVED = ("numbers", "position")

    def __init__(self, *args):
        super().__init__(*args)
        self.numbers, self.position = iter(range(100)), 0

    def update(self, minibatches, unlabeled=None):
        self.position += 1
        return {**super().update(minibatches), "number": float(next(self.numbers))}

    def training_state(self):
        return {**super().training_state(), "position": self.position}

    def load_training_state(self, saved):
        super().load_training_state(saved)
        self.position = saved["position"]
        self.numbers = itertools.islice(range(100), self.position, None)


@pytest.mark.parametrize("algorithm", [LazyNorm, Snapshots, Wrapped, Configured, Streams, LateBuffer, Prototypes])
def test_interrupted_jobs_equal_uninterrupted_ones(tmp_path: Path, algorithm: type[Algorithm]):
    records = run(tmp_path, algorithm)
    assert len(records) == 4
    with ALGORITHMS.temporarily("Mine", algorithm):
        assert load_model(tmp_path / "whole" / "model.pkl").predict(torch.rand(3, *SHAPE)).shape == (3, 2)
    if algorithm is Streams:
        assert [record["number"] for record in records] == [0.0, 1.5, 3.5, 5.0]


def test_modules_of_other_files_of_the_user_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_networks.py").write_text(
        "import collections\nfrom torch import nn\n\n\n"
        "class MemoryBank(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.queue = collections.deque(maxlen=3)\n\n"
        "    def forward(self, x):\n        self.queue.append(float(x))\n        return sum(self.queue)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    bank_class = importlib.import_module("my_networks").MemoryBank

    class Remembers(ERM):
        def __init__(self, *args):
            super().__init__(*args)
            self.bank = bank_class()

        def update(self, minibatches, unlabeled=None):
            metrics = super().update(minibatches)
            return {**metrics, "remembered": self.bank(metrics["loss"])}

    try:
        assert "remembered" in run(tmp_path, Remembers)[-1]
    finally:
        del sys.modules["my_networks"]


class ForgottenProperty(ERM):
    def phase(self):
        return "warm-up"


class ConfigObject(ERM):
    def __init__(self, *args):
        super().__init__(*args)
        self.hparams = Settings()


class TensorHparam(ERM):
    def update(self, minibatches, unlabeled=None):
        self.hparams["scale"] = torch.tensor(2.0)
        return super().update(minibatches)


class VectorMetric(ERM):
    def update(self, minibatches, unlabeled=None):
        return {**super().update(minibatches), "by_domain": np.zeros(3)}


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (ForgottenProperty, r"ForgottenProperty\.phase must be a string, not a method; is @property missing\?"),
        (ConfigObject, r"ConfigObject\.hparams must be the dict of hyperparameters, not a Settings"),
        (TensorHparam, r"TensorHparam\.hparams\['scale'\] is tensor\(2\.\), which records cannot contain"),
        (VectorMetric, r"metric 'by_domain' returned by update must be a single number, not array"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_mistakes_are_named(tmp_path: Path, algorithm: type[Algorithm], message: str):
    with ALGORITHMS.temporarily("Mine", algorithm), pytest.raises((UsageError, AlgorithmError), match=message):
        train(job(tmp_path / "job"))


class NumpyHparam(ERM):
    def update(self, minibatches, unlabeled=None):
        self.hparams["scale"] = np.float64(2.0)
        return super().update(minibatches)


def test_numpy_scalars_among_hyperparameters_become_python_numbers(tmp_path: Path):
    records = run(tmp_path, NumpyHparam)
    assert records[-1]["hparams"]["scale"] == 2.0
    with ALGORITHMS.temporarily("Mine", NumpyHparam):
        assert load_model(tmp_path / "whole" / "model.pkl").algorithm.hparams["scale"] == 2.0
