"""Jobs that are stopped or killed, at any moment, and gone on with: they end as one that never was, to the last bit."""

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

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm, concatenate
from domainbed.datasets import DATASETS
from domainbed.engine import checkpoint, evaluate
from domainbed.engine.config import JobConfig
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import TakenError
from domainbed.engine.metrics import NonFiniteError
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import is_done, read_job
from tests.engine.test_train import Tiny
from tests.images import write_tree

FINISHED = {"results.jsonl", "done", "model.pkl"}
# Of a record, what its job's result does not depend on.
BESIDE = re.compile(rb'"(step_time|mem_gb|output_dir|save_every|loader_workers)": [^,}]+')


class Gambler(Algorithm):
    """Draws from every generator, trains and predicts by chance, and keeps something of each update."""

    updates = 0

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.linear = torch.nn.Linear(int(np.prod(input_shape)), num_classes)
        self.optimizer = torch.optim.Adam(self.parameters(), 0.01)
        self.register_buffer("moving", torch.zeros(num_classes))
        self.luck = [0.0]

    def update(self, minibatches, unlabeled=None):
        Gambler.updates += 1
        x, y = concatenate(minibatches)
        stake = random.random() + np.random.rand() + np.random.randn() ** 2 + torch.rand(())
        logits = self.linear(F.dropout(x.flatten(1)))
        loss = stake * F.cross_entropy(logits + self.luck[-1] * self.moving, y)
        for images in unlabeled or []:
            loss = loss + self.linear(images.flatten(1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.moving.mul_(0.9).add_(logits.detach().mean(0))
        self.luck = [*self.luck[-2:], random.gauss(0, 1)]
        return {"loss": loss.detach()} | ({"luck": self.luck[-1]} if random.random() < 0.5 else {})

    def predict(self, x):
        return self.linear(x.flatten(1)) + torch.randn(len(x), 1) * self.moving + np.random.rand()


class Colours(Algorithm):
    """Judges photographs by their mean colours, quickly."""

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
    """The end of a process, as near as a test in this one comes to it."""


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS._registered, "Tiny", Tiny)
        patch.setitem(ALGORITHMS._registered, "Gambler", Gambler)
        patch.setitem(ALGORITHMS._registered, "Colours", Colours)
        yield


def make(folder: Path, **kwargs) -> JobConfig:
    defaults = {"dataset": "Tiny", "algorithm": "Gambler", "test_envs": (1,), "steps": 7, "checkpoint_freq": 3}
    defaults |= {"deterministic": torch.cuda.is_available()}  # without which a GPU's bits may differ
    return JobConfig(**{**defaults, "hparams": '{"batch_size": 4}', "output_dir": str(folder), **kwargs})


def result(folder: Path) -> tuple[bytes, dict[str, dict[str, bytes]]]:
    """A finished job's records, but for what its result does not depend on, and its models' weights."""
    models = {path.name: torch.load(path, weights_only=True)["model_dict"] for path in folder.glob("*.pkl")}
    weights = {name: {k: v.cpu().numpy().tobytes() for k, v in model.items()} for name, model in models.items()}
    return BESIDE.sub(b"", (folder / "results.jsonl").read_bytes()), weights


def undisturbed(**kwargs) -> tuple[bytes, dict[str, dict[str, bytes]]]:
    """The result of a job that runs from its first step to its last."""
    with tempfile.TemporaryDirectory() as folder:
        train(make(Path(folder) / "job", **kwargs))
        return result(Path(folder) / "job")


remembered = functools.cache(undisturbed)


def stop_at(n: int) -> Callable[[], bool]:
    """Ask to stop when asked for the n-th time."""
    asked = itertools.count(1)
    return lambda: next(asked) == n


def crash_at(n: int) -> Callable[[], bool]:
    """End without saving when asked for the n-th time."""
    asked = itertools.count(1)

    def should_stop() -> bool:
        if next(asked) == n:
            raise Crash
        return False

    return should_stop


def run_to_the_end(config: JobConfig, disturbances: Iterable[Callable[[], bool]]) -> int:
    """Train, disturbed by each in turn, and then in peace; returns how many came in time."""
    came = 0
    for should_stop in disturbances:
        try:
            train(config, should_stop=should_stop)
        except (Interrupted, Crash):
            came += 1
        else:
            return came
    train(config)
    return came


def test_stopped_at_every_moment(tmp_path: Path, capsys: pytest.CaptureFixture):
    """After each update, and before each batch of an evaluation: no update is made twice."""
    expected = undisturbed()
    before = Gambler.updates
    for n in range(1, 100):
        folder = tmp_path / str(n)
        if not run_to_the_end(make(folder), [stop_at(n)]):
            break
        assert result(folder) == expected, f"stopped when asked for the {n}. time"
        assert {path.name for path in folder.iterdir()} == FINISHED
        assert Gambler.updates - before == 7 * n
        assert capsys.readouterr().out.count("This job goes on from its checkpoint after ") == 1
    assert n == 7 + 3 * 6 + 1, "7 updates, and three evaluations of six batches"


@pytest.mark.parametrize("save_every", [1e-9, 10.0])
def test_dead_at_every_moment(tmp_path: Path, save_every: float):
    expected = remembered()
    for n in range(1, 26):
        assert run_to_the_end(make(tmp_path / str(n), save_every=save_every), [crash_at(n)]) == 1
        assert result(tmp_path / str(n)) == expected, f"died when asked for the {n}. time"


def test_a_checkpoint_is_written_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And what came before it is not done again."""
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    asked = itertools.count(1)

    def should_stop() -> bool:
        now[0] += 30
        if next(asked) == 1 + 6 + 7:
            raise Crash
        return False

    config = make(tmp_path / "job", steps=20, checkpoint_freq=100, save_every=1.0)
    with pytest.raises(Crash):
        train(config, should_stop=should_stop)
    before = Gambler.updates
    train(config)
    # The evaluation after the first update saved; then the third, sixth, … update is more than a minute later.
    assert Gambler.updates - before == 20 - 1 - 6
    assert result(tmp_path / "job") == undisturbed(steps=20, checkpoint_freq=100)


disturbance = st.builds(lambda end, n: end(n), st.sampled_from([stop_at, crash_at]), st.integers(1, 30))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(disturbance, max_size=6),
    st.sampled_from([1e-9, 10.0]),
    st.sampled_from([1, 3, 100]),
    st.sampled_from(["{}", '{"class_balanced": true}']),
    st.booleans(),
)
def test_disturbed_again_and_again(disturbances, save_every, freq, hparams, adapts):
    more = {"checkpoint_freq": freq, "hparams": hparams}
    if adapts:
        more |= {"task": "domain_adaptation", "uda_holdout_fraction": 0.5}
    with tempfile.TemporaryDirectory() as folder:
        run_to_the_end(make(Path(folder), save_every=save_every, **more), disturbances)
        assert result(Path(folder)) == remembered(**more)
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
    "Fishr, adapting": {
        "algorithm": "Fishr",
        "hparams": {"penalty_anneal_iters": 3},
        "task": "domain_adaptation",
        "uda_holdout_fraction": 0.3,
    },
}


def digits(variant: str) -> dict:
    """The arguments of a short job on digits."""
    more = VARIANTS[variant]
    hparams = "{" + ", ".join(f'"{k}": {str(v).lower()}' for k, v in {"batch_size": 8, **more["hparams"]}.items()) + "}"
    return {"dataset": "ColoredDigits", "test_envs": (2,), **more, "hparams": hparams}


def test_no_algorithm_is_forgotten_here():
    assert set(ALGORITHMS._builtin) == {variant["algorithm"] for variant in VARIANTS.values()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_algorithm_goes_on_as_if_it_had_never_stopped(tmp_path: Path, variant: str):
    """Evaluations here ask thirty times and more whether to stop."""
    rng = np.random.RandomState(zlib.crc32(variant.encode()))
    ends = ([stop_at, crash_at][rng.randint(2)](n) for n in rng.randint(1, 40, 12))
    config = make(tmp_path / "job", **digits(variant), save_every=1e-9)
    came = run_to_the_end(config, itertools.chain([stop_at(1), stop_at(40), stop_at(2)], ends))
    assert came >= 4
    assert result(tmp_path / "job") == undisturbed(**digits(variant))


def in_every_place(
    monkeypatch: pytest.MonkeyPatch, name: str, is_after: bool, run: Callable[[], None]
) -> Iterator[int]:
    """Run again and again, ending at the first, second, … call of os.`name` until there is no further."""
    call = getattr(os, name)
    for n in itertools.count(1):
        calls = itertools.count(1)

        def ending(*args, calls=calls, n=n):
            is_last = next(calls) == n
            if is_last and not is_after:
                raise Crash
            call(*args)
            if is_last:
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(os, name, ending)
            try:
                run()
            except Crash:
                yield n
            else:
                return


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["fsync", "replace", "pwrite"])
def test_dead_between_any_two_steps_of_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_after: bool
):
    more = {"save_model_every_checkpoint": True}
    expected = remembered(**more)
    assert len(expected[1]) == 4
    folders = (tmp_path / str(n) for n in itertools.count())
    started: list[Path] = []

    def run() -> None:
        started.append(next(folders))
        train(make(started[-1], **more))

    places = 0
    for places in in_every_place(monkeypatch, name, is_after, run):
        folder = started[-1]
        if not is_done(folder):
            train(make(folder, **more))
            assert {path.name for path in folder.iterdir()} == FINISHED | set(expected[1])
        assert result(folder) == expected, f"died at os.{name} {places}"
    assert places >= (2 if name == "pwrite" else 10)


def test_a_job_that_diverges_does_so_when_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the figure that is not finite was told before it stopped."""
    update = Gambler.update

    def diverging(self, minibatches, unlabeled=None):
        figures = update(self, minibatches, unlabeled)
        return figures | ({"loss": float("inf")} if float(figures["loss"]) > 5 else {})

    monkeypatch.setattr(Gambler, "update", diverging)
    messages = []
    for ends in ([], [stop_at(n) for n in (1, 8, 2, 1, 1, 2)]):
        with pytest.raises(NonFiniteError) as error:
            run_to_the_end(make(tmp_path / str(len(messages)), steps=60, checkpoint_freq=40), ends)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("at step ")


def test_neither_evaluations_nor_what_came_before_count_as_the_updates_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By a clock on which an update takes a second, and an evaluation a thousand."""
    now = [0.0]
    update, in_halves = Gambler.update, evaluate.split_on_oom

    def slow_update(*args):
        now[0] += 1
        return update(*args)

    def slow_in_halves(*args):
        now[0] += 1000
        return in_halves(*args)

    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Gambler, "update", slow_update)
    monkeypatch.setattr(evaluate, "in_halves", slow_in_halves)
    ends = [stop_at(n) for n in (4, 9, 1, 3, 8, 1)]
    assert run_to_the_end(make(tmp_path / "stopped"), ends) == 6
    assert run_to_the_end(make(tmp_path / "dead", save_every=1e-9), [crash_at(n) for n in (9, 3, 8, 3)]) == 4
    for name in ("stopped", "dead"):
        assert [r["step_time"] for r in read_job(tmp_path / name)[0]] == [1, 1, 1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = write_tree(tmp_path / "tree", {name: {"car": 6, "tram": 6} for name in ("day", "dusk", "night")})
    for name in ("day/car/001", "day/tram/004", "dusk/car/002", "dusk/tram/005", "night/car/000"):
        (tree / f"{name}.png").write_bytes(b"oops")
    return tree


def photographs(tree: Path, **kwargs) -> dict:
    """The arguments of a job whose training images are seen in updates alone, so that it counts what these met."""
    return {
        "dataset": "Folder",
        "algorithm": "Colours",
        "test_envs": (2,),
        "data_dir": str(tree),
        "hparams": '{"batch_size": 2}',
        "on_bad_image": "skip",
        "eval": "splits",
        **kwargs,
    }


def test_photographs(tree: Path, tmp_path: Path):
    expected = undisturbed(**photographs(tree))
    (tmp_path / "whole").mkdir()
    train(make(tmp_path / "whole", **photographs(tree)))
    counts = [r["bad_images"] for r in read_job(tmp_path / "whole")[0]]
    assert 0 < counts[0] < counts[-1]
    for n in (1, 3, 6, 7, 8, 12, 15):
        assert run_to_the_end(make(tmp_path / str(n), **photographs(tree)), [stop_at(n), stop_at(2)]) >= 1
        assert result(tmp_path / str(n)) == expected
    ends = [stop_at(1), stop_at(8), crash_at(3), stop_at(4)]
    helped = make(tmp_path / "helped", **photographs(tree, loader_workers=1), save_every=1e-9)
    assert run_to_the_end(helped, ends) == 4
    assert result(tmp_path / "helped") == expected


def test_broken_images_met_before_count_although_no_longer_met(tree: Path, tmp_path: Path):
    more = photographs(tree, steps=12, checkpoint_freq=100)
    config = make(tmp_path / "job", **more)
    with pytest.raises(Interrupted):
        train(config, should_stop=stop_at(1 + 4 + 10))
    met = len(checkpoint.load_checkpoint(tmp_path / "job")["bad_images"])
    for image in tree.rglob("*.png"):  # all are mended
        if image.stat().st_size == 4:
            image.write_bytes((tree / "day/car/000.png").read_bytes())
    train(config)
    assert met > 0
    assert [r["bad_images"] for r in read_job(tmp_path / "job")[0]][-1] == met


def test_a_job_whose_lock_was_taken_over_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its machine was suspended, say, until another one took it for dead: at whichever record, even the last."""
    monkeypatch.setattr("domainbed.engine.lock.time.sleep", lambda seconds: None)
    for at in (0, 3, 6):
        folder = tmp_path / str(at)
        left: dict[str, bytes] = {}

        def take_over(step: int, folder=folder, at=at, left=left) -> None:
            if step == at:
                (folder / "lock").rename(folder / "theirs")
                (folder / "lock").write_bytes(b"another's")
                left.update({path.name: path.read_bytes() for path in folder.iterdir()})

        with pytest.raises(TakenError, match="was taken over by another process while this one stood still"):
            train(make(folder, save_model_every_checkpoint=True), on_record=take_over)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == left
        assert "done" not in left


@pytest.mark.parametrize("end", ["update", "evaluation"])
def test_nor_a_checkpoint_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str):
    monkeypatch.setattr("domainbed.engine.lock.time.sleep", lambda seconds: None)
    asked = itertools.count(1)

    def should_stop() -> bool:
        if next(asked) < (8 if end == "update" else 12):
            return False
        (tmp_path / "job" / "lock").unlink()
        return True

    with pytest.raises(TakenError):
        train(make(tmp_path / "job"), should_stop=should_stop)
    assert checkpoint.load_checkpoint(tmp_path / "job")["step"] == 1


def test_deterministic_holds_for_its_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []

    def look(step: int) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ))

    try:
        train(make(tmp_path / "a", steps=1, deterministic=True), on_record=look)
        train(make(tmp_path / "b", steps=1, deterministic=False), on_record=look)
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert seen[0] == (True, True)
    assert seen[1][0] is False
    assert result(tmp_path / "a")[1] == result(tmp_path / "b")[1]


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_a_checkpoint_is_never_due_every_nothing(tmp_path: Path, minutes: float):
    with pytest.raises(UsageError, match="--save_every must be above 0 minutes, not"):
        make(tmp_path, save_every=minutes)


def child(config: JobConfig, log: Path) -> int:
    """Start a process that trains; returns its number. (A copy of this one: importing torch takes seconds.)"""
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


def kill_and_go_on(root: str) -> None:
    """Thirty jobs, each killed five times at moments spread over the time that it takes."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared by copies of a process: one that is killed would keep it
    train(make(Path(root) / "first", **digits("ERM")))  # what is imported and set up now, the copies have
    rng = np.random.RandomState(0)
    variants = list(VARIANTS)
    killed, went_on = 0, 0
    for i in range(30):
        more = {**digits(variants[i % len(variants)]), "seed": i, "steps": 10, "checkpoint_freq": 4}
        folder, log = Path(root) / f"job {i}", Path(root) / f"log {i}"
        began = time.monotonic()
        assert os.waitpid(child(make(Path(root) / f"whole {i}", **more), log), 0)[1] == 0, log.read_text()
        duration = time.monotonic() - began
        # Half of them have a checkpoint after every update.
        config = make(folder, **more, save_every=[1e-9, 10.0][i % 2])
        for moment in rng.uniform(0.05, 0.65, 5):
            pid = child(config, log)
            time.sleep(moment * duration)
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            if is_done(folder):
                break
        else:
            assert os.waitpid(child(config, log), 0)[1] == 0, log.read_text()
            assert {path.name for path in folder.iterdir()} == FINISHED
        assert result(folder) == result(Path(root) / f"whole {i}"), f"job {i}"
        went_on += log.read_text().count("This job goes on from its checkpoint after ")
    print(f"{killed} kills; {went_on} times a job went on from a checkpoint")
    assert killed > 100
    assert went_on > 50


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies a process, which this system can't")
def test_killed_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = multiprocessing.get_context("spawn").Process(target=kill_and_go_on, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 0
