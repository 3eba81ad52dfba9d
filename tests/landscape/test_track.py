"""`--track landscape`: recorded distances compared with per-sample gradients; training is unchanged."""

import copy
import json
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS, ERM, sma
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.model import load_model
from domainbed.engine.tracking import TRACKERS, Tracker
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.landscape import PREFIX, QUANTITIES, track
from domainbed.records import read_job
from tests.algorithms import checks


def make_config(folder: Path, **options) -> JobConfig:
    defaults = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (1,), "steps": 8, "checkpoint_freq": 4}
    hparams = json.dumps({"resnet_dropout": 0.0, **options.pop("hparams", {})})
    return JobConfig(**defaults | {"output_dir": str(folder), "hparams": hparams} | options)


def train_and_read(config: JobConfig) -> list[dict]:
    train(config)
    records, problems = read_job(Path(config.output_dir))
    assert not problems
    return records


def expected_distances(config: JobConfig, n: int) -> dict[str, float]:
    """Return the distances at the job's last weights, from per-sample gradients and autograd's Hessian."""
    algorithm = load_model(Path(config.output_dir) / "model.pkl").algorithm
    featurizer, classifier = algorithm.average.network if config.algorithm == "SMA" else algorithm.network
    dataset, splits = load_data(config, config.resolved_hparams())
    domains = []
    for env in (0, 2):
        rows = splits[env].in_[:n]
        x = torch.from_numpy(dataset[env].images[rows]).float() / 255
        y = torch.from_numpy(dataset[env].labels[rows])
        with torch.no_grad():
            z = featurizer(x).double()
        head = copy.deepcopy(classifier).double().requires_grad_()
        gradients = []
        for i in range(len(y)):
            loss = F.cross_entropy(head(z[i : i + 1]), y[i : i + 1])
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))]))
        g = torch.stack(gradients)

        def risk(weight: torch.Tensor, bias: torch.Tensor, z=z, y=y) -> torch.Tensor:
            return F.cross_entropy(z @ weight.T + bias, y)

        hessian = torch.autograd.functional.hessian(risk, (head.weight, head.bias))
        w = head.weight.numel()
        diagonal = [hessian[0][0].reshape(w, w).diagonal(), hessian[1][1].diagonal()]
        domains.append((risk(head.weight, head.bias), g.mean(0), g.var(0, correction=0), torch.cat(diagonal)))
    a, b = domains
    return {PREFIX + name: (u - v).square().sum().item() for name, u, v in zip(QUANTITIES, a, b, strict=True)}


@pytest.mark.parametrize("algorithm", ["ERM", "SMA"])
def test_records_hold_the_distances_between_training_domains(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the weights that predict: those of SMA are averages."""
    monkeypatch.setattr(sma, "START", 3)
    monkeypatch.setattr(track, "MAX_IMAGES", 70)
    config = make_config(tmp_path / "job", algorithm=algorithm, track="landscape")
    records = train_and_read(config)
    assert [r["step"] for r in records] == [0, 4, 7]
    for name, value in expected_distances(config, 70).items():
        assert records[-1][name] == pytest.approx(value, rel=1e-9)
        assert len({r[name] for r in records}) == 3


class CountsPredictions(ERM):
    """An algorithm whose updates depend on how many images it has predicted."""

    def __init__(self, *args):
        super().__init__(*args)
        self.n_predicted = 0

    def predict(self, x):
        self.n_predicted += len(x)
        return super().predict(x)

    def update(self, minibatches, unlabeled=None):
        self.optimizer.param_groups[0]["lr"] = 1e-3 / self.n_predicted if self.n_predicted else 1e-3
        return super().update(minibatches, unlabeled)


@pytest.mark.parametrize("algorithm", ["DANN", "Fish", "Fishr", "SMA", "CountsPredictions"])
def test_tracked_job_equals_untracked_job(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ALGORITHMS._registered, "CountsPredictions", CountsPredictions)
    hparams = {"resnet_dropout": 0.5, "nonlinear_classifier": True}
    configs = [
        make_config(tmp_path / name, algorithm=algorithm, hparams=hparams, track=name)
        for name in ("nothing", "landscape")
    ]
    assert configs[0].name() == configs[1].name()
    untracked, tracked = map(train_and_read, configs)
    for a, b in zip(untracked, tracked, strict=True):
        assert {name for name in b if name not in a} == {PREFIX + name for name in QUANTITIES}
        for name in a.keys() - {"args", "step_time"}:
            assert a[name] == b[name], name
    weights = [load_model(Path(config.output_dir) / "model.pkl").algorithm.state_dict() for config in configs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_single_training_domain_is_not_tracked(tmp_path: Path, capsys: pytest.CaptureFixture):
    records = train_and_read(make_config(tmp_path / "job", test_envs=(0, 1), track="landscape"))
    assert not any(name.startswith(PREFIX) for record in records for name in record)
    assert "--track landscape requires at least 2 training domains; nothing is tracked" in capsys.readouterr().out


def test_algorithm_without_classifier_raises_before_training(tmp_path: Path):
    class Headless(ERM):
        def __init__(self, *args):
            super().__init__(*args)
            del self.featurizer, self.classifier

    with (
        ALGORITHMS.temporarily("Headless", Headless),
        pytest.raises(UsageError, match="Headless has no modules `featurizer` and `classifier`"),
    ):
        train(make_config(tmp_path / "job", algorithm="Headless", track="landscape"))
    assert not (tmp_path / "job").exists()


class Scaled(ERM):
    def predict(self, x):
        return super().predict(x) / 2


class Locked(ERM):
    UNSAVED = ("lock",)

    def __init__(self, *args):
        super().__init__(*args)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Scaled, r"Scaled does not predict by classifier\(featurizer\(x\)\), so its loss landscape cannot be measured"),
        (Locked, "--track landscape requires a copy of Locked, which cannot be made: TypeError: cannot pickle"),
    ],
)
def test_algorithm_that_cannot_be_tracked_raises_before_training(algorithm: type[ERM], message: str, tmp_path: Path):
    name = algorithm.__name__
    with ALGORITHMS.temporarily(name, algorithm), pytest.raises(UsageError, match=message):
        train(make_config(tmp_path / "job", algorithm=name, track="landscape"))
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("name", ["ARM", "MTL"])
def test_checks_of_a_launch_reject_algorithms_that_predict_otherwise(name: str):
    with torch.device("meta"):
        algorithm = checks.make(name, {})
    with pytest.raises(UsageError, match=rf"{name} does not predict by classifier\(featurizer\(x\)\)"):
        track.LandscapeTracker.check(algorithm)


def test_registered_tracker_adds_its_entries(tmp_path: Path):
    class WeightNorm(Tracker):
        PREFIX = "norm_"

        def __init__(self, config, algorithm, splits, feed):
            self.algorithm = algorithm

        def record(self):
            return {"norm_classifier": self.algorithm.classifier.weight.norm().item()}

    with TRACKERS.temporarily("norm", WeightNorm):
        records = train_and_read(make_config(tmp_path / "job", track="norm"))
    algorithm = load_model(tmp_path / "job" / "model.pkl").algorithm
    assert records[-1]["norm_classifier"] == algorithm.classifier.weight.norm().item()
