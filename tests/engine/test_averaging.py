"""Averages of the weights along training (`--averaging`), against implementations that keep every step's weights."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from domainbed import networks
from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.averaging import floating_tensors
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.erm import ERM
from domainbed.engine.averaging import base, sma, swad
from domainbed.engine.averaging.base import Averaging, make_averaging
from domainbed.engine.averaging.swad import SWAD, LossValley
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.model import load_model
from domainbed.engine.steps import CapturedSteps, EagerSteps
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import is_done, read_job
from domainbed.sweep.job import Job
from domainbed.sweep.preflight import check_jobs
from tests.algorithms import checks
from tests.algorithms.test_all import batches
from tests.algorithms.test_averaging import FeaturizerWithBatchNorm
from tests.engine.tape import Tape

# Validation losses, and the published code's choice of segments.
PUBLISHED = [
    (
        [3, 2, 1.5, 1.2, 1, 0.9, 0.8, 0.75, 0.8, 0.85, 0.8, 0.9, 0.95, 1, 1.1, 1.2, 1.3, 1.4],
        [5, 6, 7, 7, 8, 9, 10, 11, 12, 13],
    ),
    ([5, 4, 3, 2, 1, 1.1, 1.2, 1.25, 1.2, 1.2, 1.25], [4, 5, 6, 7, 8, 9, 10]),
]


def choose(losses: list[float], ratio: float, n_converge: int, n_tolerance: int) -> tuple[list[int], int, bool]:
    """Return the segments in SWAD's mean, the number of evaluations, and whether the valley was left.

    Looks at the whole curve at once; segment s stands in for a mean of nothing.
    """
    windows = [losses[e - n_converge + 1 : e + 1] for e in range(n_converge - 1, len(losses))]
    end = next((e for e, window in enumerate(windows, n_converge - 1) if window[0] == min(window)), None)
    if end is None:
        return [len(losses) - 1], len(losses), False
    s = end - n_converge + 1
    limit = (1 + ratio) * fmean(losses[s : end + 1])
    chosen: list[int] = []
    if n_tolerance < n_converge:
        chosen += range(s + 1, s + 1 + n_converge - n_tolerance)
    elif n_tolerance > n_converge:
        first = max(0, end - n_tolerance + 1)
        last = min(first + n_tolerance - n_converge, end)
        start = last + 1
        while start > first and losses[start - 1] <= limit:
            start -= 1
        chosen += range(start + 1, last + 1)
    for now in range(end + 1, len(losses)):
        oldest = max(0, now - n_tolerance + 1)
        if oldest < s:
            continue
        if all(loss > limit for loss in losses[oldest : now + 1]):
            return chosen or [s], now + 1, True
        chosen.append(oldest)
    for oldest in range(max(0, len(losses) - n_tolerance) + 1, len(losses)):
        if all(loss > limit for loss in losses[oldest:]):
            break
        chosen.append(oldest)
    return chosen or [s], len(losses), False


def run_valley(losses: list[float], ratio: float, *sizes: int) -> tuple[list[int], int, bool]:
    valley: LossValley[int] = LossValley(ratio, *sizes)
    chosen: list[int] = []
    for i, loss in enumerate(losses):
        chosen += valley.add(i, loss)
        if valley.is_over:
            break
    chosen += valley.remaining()
    return chosen or [valley.start], valley.count, valley.is_over


@pytest.mark.parametrize(("losses", "expected"), PUBLISHED)
def test_valley_of_published_code(losses: list[float], expected: list[int]):
    assert run_valley(losses, 0.3)[0] == choose(losses, 0.3, 3, 6)[0] == expected


curves = st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.2, 1.5, 2.0, 4.0]), min_size=1, max_size=25)


@given(curves, st.sampled_from([-0.5, 0.0, 0.2, 0.3, 1.0]), st.integers(1, 5), st.integers(1, 8))
@settings(max_examples=400, deadline=None)
def test_valley_equals_choice_from_the_whole_curve(losses: list[float], ratio: float, converge: int, tolerance: int):
    assert run_valley(losses, ratio, converge, tolerance) == choose(losses, ratio, converge, tolerance)


def config(**kwargs) -> JobConfig:
    defaults = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (2,), "hparams": '{"batch_size": 8}'}
    return JobConfig(**{**defaults, **kwargs})


class Weights(Algorithm):
    """Weights that each update replaces by random ones."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__((1, 8, 8), 2, 2, {})
        self.rng = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.zeros(3))
        self.b = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
        self.register_buffer("moving", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, minibatches=(), unlabeled=None):
        for tensor in (self.a, self.b, self.moving):
            tensor.copy_(torch.randn(tensor.shape, generator=self.rng))
        self.count.add_(1)
        return {}

    def values(self) -> list[np.ndarray]:
        return [t.detach().double().numpy().copy() for t in (self.a, self.b, self.moving, self.count)]


@pytest.mark.parametrize(("dataset", "tolerance"), [("PACS", 0.3), ("VLCS", 0.2), ("OfficeHome", 0.3)])
def test_published_constants_of_swad(dataset: str, tolerance: float):
    """Cha et al. 2021, Appendix: a tolerance rate of 1.3 on all datasets but VLCS, 3 and 6 evaluations."""
    valley = SWAD(JobConfig(dataset, "ERM", (0,)), Weights(0)).valley
    assert (valley.tolerance_ratio, valley.n_converge, valley.n_tolerance) == (tolerance, 3, 6)
    assert swad.BATCH_NORM_BATCHES == 500


@given(curves, st.integers(0, 10**6), st.sampled_from([-0.5, 0.0, 0.3]))
@settings(max_examples=60, deadline=None)
def test_swad_equals_the_mean_of_all_weights_kept(losses: list[float], seed: int, ratio: float):
    """Also if its state is saved and restored at any moment, and an evaluation is repeated."""
    rng = np.random.RandomState(seed)
    algorithm = Weights(seed)
    averaging = SWAD(config(), algorithm)
    averaging.valley.tolerance_ratio = ratio
    kept: list[list[list[np.ndarray]]] = []  # weights after each update, by segment
    for i, loss in enumerate(losses):
        kept.append([])
        for _ in range(1 if i == 0 else rng.randint(1, 4)):
            algorithm.update()
            averaging.add_update()
            kept[-1].append(algorithm.values())
            if rng.rand() < 0.3:
                state = copy.deepcopy(averaging.state_dict())
                averaging = SWAD(config(), algorithm)
                averaging.load_state_dict(state)
        for _ in range(rng.randint(1, 3)):
            averaging.end_interval(i, loss)
        chosen, n, is_over = choose(losses[: i + 1], ratio, 3, 6)
        segments = [[np.mean([w[j] for w in segment], axis=0) for j in range(2)] for segment in kept]
        expected = [np.mean([segments[c][j] for c in chosen], axis=0) for j in range(2)]
        before = algorithm.values()
        with averaging.applied():
            *averaged, moving, _ = algorithm.values()
            with averaging.training_weights():
                assert all(map(np.array_equal, algorithm.values(), before))
            np.testing.assert_array_equal(moving, before[2])
        for value, mean in zip(averaged, expected, strict=True):
            np.testing.assert_allclose(value, mean, rtol=1e-5, atol=1e-6)
        assert all(map(np.array_equal, algorithm.values(), before))
        assert averaging.has_ended == is_over
        if is_over:
            assert n == i + 1
            break


def test_sma_is_the_mean_of_all_weights_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sma, "START", 5)
    algorithm = Weights()
    averaging = sma.SMA(config(), algorithm)
    kept = []
    for update in range(1, 12):
        algorithm.update()
        averaging.add_update()
        kept.append(algorithm.values())
        with averaging.applied():
            averaged = algorithm.values()
        first = min(update, 4)
        for j in range(3):
            np.testing.assert_allclose(averaged[j], np.mean([w[j] for w in kept[first - 1 :]], axis=0), rtol=1e-5)
        assert averaged[3] == update, "a counter is not averaged"


def test_extra_state_of_modules_is_not_averaged():
    class WithExtraState(Weights):
        def get_extra_state(self):
            return {"scale": 2.0}

        def set_extra_state(self, state):
            pass

    shapes = [tensor.shape for tensor in floating_tensors(WithExtraState())]
    assert shapes == [tensor.shape for tensor in floating_tensors(Weights())] == [(3,), (2, 2), (2,)]


def test_sma_around_erm_equals_the_algorithm_sma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("domainbed.engine.averaging.sma.START", 10)
    monkeypatch.setattr("domainbed.algorithms.sma.START", 10)
    shared = {"steps": 21, "checkpoint_freq": 4}
    train(config(**shared, averaging="sma", output_dir=str(tmp_path / "around")))
    train(config(**shared, algorithm="SMA", output_dir=str(tmp_path / "algorithm")))
    around, algorithm = (read_job(tmp_path / name)[0] for name in ("around", "algorithm"))
    for a, b in zip(around, algorithm, strict=True):
        assert {k: v for k, v in a.items() if k.endswith("_acc")} == {k: v for k, v in b.items() if k.endswith("_acc")}
        assert a["loss"] == b["loss"], "the average must not change training"
    models = [torch.load(tmp_path / name / "model.pkl")["model_dict"] for name in ("around", "algorithm")]
    for name, tensor in models[0].items():
        if name.startswith("network."):
            assert torch.equal(tensor, models[1][f"average.{name}"])


def test_records_and_model_are_those_of_the_average(tmp_path: Path):
    shared = {"steps": 41, "checkpoint_freq": 4, "hparams": '{"batch_size": 8, "lr": 0.01}'}
    job = config(**shared, averaging="swad", output_dir=str(tmp_path / "job"))
    train(job)
    records, problems = read_job(tmp_path / "job")
    assert not problems
    assert is_done(tmp_path / "job")
    model = load_model(tmp_path / "job" / "model.pkl")
    dataset, splits = load_data(job, job.resolved_hparams())
    for env in range(3):
        for part, indices in splits[env].parts().items():
            x = torch.as_tensor(np.asarray(dataset[env].images[indices])).float()
            x = x / 255 if x.max() > 1 else x
            correct = model.predict(x).argmax(1).numpy() == np.asarray(dataset[env].labels[indices])
            assert records[-1][f"env{env}_{part}_acc"] == pytest.approx(correct.mean(), abs=1e-9), (env, part)
    assert all(math.isfinite(record[f"env{env}_out_loss"]) for record in records for env in (0, 1))
    assert "env2_out_loss" not in records[0], "the test environment must not decide"
    # Training itself is that of ERM.
    train(config(**shared, output_dir=str(tmp_path / "erm")))
    plain = read_job(tmp_path / "erm")[0]
    assert [r["loss"] for r in plain] == [r["loss"] for r in records]
    assert not any("out_loss" in name for name in plain[0])
    weights = [torch.load(tmp_path / name / "model.pkl")["model_dict"] for name in ("job", "erm")]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_saved_average_of_a_users_algorithm_is_compared_with_the_average(tmp_path: Path, capsys: pytest.CaptureFixture):
    class Mine(ERM):
        """Not built in, so the saved model is compared with the algorithm."""

    shared = {"steps": 41, "checkpoint_freq": 4, "hparams": '{"batch_size": 8, "lr": 0.01}'}
    with ALGORITHMS.temporarily("Mine", Mine):
        train(config(**shared, algorithm="Mine", averaging="swad", output_dir=str(tmp_path)))
    assert is_done(tmp_path)
    assert "warning" not in capsys.readouterr().out


def test_job_ends_with_the_valley(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(swad, "TOLERANCE_RATIO", -0.9)  # no loss is within the valley
    losses = iter([5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 3.8, 3.9, 4.0, 4.1])
    end_interval = SWAD.end_interval
    monkeypatch.setattr(SWAD, "end_interval", lambda self, step, loss: end_interval(self, step, next(losses)))
    train(config(steps=100, checkpoint_freq=2, averaging="swad", output_dir=str(tmp_path / "job")))
    records = read_job(tmp_path / "job")[0]
    assert [r["step"] for r in records] == [0, 2, 4, 6, 8, 10, 12, 14]  # segment 2 is the oldest of six in number 7
    assert [r.get("ended_early") for r in records] == [None] * 7 + [True]
    assert is_done(tmp_path / "job")
    assert (tmp_path / "job" / "model.pkl").exists()


@pytest.mark.parametrize("name", ["sma", "swad"])
def test_averages_of_captured_updates(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sma, "START", 3)
    averages = []
    data = batches(9)
    for make_steps in (EagerSteps, lambda algorithm: CapturedSteps(algorithm, Tape())):
        torch.manual_seed(0)
        algorithm = checks.make("ERM", {})
        averaging = make_averaging(config(averaging=name), algorithm)
        steps = make_steps(algorithm)
        for step in range(9):
            steps.update(data[step])
            averaging.add_update()
            if step % 2 == 0:
                averaging.end_interval(step, 1 / (step + 1))
        with averaging.applied():
            averages.append({k: v.clone() for k, v in algorithm.state_dict().items()})
    for key, eager in averages[0].items():
        torch.testing.assert_close(averages[1][key], eager)


def test_batch_norm_statistics_are_those_of_the_average(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(networks._FEATURIZERS, (8, 8), FeaturizerWithBatchNorm)
    monkeypatch.setattr(swad, "BATCH_NORM_BATCHES", 4)
    torch.manual_seed(0)
    algorithm = checks.make("ERM", {})
    averaging = SWAD(config(averaging="swad"), algorithm)
    for step, minibatches in enumerate(batches(6)):
        algorithm.update(minibatches)
        averaging.add_update()
        averaging.end_interval(step, 1.0)
    images = [torch.cat([x for x, _ in minibatches]) for minibatches in batches(4, (5, 5))]
    before = {k: v.clone() for k, v in algorithm.state_dict().items()}
    generator = torch.get_rng_state()
    reads: list[int] = []

    def read(n: int) -> Iterator[torch.Tensor]:
        reads.append(n)
        return iter(images[:n])

    with averaging.applied(read):
        layer = algorithm.featurizer.layers[1]
        with torch.no_grad():
            maps = [algorithm.featurizer.layers[0](x).transpose(0, 1).flatten(1) for x in images]
        torch.testing.assert_close(layer.running_mean, torch.stack([m.mean(1) for m in maps]).mean(0))
        torch.testing.assert_close(layer.running_var, torch.stack([m.var(1) for m in maps]).mean(0))
        with averaging.training_weights():
            assert all(torch.equal(v, before[k]) for k, v in algorithm.state_dict().items())
        assert layer.momentum == 0.1
        statistics = layer.running_var.clone()
    assert all(torch.equal(v, before[k]) for k, v in algorithm.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    with averaging.applied(read):
        assert torch.equal(layer.running_var, statistics)
    assert all(torch.equal(v, before[k]) for k, v in algorithm.state_dict().items())
    assert reads == [4], "they are computed once, for the last record and for all models"


def test_algorithms_that_average_are_refused():
    with pytest.raises(UsageError, match="--averaging swad: SMA already averages its weights"):
        make_averaging(config(algorithm="SMA", averaging="swad"), checks.make("SMA", {}))


def test_launch_of_an_algorithm_that_averages_is_refused(tmp_path: Path):
    job = Job.in_sweep(config(algorithm="SMA", averaging="sma"), tmp_path)
    with pytest.raises(UsageError, match="SMA already averages its weights"):
        check_jobs([job])


def test_other_schemes_can_be_registered(tmp_path: Path):
    class Last(Averaging):
        def tensors(self):
            return list(self.algorithm.parameters())

        def average(self):
            return [torch.zeros_like(p) for p in self.tensors()]

    with base.AVERAGINGS.temporarily("zero", Last):
        train(config(steps=2, averaging="zero", output_dir=str(tmp_path / "job")))
    model = torch.load(tmp_path / "job" / "model.pkl")["model_dict"]
    assert not any(tensor.any() for tensor in model.values())
    with pytest.raises(UsageError, match="invalid --averaging 'zero'"):
        config(averaging="zero")


def test_name_of_a_job():
    assert config().name() == config(averaging="none").name() != config(averaging="swad").name()
    assert len({config(averaging=name).name() for name in ("none", "sma", "swad")}) == 3


def test_evaluations_are_as_frequent_as_published():
    photographs = {"test_envs": (0,), "averaging": "swad", "hparams": None}
    for dataset, freq in {"PACS": 100, "VLCS": 50, "DomainNet": 500, "ColoredMNIST": 100}.items():
        assert config(dataset=dataset, **photographs).checkpoint_freq == freq
    assert config(dataset="PACS", **photographs, checkpoint_freq=300).checkpoint_freq == 300
    assert config(dataset="PACS", test_envs=(0,)).checkpoint_freq == 300
    assert ALGORITHMS["ERM"] is ERM
