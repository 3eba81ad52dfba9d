"""`--save_predictions`: the file agrees with the records, disturbed jobs write the same one, and images keep names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.datasets import DATASETS, FeatureEnvironment
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.predictions import PredictionLog
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.loading.base import Request
from domainbed.loading.splits import split_environment
from domainbed.predictions import PARTS, PREDICTIONS_FILE, Predictions, load_predictions
from domainbed.records import append_record, read_job, validation_accuracy
from tests.engine.test_resume import NOT_COMPARED, DrawsRandomly, crash_at, make, stop_at, train_disturbed
from tests.engine.test_train import Tiny
from tests.images import write_tree


class NearTies(Algorithm):
    """Predicts logits that differ by less than float16 can tell."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def update(self, minibatches, unlabeled=None):
        return {"loss": 0.0}

    def predict(self, x):
        noise = torch.frac(x.flatten(1).sum(1, keepdim=True) * torch.tensor([1e3, 2e3, 3e3]))
        return 50 + 1e-5 * noise + self.weight


class OneLogit(NearTies):
    """A network with a single logit for two classes."""

    def predict(self, x):
        return x.flatten(1).mean(1, keepdim=True) - 0.4 + 1e-7 * self.weight


@pytest.fixture(scope="module", autouse=True)
def registered():
    with (
        DATASETS.temporarily("Tiny", Tiny),
        ALGORITHMS.temporarily("DrawsRandomly", DrawsRandomly),
        ALGORITHMS.temporarily("NearTies", NearTies),
        ALGORITHMS.temporarily("OneLogit", OneLogit),
    ):
        yield


def digits(folder: Path, **kwargs) -> JobConfig:
    defaults = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (2,), "steps": 7, "checkpoint_freq": 3}
    hparams = '{"batch_size": 16}'
    return JobConfig(**{**defaults, "hparams": hparams, "save_predictions": True, "output_dir": str(folder), **kwargs})


def run(config: JobConfig) -> Predictions:
    train(config)
    return load_predictions(Path(config.output_dir))


def check_against_records(folder: Path) -> int:
    """Compare all accuracies with those of the records, exactly. Return the number of splits."""
    saved, records = load_predictions(folder), {record["step"]: record for record in read_job(folder)[0]}
    n = 0
    for position, step in enumerate(saved.steps.tolist()):
        accuracies = {name: value for name, value in records[step].items() if name.endswith("_acc")}
        found = {
            f"env{env}_{part}_acc": saved.accuracy(position, rows)
            for env in range(len(saved.environments))
            for part in PARTS
            if len(rows := saved.rows(position, env, part))
        }
        assert found == accuracies
        n += len(found)
    return n


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"eval": "splits"},
        {"eval": "selection"},
        {"eval": "leave_one_out", "test_envs": (0, 2)},
        {"averaging": "swad"},
        {"averaging": "sma"},
        {"dataset": "Tiny", "algorithm": "NearTies"},
        {"task": "domain_adaptation", "uda_holdout_fraction": 0.3},
    ],
    ids=str,
)
def test_accuracies_are_those_of_the_records(tmp_path: Path, more: dict):
    config = digits(tmp_path / "job", **more)
    saved = run(config)
    records, _ = read_job(tmp_path / "job")
    best = max(records, key=validation_accuracy)["step"]
    assert saved.steps.tolist() == sorted({records[-1]["step"]} | (set() if "swad" in more.values() else {best}))
    assert check_against_records(tmp_path / "job") >= 3
    # Saving predictions changes neither the job's folder nor its records.
    without = digits(tmp_path / "without", **more, save_predictions=False)
    train(without)
    assert without.name() == config.name()
    assert not (tmp_path / "without" / PREDICTIONS_FILE).exists()
    results = [(tmp_path / name / "results.jsonl").read_bytes() for name in ("job", "without")]
    with_option, without_option = (NOT_COMPARED.sub(b"", result) for result in results)
    assert with_option.replace(b'"save_predictions": true', b'"save_predictions": false') == without_option


def test_near_ties_are_rounded_but_counted_right(tmp_path: Path):
    saved = run(make(tmp_path / "job", algorithm="NearTies", save_predictions=True))
    rounded = saved.log_probabilities[-1].argmax(-1)
    assert (rounded != saved.predicted[-1]).any()
    assert check_against_records(tmp_path / "job") == 12


def test_logits_can_be_restored(tmp_path: Path):
    saved = run(make(tmp_path / "job", algorithm="OneLogit", dataset="ColoredDigits", save_predictions=True))
    assert saved.log_probabilities.shape[-1] == 2
    logits = saved.log_probabilities.astype(np.float64) + saved.logsumexp[..., None]
    images = np.concatenate([environment.images for environment in DATASETS["ColoredDigits"](None, (1,), {}, 0)])
    expected = images.reshape(len(images), -1).mean(1) / 255 - 0.4
    np.testing.assert_allclose(logits[-1], np.stack([0 * expected, expected], 1), atol=1e-3)
    assert (saved.predicted[-1] == (expected > 0)).all()
    np.testing.assert_allclose(np.exp(saved.log_probabilities.astype(float)).sum(-1), 1, atol=1e-3)


@pytest.mark.parametrize("more", [{}, {"averaging": "swad"}, {"eval": "selection"}], ids=str)
def test_disturbed_job_writes_the_same_file(tmp_path: Path, more: dict):
    """Stopped or killed before, during and after evaluations, with a checkpoint after every update."""
    more = {"steps": 8, "checkpoint_freq": 2, "save_predictions": True, **more}
    train(make(tmp_path / "job", **more))
    expected = (tmp_path / "job" / PREDICTIONS_FILE).read_bytes()
    assert len(load_predictions(tmp_path / "job").steps) == 1 + ("averaging" not in more)
    for i, ends in enumerate([[stop_at(n)] for n in (3, 9, 14, 22)] + [[crash_at(n) for n in (12, 9, 3, 8)]]):
        folder = tmp_path / str(i)
        assert train_disturbed(make(folder, **more, save_every=1e-9), ends) >= 1
        assert (folder / PREDICTIONS_FILE).read_bytes() == expected
        assert not list(folder.glob("*.part"))


def test_file_of_a_lost_future_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A job that dies after it has written predictions, but before their record, writes them again."""
    train(make(tmp_path / "job", save_predictions=True, steps=8, checkpoint_freq=2))
    expected = (tmp_path / "job" / PREDICTIONS_FILE).read_bytes()
    for n in range(3):
        calls = iter(range(100))

        def die(*args, n=n, calls=calls) -> None:
            if next(calls) == n:
                raise KeyboardInterrupt
            append_record(*args)

        config = make(tmp_path / f"killed {n}", save_predictions=True, steps=8, checkpoint_freq=2)
        with monkeypatch.context() as patch:
            patch.setattr("domainbed.engine.recorder.append_record", die)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        train(config)
        assert (Path(config.output_dir) / PREDICTIONS_FILE).read_bytes() == expected


@pytest.mark.parametrize("content", [None, b"oops"])
def test_lost_file_is_reported(tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture):
    """Such as that of a job that is resumed with this option, but was not started with it."""
    config = make(tmp_path / "job", save_predictions=True, steps=8, checkpoint_freq=2, save_every=1e-9)
    undisturbed = make(tmp_path / "undisturbed", save_predictions=True, steps=8, checkpoint_freq=2)
    best, last = run(undisturbed).steps.tolist()
    evaluated: list[int] = []
    with pytest.raises(Interrupted):
        train(config, JobControl(should_stop=lambda: best in evaluated, on_record=evaluated.append))
    path = tmp_path / "job" / PREDICTIONS_FILE
    assert path.exists()
    path.unlink() if content is None else path.write_bytes(content)
    assert run(config).steps.tolist() == [last]
    assert f"lacks the predictions of step {best}, the best by validation accuracy" in capsys.readouterr().out


def test_images_keep_their_names(tmp_path: Path):
    """Over algorithms and hyperparameters, and over trials, in which digits are in other environments."""
    source = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    first = run(digits(tmp_path / "0"))
    for i, more in enumerate([{"algorithm": "CORAL", "hparams_seed": 1}, {"test_envs": (0,)}], start=1):
        other = run(digits(tmp_path / str(i), **more, steps=1))
        for name in ("environment", "index", "image", "label"):
            assert (getattr(other, name) == getattr(first, name)).all()
    for trial in (0, 3):
        saved = run(digits(tmp_path / f"trial {trial}", trial_seed=trial, steps=1))
        dataset = DATASETS["ColoredDigits"](None, (2,), {}, trial)
        for env, index, image, label in zip(saved.environment, saved.index, saved.image, saved.label, strict=True):
            assert (dataset[env].images[index].max(0) == source[int(image)]).all()
            assert dataset[env].labels[index] == label
        assert sorted(map(int, saved.image)) == list(range(len(source)))


def test_image_files_are_named_by_their_paths(tmp_path: Path):
    tree = write_tree(tmp_path / "tree", {name: {"car": 3, "tram": 3} for name in ("day", "night", "dusk")})
    saved = run(
        digits(tmp_path / "job", dataset="Folder", data_dir=str(tree), algorithm="OneLogit", steps=1, test_envs=(0,))
    )
    assert saved.classes == ("car", "tram")
    for environment, image, label in zip(saved.environment, saved.image, saved.label, strict=True):
        assert (tree / image).is_file()
        assert image.split("/")[-3:-1] == [saved.environments[environment], saved.classes[label]]
    assert len(set(saved.image)) == 18


def test_features_keep_the_paths_of_their_images():
    class Features(Tiny):
        def __init__(self):
            views = [np.zeros((10, 4), np.float32)]
            self.environments = [FeatureEnvironment(views, np.zeros(10, int), [f"cat/{i}.png" for i in range(10)])] * 2

    splits = [split_environment(10, env, 0, 0.2) for env in range(2)]
    log = PredictionLog(Features(), ["a", "b"], splits)
    assert log._image.tolist() == [f"cat/{i}.png" for i in range(10)] * 2
    with pytest.raises(UsageError, match=r"a logit of each of the 3 classes, but the algorithm returns 5"):
        log.add(Request(0, np.arange(2)), torch.zeros(2, 5))
