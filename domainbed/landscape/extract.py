"""Extraction of an algorithm's network and of the samples of its environments."""

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.engine.evaluate import split_on_oom
from domainbed.engine.forward import evaluation_mode
from domainbed.landscape.domain import Domain
from domainbed.landscape.predictor import N_IMAGES, Predictor
from domainbed.loading.base import Feed, Request
from domainbed.loading.splits import Split

M = TypeVar("M", bound=nn.Module)


def extract_classifier(
    algorithm: Algorithm, predictor: Predictor, feed: Feed, requests: Sequence[Sequence[Request]]
) -> tuple[nn.Module, list[Domain]]:
    """Return a copy of the classifier and the features of each environment's images, in float64."""
    featurizer, classifier = predictor.modules(algorithm)
    with torch.no_grad(), evaluation_mode(algorithm):
        domains = _read_domains(feed, requests, lambda x: split_on_oom(featurizer, x).double())
    return _trainable_copy(classifier).double(), domains


def extract_network(
    algorithm: Algorithm, predictor: Predictor, feed: Feed, requests: Sequence[Sequence[Request]]
) -> tuple[nn.Module, list[Domain]]:
    """Return a copy of the whole network and each environment's images; see `extract_classifier`."""
    network = _trainable_copy(nn.Sequential(*predictor.modules(algorithm)))
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


def first_images(feed: Feed, requests: Sequence[Sequence[Request]]) -> torch.Tensor:
    """Return the first N_IMAGES images of the first environment, [n, *input_shape]."""
    request = requests[0][0]
    [[(x, _)]] = list(feed.batches([[request._replace(indices=request.indices[:N_IMAGES])]]))
    return x


def copy_module(module: M) -> M:
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


def _trainable_copy(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose weights all require gradients; those of an average do not."""
    return copy_module(network).eval().requires_grad_()


def _read_domains(
    feed: Feed, requests: Sequence[Sequence[Request]], transform: Callable[[torch.Tensor], torch.Tensor]
) -> list[Domain]:
    """Read all environments in one pass of the feed and transform their images."""
    batches = feed.batches([request] for env_requests in requests for request in env_requests)
    samples = iter([(transform(x), y) for [(x, y)] in batches])
    return [Domain(*map(torch.cat, zip(*islice(samples, len(env_requests)), strict=True))) for env_requests in requests]
