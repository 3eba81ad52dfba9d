"""A job on small data: its records against values computed here, its model, and its files."""

import itertools
import json
import os
import pickle
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.datasets import DATASETS, ArrayEnvironment, MultipleDomainDataset
from domainbed.engine import data
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import is_locked
from domainbed.engine.metrics import NonFiniteError
from domainbed.engine.model import load_model
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.loading.splits import split_environment
from domainbed.records import CHECKPOINT_FILE, read_job

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


SEEN: list = []  # the batches that the last instance of the class below has received


class RecordsBatches(Algorithm):
    """An algorithm as written for DomainBed, which returns floats. It keeps the batches that it receives."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.weight = torch.nn.Parameter(torch.randn(num_classes, input_shape[0] * input_shape[1] * input_shape[2]))
        self.num_domains = num_domains
        SEEN.clear()

    def update(self, minibatches, unlabeled=None):
        assert self.training
        assert len(minibatches) == self.num_domains
        SEEN.append((minibatches, unlabeled))
        metrics = {"loss": float(len(SEEN))}
        return metrics | ({"even": 1.5} if len(SEEN) % 2 == 0 else {})

    def predict(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return x.flatten(1) @ self.weight.T


class OneLogit(RecordsBatches):
    """An algorithm with a single logit, which is positive for class 1."""

    def predict(self, x):
        return x.flatten(1)[:, :1] - 0.5


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with (
        DATASETS.temporarily("Tiny", Tiny),
        ALGORITHMS.temporarily("RecordsBatches", RecordsBatches),
        ALGORITHMS.temporarily("OneLogit", OneLogit),
    ):
        yield


def make(tmp_path: Path, **kwargs) -> JobConfig:
    defaults = {
        "dataset": "Tiny",
        "algorithm": "RecordsBatches",
        "test_envs": (1,),
        "output_dir": str(tmp_path / "job"),
    }
    return JobConfig(**{**defaults, **kwargs})


@pytest.mark.parametrize(("steps", "freq"), list(itertools.product([1, 2, 10, 11, 12, 23], [1, 5, 10, 100])))
def test_evaluations_follow_the_protocol(tmp_path: Path, steps: int, freq: int):
    """After every `checkpoint_freq`-th update and the last one; the updates between evaluations add up to all."""
    config = make(tmp_path, steps=steps, checkpoint_freq=freq)
    evaluated = [step for step in range(steps) if config.is_evaluation_due(step)]
    assert evaluated == [step for step in range(steps) if step % freq == 0 or step == steps - 1]
    assert evaluated == config.evaluation_steps()
    intervals = [config.updates_since_evaluation(step) for step in evaluated]
    assert list(itertools.accumulate(intervals)) == [step + 1 for step in evaluated]


def train_diverging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update) -> str:
    """Train with this `update`, and return the error message."""
    monkeypatch.setattr(RecordsBatches, "update", update)
    with pytest.raises(NonFiniteError) as error:
        train(make(tmp_path))
    assert not (tmp_path / "job" / "done").exists()
    assert not is_locked(tmp_path / "job")
    return str(error.value)


@pytest.mark.parametrize("kind", ["tensor", "float"])
def test_nonfinite_metric_fails_the_job_and_keeps_earlier_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    def update(self, minibatches, unlabeled=None):
        SEEN.append(minibatches)
        step = len(SEEN) - 1
        penalty = {7: float("inf"), 8: float("nan")}.get(step, 0.5)
        loss = 1.0 if step < 8 else float("nan")
        metrics = {"loss": loss, "penalty": penalty}
        return metrics if kind == "float" else {name: torch.tensor(value) for name, value in metrics.items()}

    message = train_diverging(tmp_path, monkeypatch, update)
    assert message.startswith("training diverged at step 7: penalty is inf; records of earlier steps are kept")
    records, _ = read_job(tmp_path / "job")
    assert [r["step"] for r in records] == [0, 5]
    assert all(np.isfinite(r["loss"]) for r in records)


def test_nonfinite_weights_fail_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def update(self, minibatches, unlabeled=None):
        SEEN.append(minibatches)
        if len(SEEN) == 11:  # the last one: no later loss would show it
            self.weight.data[0, 0] = float("nan")
        return {"loss": 1.0}

    assert "diverged at step 10: the weights of weight are not finite after the update" in train_diverging(
        tmp_path, monkeypatch, update
    )
    assert [r["step"] for r in read_job(tmp_path / "job")[0]] == [0, 5]


def test_diverged_job_diverges_again_with_the_same_message(tmp_path: Path):
    args = {"algorithm": "VREx", "hparams": '{"vrex_lambda": 1e39, "vrex_penalty_anneal_iters": 0}'}
    messages = []
    for _ in range(2):
        with pytest.raises(NonFiniteError) as error:
            train(make(tmp_path, **args))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_records(tmp_path: Path):
    recorded_steps: list[int] = []
    train(make(tmp_path, hparams='{"batch_size": 4}'), JobControl(on_record=recorded_steps.append))
    records, problems = read_job(tmp_path / "job")
    assert problems == []
    assert [r["step"] for r in records] == recorded_steps == [0, 5, 10]
    # The smallest in split has 8 images: an epoch is two batches of 4.
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


def test_accuracies_equal_a_plain_count(tmp_path: Path):
    train(make(tmp_path, trial_seed=3))
    record = read_job(tmp_path / "job")[0][-1]
    model = load_model(tmp_path / "job" / "model.pkl")
    for i, environment in enumerate(Tiny(None, [1], {}, trial_seed=3)):
        split = split_environment(len(environment), i, 3, 0.2)
        for part, indices in (("in", split.in_), ("out", split.out)):
            correct = 0
            for k in indices:
                with torch.no_grad():
                    logits = model.predict(torch.from_numpy(environment.images[k : k + 1]).float())
                correct += int(logits.argmax() == environment.labels[k])
            assert record[f"env{i}_{part}_acc"] == correct / len(indices)


def test_single_logit_predicts_two_classes(tmp_path: Path):
    train(make(tmp_path, algorithm="OneLogit", steps=1))
    record = read_job(tmp_path / "job")[0][0]
    for i, environment in enumerate(Tiny(None, [1], {}, trial_seed=0)):
        split = split_environment(len(environment), i, 0, 0.2)
        correct = (environment.images[:, 0, 0, 0] > 0.5) == environment.labels
        assert record[f"env{i}_in_acc"] == pytest.approx(correct[split.in_].mean())


def test_batches_contain_only_in_splits_of_training_environments(tmp_path: Path):
    train(make(tmp_path, hparams='{"batch_size": 100}', skip_model_save=True))  # larger than any environment
    dataset = Tiny(None, [1], {}, trial_seed=0)
    assert len(SEEN) == 11
    for position, env in enumerate((0, 2)):
        images, labels = dataset[env].images.astype(np.float32), dataset[env].labels
        split = split_environment(len(images), env, 0, 0.2)
        expected = {(images[k].tobytes(), int(labels[k])) for k in split.in_}
        seen = set()
        for minibatches, unlabeled in SEEN:
            assert unlabeled is None
            x, y = minibatches[position]
            assert x.shape == (100, 1, 8, 8)
            seen |= {(image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True)}
        assert seen == expected


def test_domain_adaptation_receives_unlabeled_test_images(tmp_path: Path):
    task = {"task": "domain_adaptation", "uda_holdout_fraction": 0.5}
    train(make(tmp_path, **task, hparams='{"batch_size": 7}', skip_model_save=True))
    assert len(SEEN) == 11
    dataset = Tiny(None, [1], {}, trial_seed=0)
    split = split_environment(20, 1, 0, 0.2, uda_fraction=0.5)
    allowed = {dataset[1].images[k].astype(np.float32).tobytes() for k in split.uda}
    for _, (images,) in SEEN:
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


def test_group_can_write_to_all_files_of_a_job(tmp_path: Path):
    """Several users can share a sweep with umask 002: no file has permissions of its own, as a temporary file would."""
    config = JobConfig(
        "ColoredDigits", "ERM", (2,), steps=3, checkpoint_freq=1, save_best_model=True, save_predictions=True,
        hparams='{"batch_size": 4}', output_dir=str(tmp_path / "shared" / "job"), log_to=("csv",),
    )  # fmt: skip
    before = os.umask(0o002)
    try:
        with pytest.raises(Interrupted):
            train(config, JobControl(should_stop=iter([False] * 8 + [True] * 99).__next__))
        files = {path.name: path.stat().st_mode for path in (tmp_path / "shared").rglob("*")}
        train(config)
        files |= {path.name: path.stat().st_mode for path in (tmp_path / "shared").rglob("*")}
    finally:
        os.umask(before)
    names = {"job", CHECKPOINT_FILE, "results.jsonl", "model.pkl", "model_best.pkl", "predictions.npz", "done"}
    assert files.keys() >= names
    assert all(mode & stat.S_IRGRP and mode & stat.S_IWGRP for mode in files.values()), files


def test_equal_arguments_give_equal_records_and_weights(tmp_path: Path):
    config = {"dataset": "ColoredDigits", "algorithm": "ERM", "steps": 11, "checkpoint_freq": 5}
    for name, more in {"a": {}, "b": {}, "seed": {"seed": 1}, "trial": {"trial_seed": 1}}.items():
        train(make(tmp_path, **config, **more, output_dir=str(tmp_path / name)))
    a, b, seed, trial = (without_times(tmp_path / name) for name in ("a", "b", "seed", "trial"))
    assert a == b
    assert a[-1]["loss"] not in (seed[-1]["loss"], trial[-1]["loss"])
    models = [load_model(tmp_path / name / "model.pkl").state_dict() for name in ("a", "b")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_saved_models_match_the_options(tmp_path: Path):
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


def test_finished_run_is_not_overwritten(tmp_path: Path):
    train(make(tmp_path))
    before = (tmp_path / "job" / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match="contains a finished run; delete it or choose another --output_dir"):
        train(make(tmp_path, seed=1))
    assert (tmp_path / "job" / "results.jsonl").read_bytes() == before


def test_unfinished_run_without_checkpoint_starts_over(tmp_path: Path):
    train(make(tmp_path))
    (tmp_path / "job" / "done").unlink()
    with open(tmp_path / "job" / "results.jsonl", "a") as file:
        file.write('{"step": 15, "torn')
    train(make(tmp_path))
    records, problems = read_job(tmp_path / "job")
    assert [r["step"] for r in records] == [0, 5, 10]
    assert problems == []


def test_unfinished_run_of_another_job_is_kept(tmp_path: Path):
    train(make(tmp_path, seed=1))
    (tmp_path / "job" / "done").unlink()
    before = (tmp_path / "job" / "results.jsonl").read_bytes()
    with pytest.raises(
        UsageError, match=r"contains another, unfinished run \(seed is 1 there, not 2\); choose another"
    ):
        train(make(tmp_path, seed=2))
    assert (tmp_path / "job" / "results.jsonl").read_bytes() == before
    train(make(tmp_path, seed=1, skip_model_save=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "contains records of schema version 2, which this version of domainbed cannot read"),
        ({"args": None}, r"contains another, unfinished run \(dataset is None there, not Tiny; "),
        ({"args": ...}, r"contains another, unfinished run \(dataset is None there, not Tiny; "),
    ],
    ids=str,
)
def test_records_without_known_arguments_are_kept(tmp_path: Path, change: dict, message: str):
    """Such as those of a later version, after its checkpoint was deleted."""
    train(make(tmp_path))
    (tmp_path / "job" / "done").unlink()
    path = tmp_path / "job" / "results.jsonl"
    records = [json.loads(line) | change for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if v is not ...}) + "\n" for r in records))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=message):
        train(make(tmp_path))
    assert path.read_bytes() == before


def test_only_one_process_trains_a_job(tmp_path: Path):
    def train_again(step: int) -> None:
        assert is_locked(tmp_path / "job")
        with pytest.raises(UsageError, match="is being trained by another process"):
            train(make(tmp_path))

    train(make(tmp_path, steps=1), JobControl(on_record=train_again))
    assert not is_locked(tmp_path / "job")
    assert [r["step"] for r in read_job(tmp_path / "job")[0]] == [0]


def test_invalid_hyperparameter_is_reported_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UsageError, match="--hparams lr must be above 0 and at most 1,000,000, not -1"):
        train(make(tmp_path, algorithm="ERM", hparams='{"lr": -1}'))
    assert list(tmp_path.iterdir()) == []


def test_batches_do_not_depend_on_how_many_steps_are_drawn_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train(make(tmp_path, steps=9, checkpoint_freq=100, skip_model_save=True))
    expected = [[x for x, _ in minibatches] for minibatches, _ in SEEN]
    monkeypatch.setattr(data, "CHUNK_STEPS", 4)
    train(make(tmp_path, steps=9, checkpoint_freq=100, skip_model_save=True, output_dir=str(tmp_path / "chunks")))
    assert len(expected) == len(SEEN) == 9
    for images, (minibatches, _) in zip(expected, SEEN, strict=True):
        assert all(torch.equal(a, b) for a, (b, _) in zip(images, minibatches, strict=True))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"holdout_fraction": 0.05}, "environment 0 is too small to split: .*10 images"),
        ({"dataset": "ColoredMNIST"}, "requires --data_dir"),
        ({"imports": ("no_such_module",)}, "cannot import module no_such_module"),
    ],
)
def test_nothing_is_written_if_the_arguments_are_invalid(tmp_path: Path, kwargs: dict, message: str):
    with pytest.raises(UsageError, match=message):
        train(make(tmp_path, **kwargs))
    assert list(tmp_path.iterdir()) == []


def test_output_folder_that_cannot_be_created_is_reported(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--output_dir .*file/job: Not a directory"):
        train(make(tmp_path, output_dir=str(tmp_path / "file" / "job")))


def test_loading_another_file_as_a_model_is_reported(tmp_path: Path):
    """In one line, without torch's advice to run any code in the file."""
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
            assert str(raised.value) == f"{tmp_path / name} is not a model saved by train"
    with pytest.raises(UsageError, match=r"cannot load a model from .*missing: No such file or directory"):
        load_model(tmp_path / "missing")


def test_loading_weights_of_another_model_is_reported_in_one_line(tmp_path: Path):
    train(make(tmp_path, dataset="RotatedDigits", algorithm="ERM", steps=2))
    saved = torch.load(tmp_path / "job" / "model.pkl", weights_only=True)
    torch.save(saved | {"model_dict": {}}, tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"cannot load a model from .*mixed: RuntimeError: Error\(s\) in") as raised:
        load_model(tmp_path / "mixed")
    assert "\n" not in str(raised.value)


def test_saved_model_predicts(tmp_path: Path):
    train(make(tmp_path, dataset="RotatedDigits", algorithm="ERM", steps=2))
    model = load_model(str(tmp_path / "job" / "model.pkl"))
    assert not model.training
    logits = model.predict(torch.rand(4, 1, 8, 8))
    assert logits.shape == (4, 10)
    saved = torch.load(tmp_path / "job" / "model.pkl", weights_only=True)
    assert saved["model_hparams"] == model.hparams
    assert json.loads(json.dumps(saved["args"]))["dataset"] == "RotatedDigits"
