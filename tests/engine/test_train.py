"""One job, on small data: its records against sums done here, its model, and what it leaves behind."""

import itertools
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.datasets import DATASETS, ArrayEnvironment, MultipleDomainDataset
from domainbed.engine import data
from domainbed.engine.config import JobConfig
from domainbed.engine.lock import is_locked
from domainbed.engine.metrics import NonFiniteError
from domainbed.engine.model import load_model
from domainbed.engine.train import evaluation_intervals, train
from domainbed.errors import UsageError
from domainbed.loading.splits import split_environment
from domainbed.records import read_job

TIMES = ("step_time", "mem_gb")


class Tiny(MultipleDomainDataset):
    """Three environments of 10, 20 and 30 random images."""

    ENVIRONMENTS = ["ten", "twenty", "thirty"]
    N_STEPS = 11
    CHECKPOINT_FREQ = 5
    input_shape = (1, 8, 8)
    num_classes = 3

    def __init__(self, root, test_envs, hparams, trial_seed):
        rng = np.random.RandomState(trial_seed)
        self.environments = [
            ArrayEnvironment(rng.rand(n, *self.input_shape), rng.randint(0, 3, n)) for n in (10, 20, 30)
        ]


class Tape(Algorithm):
    """A class as one would write it for DomainBed: it returns floats. It keeps what it is shown."""

    seen: list

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.weight = torch.nn.Parameter(torch.randn(num_classes, input_shape[0] * input_shape[1] * input_shape[2]))
        self.num_domains = num_domains
        Tape.seen = []

    def update(self, minibatches, unlabeled=None):
        assert self.training
        assert len(minibatches) == self.num_domains
        Tape.seen.append((minibatches, unlabeled))
        figures = {"loss": float(len(Tape.seen))}
        return figures | ({"even": 1.5} if len(Tape.seen) % 2 == 0 else {})

    def predict(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return x.flatten(1) @ self.weight.T


class OneLogit(Tape):
    """Says class 1 where its only logit is positive."""

    def predict(self, x):
        return x.flatten(1)[:, :1] - 0.5


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(DATASETS._registered, "Tiny", Tiny)
    monkeypatch.setitem(ALGORITHMS._registered, "Tape", Tape)
    monkeypatch.setitem(ALGORITHMS._registered, "OneLogit", OneLogit)


def make(tmp_path: Path, **kwargs) -> JobConfig:
    defaults = {"dataset": "Tiny", "algorithm": "Tape", "test_envs": (1,), "output_dir": str(tmp_path / "job")}
    return JobConfig(**{**defaults, **kwargs})


@pytest.mark.parametrize(("steps", "freq"), list(itertools.product([1, 2, 10, 11, 12, 23], [1, 5, 10, 100])))
def test_evaluations_come_when_the_protocol_says(steps: int, freq: int):
    expected = [s for s in range(steps) if s % freq == 0 or s == steps - 1]
    pieces = list(evaluation_intervals(steps, freq))
    assert [stop - 1 for _, stop in pieces] == expected
    assert [s for start, stop in pieces for s in range(start, stop)] == list(range(steps))


def diverging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update) -> str:
    """Train with Tape's update replaced; returns the error's message."""
    monkeypatch.setattr(Tape, "update", update)
    with pytest.raises(NonFiniteError) as error:
        train(make(tmp_path))
    assert not (tmp_path / "job" / "done").exists()
    assert not is_locked(tmp_path / "job")
    return str(error.value)


@pytest.mark.parametrize("kind", ["tensor", "float"])
def test_a_loss_that_is_not_finite_ends_the_job_and_the_records_before_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    def update(self, minibatches, unlabeled=None):
        Tape.seen.append(minibatches)
        t = len(Tape.seen) - 1
        penalty = {7: float("inf"), 8: float("nan")}.get(t, 0.5)
        loss = 1.0 if t < 8 else float("nan")
        figures = {"loss": loss, "penalty": penalty}
        return figures if kind == "float" else {name: torch.tensor(value) for name, value in figures.items()}

    message = diverging(tmp_path, monkeypatch, update)
    assert message.startswith("at step 7 penalty is inf; the job ends")
    records, _ = read_job(tmp_path / "job")
    assert [r["step"] for r in records] == [0, 5]
    assert all(np.isfinite(r["loss"]) for r in records)


def test_weights_that_are_not_finite_end_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def update(self, minibatches, unlabeled=None):
        Tape.seen.append(minibatches)
        if len(Tape.seen) == 11:  # the last, after which no loss would tell
            self.weight.data[0, 0] = float("nan")
        return {"loss": 1.0}

    assert "at step 10 the update left weights of weight" in diverging(tmp_path, monkeypatch, update)
    assert [r["step"] for r in read_job(tmp_path / "job")[0]] == [0, 5]


def test_started_again_it_ends_the_same_way(tmp_path: Path):
    args = {"algorithm": "ERM", "hparams": '{"lr": 1e30}'}
    messages = []
    for _ in range(2):
        with pytest.raises(NonFiniteError) as error:
            train(make(tmp_path, **args))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_records(tmp_path: Path):
    steps_told = []
    train(make(tmp_path, hparams='{"batch_size": 4}'), on_record=steps_told.append)
    records, problems = read_job(tmp_path / "job")
    assert problems == []
    assert [r["step"] for r in records] == steps_told == [0, 5, 10]
    # the smallest in split has 8 images: two batches of 4 are an epoch
    assert [r["epoch"] for r in records] == [0, 2.5, 5]
    assert [r["loss"] for r in records] == [1, np.mean([2, 3, 4, 5, 6]), np.mean([7, 8, 9, 10, 11])]
    assert [r.get("even") for r in records] == [None, 1.5, 1.5]
    for r in records:
        assert r["args"]["dataset"] == "Tiny"
        assert r["args"]["test_envs"] == [1]
        assert r["args"]["hparams"] == '{"batch_size": 4}'
        assert r["hparams"]["batch_size"] == 4
        assert r["step_time"] > 0
        assert set(r) >= {f"env{i}_{part}_acc" for i in range(3) for part in ("in", "out")}


def test_accuracies_against_a_plain_count(tmp_path: Path):
    train(make(tmp_path, trial_seed=3))
    record = read_job(tmp_path / "job")[0][-1]
    model = load_model(tmp_path / "job" / "model.pkl")
    for i, environment in enumerate(Tiny(None, [1], {}, trial_seed=3)):
        split = split_environment(len(environment), i, 3, 0.2)
        for part, indices in (("in", split.in_), ("out", split.out)):
            right = 0
            for k in indices:
                with torch.no_grad():
                    logits = model.predict(torch.from_numpy(environment.images[k : k + 1]).float())
                right += int(logits.argmax() == environment.labels[k])
            assert record[f"env{i}_{part}_acc"] == right / len(indices)


def test_a_single_logit_is_a_binary_answer(tmp_path: Path):
    train(make(tmp_path, algorithm="OneLogit", steps=1))
    record = read_job(tmp_path / "job")[0][0]
    for i, environment in enumerate(Tiny(None, [1], {}, trial_seed=0)):
        split = split_environment(len(environment), i, 0, 0.2)
        right = (environment.images[:, 0, 0, 0] > 0.5) == environment.labels
        assert record[f"env{i}_in_acc"] == pytest.approx(right[split.in_].mean())


def test_batches_come_from_the_in_splits_of_the_training_environments(tmp_path: Path):
    train(make(tmp_path, hparams='{"batch_size": 100}'))  # more than an environment has
    dataset = Tiny(None, [1], {}, trial_seed=0)
    assert len(Tape.seen) == 11
    for position, env in enumerate((0, 2)):
        images, labels = dataset[env].images.astype(np.float32), dataset[env].labels
        split = split_environment(len(images), env, 0, 0.2)
        allowed = {(images[k].tobytes(), int(labels[k])) for k in split.in_}
        shown = set()
        for minibatches, unlabeled in Tape.seen:
            assert unlabeled is None
            x, y = minibatches[position]
            assert x.shape == (100, 1, 8, 8)
            shown |= {(image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True)}
        assert shown == allowed


def test_adaptation_shows_test_images_without_labels(tmp_path: Path):
    train(make(tmp_path, task="domain_adaptation", uda_holdout_fraction=0.5, hparams='{"batch_size": 7}'))
    dataset = Tiny(None, [1], {}, trial_seed=0)
    split = split_environment(20, 1, 0, 0.2, uda_fraction=0.5)
    allowed = {dataset[1].images[k].astype(np.float32).tobytes() for k in split.uda}
    for _, (images,) in Tape.seen:
        assert images.shape == (7, 1, 8, 8)
        assert {image.numpy().tobytes() for image in images} <= allowed
    record = read_job(tmp_path / "job")[0][0]
    assert "env1_uda_acc" in record
    assert "env0_uda_acc" not in record


def without_times(folder: Path) -> list[dict]:
    records = [{k: v for k, v in r.items() if k not in TIMES} for r in read_job(folder)[0]]
    for r in records:
        r["args"].pop("output_dir", None)
    return records


def test_same_arguments_same_records_and_weights(tmp_path: Path):
    config = {"dataset": "ColoredDigits", "algorithm": "ERM", "steps": 11, "checkpoint_freq": 5}
    for name, more in {"a": {}, "b": {}, "seed": {"seed": 1}, "trial": {"trial_seed": 1}}.items():
        train(make(tmp_path, **config, **more, output_dir=str(tmp_path / name)))
    a, b, seed, trial = (without_times(tmp_path / name) for name in ("a", "b", "seed", "trial"))
    assert a == b
    assert a[-1]["loss"] not in (seed[-1]["loss"], trial[-1]["loss"])
    models = [load_model(tmp_path / name / "model.pkl").state_dict() for name in ("a", "b")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_models_are_left_as_asked(tmp_path: Path):
    train(make(tmp_path, save_model_every_checkpoint=True))
    names = {p.name for p in (tmp_path / "job").iterdir()}
    assert names == {
        "results.jsonl",
        "done",
        "model.pkl",
        "model_step0.pkl",
        "model_step5.pkl",
        "model_step10.pkl",
    }
    assert (tmp_path / "job" / "done").read_text() == "done"
    train(make(tmp_path, skip_model_save=True, output_dir=str(tmp_path / "other")))
    assert {p.name for p in (tmp_path / "other").iterdir()} == {"results.jsonl", "done"}


def test_a_finished_run_is_not_overwritten(tmp_path: Path):
    train(make(tmp_path))
    before = (tmp_path / "job" / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match="holds a finished run; delete it or choose another --output_dir"):
        train(make(tmp_path, seed=1))
    assert (tmp_path / "job" / "results.jsonl").read_bytes() == before


def test_an_unfinished_run_is_begun_anew(tmp_path: Path):
    train(make(tmp_path))
    (tmp_path / "job" / "done").unlink()
    with open(tmp_path / "job" / "results.jsonl", "a") as file:
        file.write('{"step": 15, "torn')
    train(make(tmp_path))
    records, problems = read_job(tmp_path / "job")
    assert [r["step"] for r in records] == [0, 5, 10]
    assert problems == []


def test_another_jobs_unfinished_run_is_kept(tmp_path: Path):
    train(make(tmp_path, seed=1))
    (tmp_path / "job" / "done").unlink()
    before = (tmp_path / "job" / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"holds another, unfinished run \(.*seed 1, steps 11.*choose another"):
        train(make(tmp_path, seed=2))
    assert (tmp_path / "job" / "results.jsonl").read_bytes() == before
    train(make(tmp_path, seed=1, skip_model_save=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema_version": 2}, "holds records of schema version 2, of which this domainbed knows nothing"),
        ({"args": None}, r"holds another, unfinished run \(dataset None, "),
        ({"args": ...}, r"holds another, unfinished run \(dataset None, "),
    ],
    ids=str,
)
def test_records_that_tell_nothing_of_their_job_are_kept(tmp_path: Path, change: dict, told: str):
    """A later version's, say, whose checkpoint is gone."""
    train(make(tmp_path))
    (tmp_path / "job" / "done").unlink()
    path = tmp_path / "job" / "results.jsonl"
    records = [json.loads(line) | change for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if v is not ...}) + "\n" for r in records))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=told):
        train(make(tmp_path))
    assert path.read_bytes() == before


def test_one_process_a_job(tmp_path: Path):
    def meanwhile(step: int) -> None:
        assert is_locked(tmp_path / "job")
        with pytest.raises(UsageError, match="is being trained by another process"):
            train(make(tmp_path))

    train(make(tmp_path, steps=1), on_record=meanwhile)
    assert not is_locked(tmp_path / "job")
    assert [r["step"] for r in read_job(tmp_path / "job")[0]] == [0]


def test_an_algorithm_that_refuses_its_hyperparameters(tmp_path: Path):
    with pytest.raises(UsageError, match="ERM can't be made with these hyperparameters: Invalid learning rate: -1"):
        train(make(tmp_path, algorithm="ERM", hparams='{"lr": -1}'))
    assert list(tmp_path.iterdir()) == []


def test_many_steps_between_evaluations_come_in_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(make(tmp_path, steps=9, checkpoint_freq=100))
    whole = [[x for x, _ in minibatches] for minibatches, _ in Tape.seen]
    monkeypatch.setattr(data, "TABLE", 4)
    train(make(tmp_path, steps=9, checkpoint_freq=100, output_dir=str(tmp_path / "tables")))
    assert len(whole) == len(Tape.seen) == 9
    for images, (minibatches, _) in zip(whole, Tape.seen, strict=True):
        assert all(torch.equal(a, b) for a, (b, _) in zip(images, minibatches, strict=True))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"holdout_fraction": 0.05}, "environment 0 is too small to split: of its 10 images"),
        ({"dataset": "ColoredMNIST"}, "needs --data_dir"),
        ({"imports": ("no_such_module",)}, "can't import your module no_such_module"),
    ],
)
def test_nothing_is_written_before_all_has_proved_good(tmp_path: Path, kwargs: dict, message: str):
    with pytest.raises(UsageError, match=message):
        train(make(tmp_path, **kwargs))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output_dir .*file/job: Not a directory"):
        train(make(tmp_path, output_dir=str(tmp_path / "file" / "job")))


def test_loading_what_is_no_model(tmp_path: Path):
    """Told in one line, without torch's advice to run whatever code is in the file."""
    (tmp_path / "text").write_text("# hello\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "pickle").write_bytes(pickle.dumps(torch.nn.Linear(1, 1)))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module")
    torch.save({"a": 1}, tmp_path / "other")
    torch.save([1], tmp_path / "list")
    (tmp_path / "torn").write_bytes((tmp_path / "other").read_bytes()[:-30])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("text", "empty", "pickle", "module", "other", "list", "torn"):
            with pytest.raises(UsageError) as raised:
                load_model(tmp_path / name)
            assert str(raised.value) == f"{tmp_path / name} holds no model that train wrote"
    with pytest.raises(UsageError, match=r"cannot load a model from .*missing: No such file or directory"):
        load_model(tmp_path / "missing")


def test_weights_that_are_another_models_are_told_in_one_line(tmp_path: Path):
    train(make(tmp_path, dataset="RotatedDigits", algorithm="ERM", steps=2))
    saved = torch.load(tmp_path / "job" / "model.pkl", weights_only=True)
    torch.save(saved | {"model_dict": {}}, tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"cannot load a model from .*mixed: RuntimeError: Error\(s\) in") as raised:
        load_model(tmp_path / "mixed")
    assert "\n" not in str(raised.value)


def test_a_saved_model_predicts_as_it_did(tmp_path: Path):
    train(make(tmp_path, dataset="RotatedDigits", algorithm="ERM", steps=2))
    model = load_model(str(tmp_path / "job" / "model.pkl"))
    assert not model.training
    logits = model.predict(torch.rand(4, 1, 8, 8))
    assert logits.shape == (4, 10)
    saved = torch.load(tmp_path / "job" / "model.pkl", weights_only=True)
    assert saved["model_hparams"] == model.hparams
    assert json.loads(json.dumps(saved["args"]))["dataset"] == "RotatedDigits"
