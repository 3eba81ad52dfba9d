"""What a job's records tell of the landscape, against sums over single samples; and that telling it changes nothing."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import nn
from torch.nn import functional as F

from domainbed.algorithms import ALGORITHMS, ERM
from domainbed.algorithms.base import Algorithm
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.feed import open_feed
from domainbed.engine.model import load_job, make_algorithm
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.landscape import PREFIX, QUANTITIES
from domainbed.landscape import view as landscape
from domainbed.landscape.domain import Domain, statistics
from domainbed.landscape.hessian import full_hessian
from domainbed.landscape.view import classifier_view, network_view, requests_for
from domainbed.loading.base import Feed
from domainbed.loading.splits import Split
from domainbed.records import read_job

CPU = torch.device("cpu")


def make_config(folder: Path, **others) -> JobConfig:
    settings = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": (1,), "steps": 8, "checkpoint_freq": 4}
    hparams = json.dumps({"resnet_dropout": 0.0, **others.pop("hparams", {})})
    return JobConfig(**settings | {"output_dir": str(folder), "hparams": hparams} | others)


def prepared(config: JobConfig) -> tuple[MultipleDomainDataset, list[Split], Feed, Algorithm]:
    dataset, splits = load_data(config)
    return dataset, splits, open_feed(config, dataset, splits, CPU), make_algorithm(config, dataset)


def records_of(config: JobConfig) -> list[dict]:
    train(config)
    records, problems = read_job(Path(config.output_dir))
    assert not problems
    return records


def expected_distances(config: JobConfig, n: int) -> dict[str, float]:
    """Of the job's last model, from gradients of single samples and autograd's Hessian."""
    _, algorithm = load_job(Path(config.output_dir) / "model.pkl")
    dataset, splits = load_data(config)
    of_domains = []
    for env in (0, 2):
        rows = splits[env].in_[:n]
        x = torch.from_numpy(dataset[env].images[rows]).float() / 255
        y = torch.from_numpy(dataset[env].labels[rows])
        with torch.no_grad():
            z = algorithm.featurizer(x).double()
        head = copy.deepcopy(algorithm.classifier).double()
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
        of_domains.append((risk(head.weight, head.bias), g.mean(0), g.var(0, correction=0), torch.cat(diagonal)))
    a, b = of_domains
    return {PREFIX + name: (u - v).square().sum().item() for name, u, v in zip(QUANTITIES, a, b, strict=True)}


def test_records_hold_the_distances_between_training_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(landscape, "BATCH", 70)
    config = make_config(tmp_path / "job", track="landscape")
    records = records_of(config)
    assert [r["step"] for r in records] == [0, 4, 7]
    for name, value in expected_distances(config, 70).items():
        assert records[-1][name] == pytest.approx(value, rel=1e-9)
        assert len({r[name] for r in records}) == 3


@pytest.mark.parametrize("algorithm", ["DANN", "Fish", "Fishr"])
def test_a_job_that_tells_is_otherwise_the_same_and_has_the_same_name(algorithm: str, tmp_path: Path):
    hparams = {"resnet_dropout": 0.5, "nonlinear_classifier": True}
    configs = [
        make_config(tmp_path / track, algorithm=algorithm, hparams=hparams, track=track)
        for track in ("nothing", "landscape")
    ]
    assert configs[0].name() == configs[1].name()
    quiet, telling = map(records_of, configs)
    for a, b in zip(quiet, telling, strict=True):
        assert {name for name in b if name not in a} == {PREFIX + name for name in QUANTITIES}
        for name in a.keys() - {"args", "step_time"}:
            assert a[name] == b[name], name
    weights = [load_job(Path(config.output_dir) / "model.pkl")[1].state_dict() for config in configs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_one_training_domain_has_nothing_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture):
    records = records_of(make_config(tmp_path / "job", test_envs=(0, 1), track="landscape"))
    assert not any(name.startswith(PREFIX) for record in records for name in record)
    assert "with one training domain there is nothing to compare" in capsys.readouterr().out


def test_an_algorithm_without_a_classifier_is_told_so_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Whole(ERM):
        def __init__(self, *args):
            super().__init__(*args)
            del self.featurizer, self.classifier

    monkeypatch.setitem(ALGORITHMS._registered, "Whole", Whole)
    with pytest.raises(UsageError, match="Whole has no modules `featurizer` and `classifier`"):
        train(make_config(tmp_path / "job", algorithm="Whole", track="landscape"))
    assert not (tmp_path / "job").exists()


def test_views_are_the_classifier_with_features_and_the_network_with_images(tmp_path: Path):
    config = make_config(tmp_path, hparams={"nonlinear_classifier": True})
    dataset, splits, feed, algorithm = prepared(config)
    requests = requests_for(splits, "out", 50, 16)
    assert [[len(request.indices) for request in of_env] for of_env in requests] == [[16, 16, 16, 2]] * 3
    head, features = classifier_view(algorithm, feed, requests)
    network, images = network_view(algorithm, feed, requests)
    assert algorithm.training
    assert not head.training
    assert not network.training
    algorithm.eval()
    for env, (z, x) in enumerate(zip(features, images, strict=True)):
        rows = splits[env].out[:50]
        assert np.array_equal(x.x.mul(255).round().numpy(), dataset[env].images[rows])
        assert np.array_equal(x.y.numpy(), dataset[env].labels[rows])
        assert torch.equal(z.y, x.y)
        torch.testing.assert_close(head(z.x).float(), algorithm.predict(x.x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x.x), algorithm.predict(x.x))
    assert not any(p is q for p in network.parameters() for q in algorithm.parameters())
    everything = requests_for(splits, "in", 0, 1000)
    assert [sum(len(r.indices) for r in of_env) for of_env in everything] == [len(s.in_) for s in splits]
    assert isinstance(head, nn.Sequential)


def test_a_job_can_be_told_from_its_records_arguments(tmp_path: Path):
    config = make_config(tmp_path / "job", track="landscape", imports=("json",))
    args = config.args()
    assert JobConfig.of_args(args) == config
    assert JobConfig.of_args(args).args() == args
    older = {name: value for name, value in args.items() if name not in ("track", "precision")}
    assert JobConfig.of_args({**older, "of_a_later_version": 1}) == config
    with pytest.raises(UsageError, match="unknown dataset"):
        JobConfig.of_args({**args, "dataset": "Digits"})


def test_a_classifier_that_went_through_backpack_as_domainbeds_fishr_has_it(tmp_path: Path):
    _, splits, feed, algorithm = prepared(make_config(tmp_path))
    requests = requests_for(splits, "in", 40, 40)
    expected = classifier_view(algorithm, feed, requests)
    algorithm.classifier = extend(algorithm.classifier)
    x, y = next(iter(feed.batches([requests[0]])))[0]
    logits = algorithm.classifier(algorithm.featurizer(x))
    with backpack(BatchGrad()):
        extend(nn.CrossEntropyLoss(reduction="sum"))(logits, y).backward()
    found = classifier_view(algorithm, feed, requests)
    diagonals = [statistics(*pair(view)).hessian_diagonal for view in (found, expected)]
    torch.testing.assert_close(*diagonals)
    torch.testing.assert_close(full_hessian(*pair(found)), full_hessian(*pair(expected)))
    assert not hasattr(found.network.weight, "grad_batch")
    assert algorithm.classifier._backward_hooks  # its own are left to it


def pair(view: landscape.View) -> tuple[nn.Module, Domain]:
    return view.network, view.domains[0]


def test_features_that_do_not_fit_the_device_come_in_halves(tmp_path: Path):
    _, splits, feed, algorithm = prepared(make_config(tmp_path))
    requests = requests_for(splits, "in", 40, 40)
    expected = classifier_view(algorithm, feed, requests)
    forward = algorithm.featurizer.forward

    def of_at_most_ten(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    algorithm.featurizer.forward = of_at_most_ten
    for a, b in zip(expected.domains, classifier_view(algorithm, feed, requests).domains, strict=True):
        torch.testing.assert_close(a.x, b.x)
