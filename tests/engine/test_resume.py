"""Resuming: a job that is stopped or killed at any moment gives the same result as an undisturbed one, bit for bit."""

import functools
import itertools
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from tqdm import tqdm

from domainbed.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS
from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.datasets import DATASETS
from domainbed.engine import checkpoint, evaluate
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import TakenError, locked
from domainbed.engine.metrics import NonFiniteError
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import is_done, read_job
from tests.engine.test_train import Tiny
from tests.images import write_tree

FINISHED = {"results.jsonl", "done", "model.pkl"}
# Entries of a record that are not part of the result.
NOT_COMPARED = re.compile(rb'"(step_time|mem_gb|output_dir|save_every|loader_workers)": [^,}]+')


UPDATES = [0]  # of all instances of the class below


class DrawsRandomly(Algorithm):
    """An algorithm that draws from every random generator in update and predict, and keeps state of all kinds."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.linear = torch.nn.Linear(int(np.prod(input_shape)), num_classes)
        self.optimizer = torch.optim.Adam(self.parameters(), 0.01)
        self.register_buffer("moving", torch.zeros(num_classes))
        self.draws = [0.0]

    def update(self, minibatches, unlabeled=None):
        UPDATES[0] += 1
        x, y = concatenate(minibatches)
        weight = random.random() + np.random.rand() + np.random.randn() ** 2 + torch.rand(())
        logits = self.linear(F.dropout(x.flatten(1)))
        loss = weight * F.cross_entropy(logits + self.draws[-1] * self.moving, y)
        for images in unlabeled or []:
            loss = loss + self.linear(images.flatten(1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.moving.mul_(0.9).add_(logits.detach().mean(0))
        self.draws = [*self.draws[-2:], random.gauss(0, 1)]
        return {"loss": loss.detach()} | ({"draw": self.draws[-1]} if random.random() < 0.5 else {})

    def predict(self, x):
        return self.linear(x.flatten(1)) + torch.randn(len(x), 1).to(x.device) * self.moving + np.random.rand()


class MeanColor(Algorithm):
    """A fast classifier of photographs by their mean color."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.linear = torch.nn.Linear(3, num_classes)
        self.optimizer = torch.optim.SGD(self.parameters(), 0.1)

    def update(self, minibatches, unlabeled=None):
        x, y = concatenate(minibatches)
        loss = F.cross_entropy(self.predict(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def predict(self, x):
        return self.linear(x.mean((2, 3)))


class Crash(BaseException):
    """Simulates the death of the process."""


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with (
        DATASETS.temporarily("Tiny", Tiny),
        ALGORITHMS.temporarily("DrawsRandomly", DrawsRandomly),
        ALGORITHMS.temporarily("MeanColor", MeanColor),
        pytest.MonkeyPatch.context() as patch,
    ):
        # Save a checkpoint at every evaluation, although these jobs take less than a second.
        patch.setattr(checkpoint, "EVALUATION_INTERVAL", 0.0)
        yield


def make(folder: Path, **kwargs) -> JobConfig:
    defaults = {"dataset": "Tiny", "algorithm": "DrawsRandomly", "test_envs": (1,), "steps": 7, "checkpoint_freq": 3}
    defaults |= {"deterministic": torch.cuda.is_available()}
    return JobConfig(**{**defaults, "hparams": '{"batch_size": 4}', "output_dir": str(folder), **kwargs})


def result(folder: Path) -> tuple[bytes, dict[str, dict[str, bytes]]]:
    """Return the records of a finished job, without the entries not compared, and the weights of its models."""
    models = {path.name: torch.load(path, weights_only=True)["model_dict"] for path in folder.glob("*.pkl")}
    weights = {name: {k: v.cpu().numpy().tobytes() for k, v in model.items()} for name, model in models.items()}
    return NOT_COMPARED.sub(b"", (folder / "results.jsonl").read_bytes()), weights


def undisturbed(**kwargs) -> tuple[bytes, dict[str, dict[str, bytes]]]:
    """Return the result of a job that runs without interruption."""
    with tempfile.TemporaryDirectory() as folder:
        train(make(Path(folder) / "job", **kwargs))
        return result(Path(folder) / "job")


cached_undisturbed = functools.cache(undisturbed)


def stop_at(n: int) -> Callable[[], bool]:
    """Return a `should_stop` that requests a stop at its n-th call, without the one after the data are loaded."""
    calls = itertools.count()
    return lambda: next(calls) == n


def crash_at(n: int) -> Callable[[], bool]:
    """Return a `should_stop` that crashes at its n-th call, without the one after the data are loaded."""
    calls = itertools.count()

    def should_stop() -> bool:
        if next(calls) == n:
            raise Crash
        return False

    return should_stop


def train_disturbed(config: JobConfig, disturbances: Iterable[Callable[[], bool]]) -> int:
    """Train with each disturbance in turn, and finally without; return how many took effect."""
    count = 0
    for should_stop in disturbances:
        try:
            train(config, JobControl(should_stop=should_stop))
        except (Interrupted, Crash):
            count += 1
        else:
            return count
    train(config)
    return count


def test_job_stopped_at_any_point_equals_undisturbed(tmp_path: Path, capsys: pytest.CaptureFixture):
    """After each update, and before each batch of an evaluation. No update is repeated."""
    expected = undisturbed()
    before = UPDATES[0]
    for n in range(1, 100):
        folder = tmp_path / str(n)
        if not train_disturbed(make(folder), [stop_at(n)]):
            break
        assert result(folder) == expected, f"stopped at call {n}"
        assert {path.name for path in folder.iterdir()} == FINISHED
        assert UPDATES[0] - before == 7 * n
        assert capsys.readouterr().out.count("Resuming from checkpoint at step ") == 1
    assert n == 7 + 3 * 6 + 1, "7 updates and three evaluations of 6 batches"


@pytest.mark.parametrize(
    ("save_every", "interval"),
    [(1e-9, 0.0), (10.0, 0.0), (10.0, 10.0)],
    ids=["checkpoint after every update", "at every evaluation", "none"],
)
def test_job_killed_at_any_point_equals_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: float, interval: float
):
    monkeypatch.setattr(checkpoint, "EVALUATION_INTERVAL", interval)
    expected = cached_undisturbed()
    for n in range(1, 26):
        assert train_disturbed(make(tmp_path / str(n), save_every=save_every), [crash_at(n)]) == 1
        assert result(tmp_path / str(n)) == expected, f"crashed at call {n}"


@given(
    times=st.lists(st.floats(0.01, 30), min_size=12, max_size=12),
    save_every=st.sampled_from([0.05, 0.1, 10.0]),
    freq=st.integers(1, 8),
)
@settings(max_examples=6, deadline=None)
def test_checkpoint_is_as_old_as_documented(times: list[float], save_every: float, freq: int):
    """After an evaluation at most 10 seconds, otherwise at most --save_every plus the update."""
    now, saved_at = [0.0], [0.0]
    n_steps = len(times)
    save, update = checkpoint.Checkpointer.save, DrawsRandomly.update

    def timed_save(self, progress, rng_state=None):
        save(self, progress, rng_state)
        saved_at[0] = now[0]

    def timed_update(self, minibatches, unlabeled=None):
        assert now[0] - saved_at[0] <= 60 * save_every
        now[0] += times.pop()
        return update(self, minibatches, unlabeled)

    ages = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "EVALUATION_INTERVAL", 10.0)
        patch.setattr(checkpoint.time, "monotonic", lambda: now[0])
        patch.setattr(checkpoint.Checkpointer, "save", timed_save)
        patch.setattr(DrawsRandomly, "update", timed_update)
        config = make(Path(folder), steps=n_steps, checkpoint_freq=freq, save_every=save_every)
        train(config, JobControl(on_record=lambda step: ages.append(now[0] - saved_at[0])))
    assert len(ages) == len({*range(0, n_steps, freq), n_steps - 1})
    assert max(ages) <= min(10.0, 60 * save_every)


def test_records_without_a_checkpoint_are_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A job killed before its first checkpoint starts over, and removes what it had recorded."""
    monkeypatch.setattr(checkpoint, "EVALUATION_INTERVAL", 10.0)
    folder = tmp_path / "job"
    for n, expected in ((20, [0, 3]), (12, [0]), (5, [])):
        recorded: list[int] = []
        with pytest.raises(Crash):
            train(make(folder), JobControl(crash_at(n), recorded.append))
        assert recorded == expected
        assert not list(folder.glob("checkpoint*"))
    train(make(folder))
    assert result(folder) == cached_undisturbed()


disturbance = st.builds(lambda end, n: end(n), st.sampled_from([stop_at, crash_at]), st.integers(1, 30))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(disturbance, max_size=6),
    st.sampled_from([1e-9, 10.0]),
    st.sampled_from([1, 3, 100]),
    st.sampled_from(["{}", '{"class_balanced": true}']),
    st.booleans(),
)
def test_repeatedly_disturbed_job_equals_undisturbed(disturbances, save_every, freq, hparams, is_adaptation):
    more = {"checkpoint_freq": freq, "hparams": hparams}
    if is_adaptation:
        more |= {"task": "domain_adaptation", "uda_holdout_fraction": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        train_disturbed(make(Path(folder), save_every=save_every, **more), disturbances)
        assert result(Path(folder)) == cached_undisturbed(**more)
        assert {path.name for path in Path(folder).iterdir()} == FINISHED


VARIANTS = {
    "ERM": {"algorithm": "ERM", "hparams": {"class_balanced": True}},
    "ERM, nonlinear": {"algorithm": "ERM", "hparams": {"nonlinear_classifier": True, "weight_decay": 0.1}},
    "CORAL": {"algorithm": "CORAL", "hparams": {}},
    "DANN": {"algorithm": "DANN", "hparams": {"mlp_dropout": 0.5, "grad_penalty": 0.1, "d_steps_per_g_step": 2}},
    "IRM": {"algorithm": "IRM", "hparams": {"irm_penalty_anneal_iters": 4}},
    "VREx": {"algorithm": "VREx", "hparams": {"vrex_penalty_anneal_iters": 4}},
    "Fish": {"algorithm": "Fish", "hparams": {}},
    "Fishr": {"algorithm": "Fishr", "hparams": {"penalty_anneal_iters": 4}},
    "Fishr, domain adaptation": {
        "algorithm": "Fishr",
        "hparams": {"penalty_anneal_iters": 3},
        "task": "domain_adaptation",
        "uda_holdout_fraction": 0.3,
    },
}


def digits(variant: str) -> dict:
    """Return the arguments of a short job on digits."""
    more = VARIANTS[variant]
    hparams = "{" + ", ".join(f'"{k}": {str(v).lower()}' for k, v in {"batch_size": 8, **more["hparams"]}.items()) + "}"
    return {"dataset": "ColoredDigits", "test_envs": (2,), **more, "hparams": hparams}


def test_variants_include_every_algorithm():
    assert set(DEFAULT_ALGORITHMS) == {variant["algorithm"] for variant in VARIANTS.values()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_algorithm_resumes_exactly(tmp_path: Path, variant: str):
    """Each evaluation calls `should_stop` at least thirty times."""
    rng = np.random.RandomState(zlib.crc32(variant.encode()))
    ends = ([stop_at, crash_at][rng.randint(2)](n) for n in rng.randint(1, 40, 12))
    config = make(tmp_path / "job", **digits(variant), save_every=1e-9)
    count = train_disturbed(config, itertools.chain([stop_at(1), stop_at(40), stop_at(2)], ends))
    assert count >= 4
    assert result(tmp_path / "job") == undisturbed(**digits(variant))


def crash_at_each_call(
    monkeypatch: pytest.MonkeyPatch, name: str, is_after: bool, run: Callable[[], None]
) -> Iterator[int]:
    """Run repeatedly, crashing before or after the first, second, … call of os.`name`, until a run completes."""
    function = getattr(os, name)
    for n in itertools.count(1):
        calls = itertools.count(1)

        def crashing(*args, calls=calls, n=n):
            is_last = next(calls) == n
            if is_last and not is_after:
                raise Crash
            function(*args)
            if is_last:
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(os, name, crashing)
            try:
                run()
            except Crash:
                yield n
            else:
                return


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["fsync", "replace", "pwrite"])
def test_job_killed_at_any_write_equals_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_after: bool
):
    more = {"save_model_every_checkpoint": True}
    expected = cached_undisturbed(**more)
    assert len(expected[1]) == 4
    folders = (tmp_path / str(n) for n in itertools.count())
    started: list[Path] = []

    def run() -> None:
        started.append(next(folders))
        train(make(started[-1], **more))

    calls = 0
    for calls in crash_at_each_call(monkeypatch, name, is_after, run):
        folder = started[-1]
        if not is_done(folder):
            train(make(folder, **more))
            assert {path.name for path in folder.iterdir()} == FINISHED | set(expected[1])
        assert result(folder) == expected, f"crashed at call {calls} of os.{name}"
    assert calls >= (1 if name == "pwrite" else 10)


def test_diverging_job_diverges_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also if it was stopped after the update that returned the nonfinite metric."""
    update = DrawsRandomly.update

    def diverging(self, minibatches, unlabeled=None):
        metrics = update(self, minibatches, unlabeled)
        return metrics | ({"loss": float("inf")} if float(metrics["loss"]) > 5 else {})

    monkeypatch.setattr(DrawsRandomly, "update", diverging)
    messages = []
    for ends in ([], [stop_at(n) for n in (1, 8, 2, 1, 1, 2)]):
        with pytest.raises(NonFiniteError) as error:
            train_disturbed(make(tmp_path / str(len(messages)), steps=60, checkpoint_freq=40), ends)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("training diverged at step ")


@pytest.mark.parametrize("scheme", ["sma", "swad", "swad that ends early"])
@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_averages_resume_exactly(scheme: str, data: st.DataObject):
    """Also a job that is stopped or killed while it evaluates its average, or after the average is complete."""
    ends = data.draw(st.lists(st.tuples(st.sampled_from([stop_at, crash_at]), st.integers(1, 60)), max_size=5))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("domainbed.engine.averaging.sma.START", 5)
        ratio = -0.9 if scheme.endswith("early") else 1e9  # all losses are above the valley, or in it
        patch.setattr("domainbed.engine.averaging.swad.TOLERANCE_RATIO", ratio)
        arguments = {"averaging": scheme.partition(" ")[0], "steps": 40, "checkpoint_freq": 2, "eval": "splits"}
        expected = _undisturbed_average(scheme, **arguments)
        assert (b"ended_early" in expected[0]) == scheme.endswith("early")
        train_disturbed(make(Path(folder) / "job", **arguments, save_every=1e-9), [how(n) for how, n in ends])
        assert result(Path(folder) / "job") == expected


@functools.cache
def _undisturbed_average(scheme: str, **arguments) -> tuple[bytes, dict[str, dict[str, bytes]]]:
    return undisturbed(**arguments)


def test_step_time_excludes_evaluations_and_earlier_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a clock by which an update takes 1 s, and a batch of an evaluation 1000 s."""
    now = [0.0]
    update, split_on_oom = DrawsRandomly.update, evaluate.split_on_oom

    def slow_update(*args):
        now[0] += 1
        return update(*args)

    def slow_predict(*args):
        now[0] += 1000
        return split_on_oom(*args)

    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(DrawsRandomly, "update", slow_update)
    monkeypatch.setattr(evaluate, "split_on_oom", slow_predict)
    ends = [stop_at(n) for n in (4, 9, 1, 3, 8, 1)]
    assert train_disturbed(make(tmp_path / "stopped"), ends) == 6
    assert train_disturbed(make(tmp_path / "killed", save_every=1e-9), [crash_at(n) for n in (9, 3, 8, 3)]) == 4
    for name in ("stopped", "killed"):
        assert [r["step_time"] for r in read_job(tmp_path / name)[0]] == [1, 1, 1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = write_tree(tmp_path / "tree", {name: {"car": 6, "tram": 6} for name in ("day", "dusk", "night")})
    for name in ("day/car/001", "day/tram/004", "dusk/car/002", "dusk/tram/005", "night/car/000"):
        (tree / f"{name}.png").write_bytes(b"oops")
    return tree


def photographs(tree: Path, **kwargs) -> dict:
    """Return the arguments of a job that reads training images in updates only, so that it counts those read there."""
    return {
        "dataset": "Folder",
        "algorithm": "MeanColor",
        "test_envs": (2,),
        "data_dir": str(tree),
        "hparams": '{"batch_size": 2}',
        "on_bad_image": "skip",
        "eval": "splits",
        **kwargs,
    }


def test_job_on_photographs_resumes_exactly(tree: Path, tmp_path: Path):
    expected = undisturbed(**photographs(tree))
    (tmp_path / "undisturbed").mkdir()
    train(make(tmp_path / "undisturbed", **photographs(tree)))
    counts = [r["bad_images"] for r in read_job(tmp_path / "undisturbed")[0]]
    assert 0 < counts[0] < counts[-1]
    for n in (1, 3, 6, 7, 8, 12, 15):
        assert train_disturbed(make(tmp_path / str(n), **photographs(tree)), [stop_at(n), stop_at(2)]) >= 1
        assert result(tmp_path / str(n)) == expected
    ends = [stop_at(1), stop_at(8), crash_at(3), stop_at(4)]
    with_worker = make(tmp_path / "with worker", **photographs(tree, loader_workers=1), save_every=1e-9)
    assert train_disturbed(with_worker, ends) == 4
    assert result(tmp_path / "with worker") == expected


def test_resumed_job_counts_broken_images_read_before(tree: Path, tmp_path: Path):
    more = photographs(tree, steps=12, checkpoint_freq=100)
    config = make(tmp_path / "job", **more)
    with pytest.raises(Interrupted):
        train(config, JobControl(should_stop=stop_at(1 + 4 + 10)))
    count = len(checkpoint.load_checkpoint(tmp_path / "job")["bad_images"])
    for image in tree.rglob("*.png"):  # repair all
        if image.stat().st_size == 4:
            image.write_bytes((tree / "day/car/000.png").read_bytes())
    train(config)
    assert count > 0
    assert [r["bad_images"] for r in read_job(tmp_path / "job")[0]][-1] == count


def test_job_whose_lock_was_taken_over_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as a job whose machine was suspended. At any record, including the last."""
    monkeypatch.setattr("domainbed.engine.lock.time.sleep", lambda seconds: None)
    for takeover_step in (0, 3, 6):
        folder = tmp_path / str(takeover_step)
        files: dict[str, bytes] = {}

        def take_over(step: int, folder=folder, takeover_step=takeover_step, files=files) -> None:
            if step == takeover_step:
                (folder / "lock").rename(folder / "old lock")
                (folder / "lock").write_bytes(b"another process")
                files.update({path.name: path.read_bytes() for path in folder.iterdir()})

        with pytest.raises(TakenError, match="taken over by another process while this one was suspended"):
            train(make(folder, save_model_every_checkpoint=True), JobControl(on_record=take_over))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        assert "done" not in files


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_job_whose_lock_was_taken_over_while_the_data_were_loaded_removes_nothing(tmp_path: Path, has_checkpoint: bool):
    evaluated: list[int] = []
    with pytest.raises(Interrupted):
        train(
            make(tmp_path, save_best_model=True),
            JobControl(should_stop=lambda: len(evaluated) > 0, on_record=evaluated.append),
        )
    if not has_checkpoint:
        for path in tmp_path.glob("checkpoint*"):
            path.unlink()
    (tmp_path / f"model.pkl.{32 * '0'}.part").write_bytes(b"written by the other process")
    with locked(tmp_path) as lock:
        (tmp_path / "lock").rename(tmp_path / "old lock")
        (tmp_path / "lock").write_bytes(b"another process")
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert {"results.jsonl", "model_best.pkl"} <= files.keys()
        with pytest.raises(TakenError, match="taken over by another process"):
            train(make(tmp_path), JobControl(lock=lock))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_best_model_is_never_that_of_another_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """A job may be resumed without `--save_best_model`, or with it for the first time."""
    stops: list[bool] = []
    interrupted = JobControl(should_stop=lambda: len(stops) > 0, on_record=lambda step: stops.append(True))
    with pytest.raises(Interrupted):
        train(make(tmp_path / "off", save_best_model=True), interrupted)
    assert (tmp_path / "off" / "model_best.pkl").exists()
    train(make(tmp_path / "off"))
    assert "was removed: the job was resumed without --save_best_model" in capsys.readouterr().out
    assert not (tmp_path / "off" / "model_best.pkl").exists()

    stops.clear()
    with pytest.raises(Interrupted):
        train(make(tmp_path / "on"), interrupted)
    monkeypatch.setattr("domainbed.engine.recorder.improves_validation", lambda record, earlier: earlier is None)
    train(make(tmp_path / "on", save_best_model=True))
    assert "lacks the model of step 0, the best by validation accuracy so far" in capsys.readouterr().out
    assert not (tmp_path / "on" / "model_best.pkl").exists()

    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model_best.pkl").write_bytes(b"copied by the user")
    train(make(tmp_path / "new"))
    assert (tmp_path / "new" / "model_best.pkl").read_bytes() == b"copied by the user"


def test_lock_taken_over_while_a_model_is_saved_writes_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A large model may take longer than a takeover."""
    monkeypatch.setattr("domainbed.engine.lock.time.sleep", lambda seconds: None)
    written: list[str] = []

    def save_model(path: Path, *args) -> None:
        written.append(path.name)
        if len(written) == 2:
            (tmp_path / "lock").rename(tmp_path / "old lock")
            (tmp_path / "lock").write_bytes(b"another process")

    monkeypatch.setattr("domainbed.engine.recorder.save_model", save_model)
    with pytest.raises(TakenError, match="taken over by another process"):
        train(make(tmp_path, save_model_every_checkpoint=True))
    assert written == ["model_step0.pkl", "model_step3.pkl"]
    assert [record["step"] for record in read_job(tmp_path)[0]] == [0]


def test_lock_taken_over_while_the_last_model_is_saved_is_not_marked_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("domainbed.engine.lock.time.sleep", lambda seconds: None)

    def save_model(path: Path, *args) -> None:
        (tmp_path / "lock").rename(tmp_path / "old lock")
        (tmp_path / "lock").write_bytes(b"another process")

    monkeypatch.setattr("domainbed.engine.recorder.save_model", save_model)
    monkeypatch.setattr("domainbed.engine.recorder.describe_difference", lambda *args: "")
    with pytest.raises(TakenError, match="taken over by another process"):
        train(make(tmp_path))
    assert not is_done(tmp_path)


@pytest.mark.parametrize("end", ["update", "evaluation"])
def test_job_whose_lock_was_taken_over_saves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str):
    monkeypatch.setattr("domainbed.engine.lock.time.sleep", lambda seconds: None)
    calls = itertools.count()

    def should_stop() -> bool:
        if next(calls) < (8 if end == "update" else 12):
            return False
        (tmp_path / "job" / "lock").unlink()
        return True

    with pytest.raises(TakenError):
        train(make(tmp_path / "job"), JobControl(should_stop=should_stop))
    assert checkpoint.load_checkpoint(tmp_path / "job")["step"] == 1


def test_deterministic_applies_to_a_single_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def read_settings(step: int) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ))

    try:
        train(make(tmp_path / "a", steps=1, deterministic=True), JobControl(on_record=read_settings))
        train(make(tmp_path / "b", steps=1, deterministic=False), JobControl(on_record=read_settings))
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert seen[0] == (True, True)
    assert seen[1][0] is False
    assert result(tmp_path / "a")[1] == result(tmp_path / "b")[1]


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_save_every_must_be_positive(tmp_path: Path, minutes: float):
    with pytest.raises(UsageError, match="--save_every must be above 0"):
        make(tmp_path, save_every=minutes)


def start_process(config: JobConfig, log: Path) -> int:
    """Start a process that trains, and return its id. It is forked, because importing torch takes seconds."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        train(config)
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        os._exit(status)


def kill_and_resume(root: str) -> None:
    """Run two jobs of each variant, each killed at five random moments of its duration."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # forked processes share tqdm's own, which a killed one would never release
    train(make(Path(root) / "first", **digits("ERM")))  # forked processes inherit all imports
    rng = np.random.RandomState(0)
    variants = list(VARIANTS)
    killed, resumed = 0, 0
    for i in range(2 * len(variants)):
        more = {**digits(variants[i % len(variants)]), "seed": i, "steps": 10, "checkpoint_freq": 4}
        folder, log = Path(root) / f"job {i}", Path(root) / f"log {i}"
        started_at = time.monotonic()
        assert os.waitpid(start_process(make(Path(root) / f"undisturbed {i}", **more), log), 0)[1] == 0, log.read_text()
        duration = time.monotonic() - started_at
        # A third each save a checkpoint after every update, at every evaluation, and never.
        checkpoint.EVALUATION_INTERVAL = [0.0, 0.0, 10.0][i % 3]
        config = make(folder, **more, save_every=[1e-9, 10.0, 10.0][i % 3])
        for moment in rng.uniform(0.05, 0.65, 5):
            pid = start_process(config, log)
            time.sleep(moment * duration)
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            if is_done(folder):
                break
        else:
            assert os.waitpid(start_process(config, log), 0)[1] == 0, log.read_text()
            assert {path.name for path in folder.iterdir()} == FINISHED
        assert result(folder) == result(Path(root) / f"undisturbed {i}"), f"job {i}"
        resumed += log.read_text().count("Resuming from checkpoint at step ")
    print(f"{killed} kills, {resumed} resumed from a checkpoint")
    assert killed >= 2 * len(variants)  # up to five times as many, unless other processes slow this one down
    assert resumed >= len(variants)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires fork")
def test_process_killed_at_any_moment_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = multiprocessing.get_context("spawn").Process(target=kill_and_resume, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 0
