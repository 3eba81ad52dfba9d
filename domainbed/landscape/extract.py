"""Extraction of an algorithm's network and of the samples of its environments."""

import copy
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.engine.evaluate import split_on_oom
from domainbed.errors import UsageError
from domainbed.landscape.domain import Domain
from domainbed.loading.base import Feed, Request
from domainbed.loading.splits import Split


def extract_classifier(
    algorithm: Algorithm, feed: Feed, requests: Sequence[Sequence[Request]]
) -> tuple[nn.Module, list[Domain]]:
    """Return a copy of the classifier and the features of each environment's images, in float64.

    Raises:
        UsageError: the algorithm has no modules `featurizer` and `classifier`.
    """
    featurizer, classifier = check_modules(algorithm)
    was_training = algorithm.training
    algorithm.eval()
    with torch.no_grad():
        domains = _read_domains(feed, requests, lambda x: split_on_oom(featurizer, x).double())
    algorithm.train(was_training)
    return _copy_module(classifier).double().eval(), domains


def extract_network(
    algorithm: Algorithm, feed: Feed, requests: Sequence[Sequence[Request]]
) -> tuple[nn.Module, list[Domain]]:
    """Return a copy of the whole network and each environment's images; see `extract_classifier`."""
    network = _copy_module(nn.Sequential(*check_modules(algorithm))).eval()
    return network, _read_domains(feed, requests, lambda x: x)


def image_requests(splits: Sequence[Split], part: str, limit: int, batch_size: int) -> list[list[Request]]:
    """Return requests for the first images of each environment, without augmentation.

    Args:
        splits: the split of each environment; its indices are in random order.
        part: "in" or "out".
        limit: maximum number of images per environment; 0 for all.
        batch_size: maximum number of images per request.
    """
    requests = []
    for env, split in enumerate(splits):
        indices = split.parts()[part][: limit or None]
        starts = range(0, len(indices), batch_size)
        requests.append([Request(env, indices[start : start + batch_size]) for start in starts])
    return requests


def check_modules(algorithm: Algorithm) -> tuple[nn.Module, nn.Module]:
    """Return the algorithm's featurizer and classifier.

    Raises:
        UsageError: it has no modules of these names.
    """
    featurizer, classifier = (getattr(algorithm, name, None) for name in ("featurizer", "classifier"))
    if not (isinstance(featurizer, nn.Module) and isinstance(classifier, nn.Module)):
        raise UsageError(
            f"{type(algorithm).__name__} has no modules `featurizer` and `classifier`; its loss landscape cannot be "
            "measured"
        )
    return featurizer, classifier


def _copy_module(module: nn.Module) -> nn.Module:
    """Return a copy without BackPACK's hooks and results.

    DomainBed's Fishr extends its classifier with BackPACK, which leaves both in the module.
    """
    attributes = [value for submodule in module.modules() for value in vars(submodule).values()]
    # Tensors with a history cannot be deep-copied.
    memo = {id(t): t.detach() for t in attributes if isinstance(t, torch.Tensor) and not t.is_leaf}
    module = copy.deepcopy(module, memo)
    for submodule in module.modules():
        submodule._backward_hooks.clear()
        for key, hook in list(submodule._forward_hooks.items()):
            if getattr(hook, "__module__", "").startswith("backpack."):
                del submodule._forward_hooks[key]
    return module


def _read_domains(
    feed: Feed, requests: Sequence[Sequence[Request]], transform: Callable[[torch.Tensor], torch.Tensor]
) -> list[Domain]:
    """Read all environments in one pass of the feed and transform their images."""
    batches = feed.batches([request] for env_requests in requests for request in env_requests)
    samples = iter([(transform(x), y) for [(x, y)] in batches])
    return [Domain(*map(torch.cat, zip(*islice(samples, len(env_requests)), strict=True))) for env_requests in requests]
