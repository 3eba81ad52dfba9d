"""Extraction of the network and the samples of a job."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.datasets import MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_data
from domainbed.engine.feed import open_feed
from domainbed.engine.model import make_algorithm
from domainbed.landscape.domain import measure_domain
from domainbed.landscape.extract import extract_classifier, extract_network, image_requests
from domainbed.landscape.hessian import full_hessian
from domainbed.landscape.predictor import Predictor
from domainbed.loading.base import Feed
from domainbed.loading.splits import Split

PREDICTOR = Predictor("featurizer", "classifier")


@pytest.fixture
def job(
    tmp_path: Path, request: pytest.FixtureRequest
) -> tuple[MultipleDomainDataset, Sequence[Split], Feed, Algorithm]:
    """Return the dataset, splits, feed and algorithm of a job with overridden hyperparameters."""
    hparams = getattr(request, "param", None)
    config = JobConfig("ColoredDigits", "ERM", (1,), hparams=hparams, output_dir=str(tmp_path))
    resolved = config.resolved_hparams()
    dataset, splits = load_data(config, resolved)
    feed = open_feed(config, dataset, splits, torch.device("cpu"))
    return dataset, splits, feed, make_algorithm(config, resolved, dataset)


@pytest.mark.parametrize("job", ['{"nonlinear_classifier": true}'], indirect=True)
def test_classifier_on_features_and_network_on_images_equal_predict(job):
    dataset, splits, feed, algorithm = job
    requests = image_requests(splits, "out", 50, 16)
    assert [[len(request.indices) for request in env_requests] for env_requests in requests] == [[16, 16, 16, 2]] * 3
    head, features = extract_classifier(algorithm, PREDICTOR, feed, requests)
    network, images = extract_network(algorithm, PREDICTOR, feed, requests)
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
    everything = image_requests(splits, "in", 0, 1000)
    assert [sum(len(r.indices) for r in env_requests) for env_requests in everything] == [len(s.in_) for s in splits]
    assert isinstance(head, nn.Sequential)


def test_classifier_extended_with_backpack(job):
    """DomainBed's Fishr extends its classifier."""
    _, splits, feed, algorithm = job
    requests = image_requests(splits, "in", 40, 40)
    expected_classifier, expected_domains = extract_classifier(algorithm, PREDICTOR, feed, requests)
    algorithm.classifier = extend(algorithm.classifier)
    x, y = next(iter(feed.batches([requests[0]])))[0]
    logits = algorithm.classifier(algorithm.featurizer(x))
    with backpack(BatchGrad()):
        extend(nn.CrossEntropyLoss(reduction="sum"))(logits, y).backward()
    classifier, domains = extract_classifier(algorithm, PREDICTOR, feed, requests)
    for measure in (lambda *args: measure_domain(*args).hessian_diagonal, full_hessian):
        found, expected = measure(classifier, domains[0]), measure(expected_classifier, expected_domains[0])
        torch.testing.assert_close(found, expected)
    assert not hasattr(classifier.weight, "grad_batch")
    assert algorithm.classifier._backward_hooks  # the original keeps its hooks


def test_batch_is_split_when_features_exceed_memory(job):
    _, splits, feed, algorithm = job
    requests = image_requests(splits, "in", 40, 40)
    _, expected = extract_classifier(algorithm, PREDICTOR, feed, requests)
    forward = algorithm.featurizer.forward

    def forward_at_most_ten(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    algorithm.featurizer.forward = forward_at_most_ten
    _, found = extract_classifier(algorithm, PREDICTOR, feed, requests)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a.x, b.x)
