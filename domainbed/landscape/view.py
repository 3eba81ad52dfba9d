"""The loss landscape of a job's model: its network and the samples of its environments, as `domainbed.landscape` looks
at them, and what `--track landscape` adds to each record."""

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from domainbed.algorithms.base import Algorithm
from domainbed.engine.config import JobConfig
from domainbed.engine.evaluate import split_on_oom
from domainbed.errors import UsageError
from domainbed.landscape.distances import recorded_distances
from domainbed.landscape.domain import Domain, statistics
from domainbed.loading.base import Feed, Request
from domainbed.loading.splits import Split

BATCH = 512  # images of each domain that --track looks at, the same ones each time


class View(NamedTuple):
    """A network, and of each environment the samples that it takes."""

    network: nn.Module
    domains: list[Domain]


def classifier_view(algorithm: Algorithm, feed: Feed, requests: Sequence[Sequence[Request]]) -> View:
    """The classifier and the features of these images, in float64; `requests` are those of each environment.

    Raises:
        UsageError: the algorithm has no featurizer and classifier of these names.
    """
    featurizer, classifier = _parts(algorithm)
    was_training = algorithm.training
    algorithm.eval()
    with torch.no_grad():
        domains = _domains(feed, requests, lambda x: split_on_oom(featurizer, x).double())
    algorithm.train(was_training)
    return View(_copied(classifier).double().eval(), domains)


def network_view(algorithm: Algorithm, feed: Feed, requests: Sequence[Sequence[Request]]) -> View:
    """The whole network and these images; see `classifier_view`."""
    network = _copied(nn.Sequential(*_parts(algorithm))).eval()
    return View(network, _domains(feed, requests, lambda x: x))


def _copied(network: nn.Module) -> nn.Module:
    """A copy without what BackPACK, to which DomainBed's Fishr gave its classifier, leaves in a module as it trains."""
    kept = [value for module in network.modules() for value in vars(module).values()]
    results = {id(t): t.detach() for t in kept if isinstance(t, torch.Tensor) and not t.is_leaf}  # can't be copied
    network = copy.deepcopy(network, results)
    for module in network.modules():
        module._backward_hooks.clear()
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "").startswith("backpack."):
                del module._forward_hooks[key]
    return network


def _domains(
    feed: Feed, requests: Sequence[Sequence[Request]], seen: Callable[[torch.Tensor], torch.Tensor]
) -> list[Domain]:
    """Of each environment what is `seen` of the images, and the labels; all from one pass of the feed."""
    batches = feed.batches([request] for of_environment in requests for request in of_environment)
    of_requests = iter([(seen(x), y) for [(x, y)] in batches])
    return [
        Domain(*map(torch.cat, zip(*islice(of_requests, len(of_environment)), strict=True)))
        for of_environment in requests
    ]


def requests_for(splits: Sequence[Split], part: str, most: int, batch_size: int) -> list[list[Request]]:
    """Of each environment the first `most` images of a part ("in", "out"), which is shuffled; 0 for all of them.

    They are not augmented.
    """
    requests = []
    for env, split in enumerate(splits):
        indices = split.parts()[part][: most or None]
        rows = range(0, len(indices), batch_size)
        requests.append([Request(env, indices[row : row + batch_size]) for row in rows])
    return requests


def begin_tracking(config: JobConfig, algorithm: Algorithm) -> bool:
    """Whether the job's records tell of the landscape: it is asked for, and there are domains to compare.

    Raises:
        UsageError: it is asked for, but the algorithm has no featurizer and classifier.
    """
    if config.track == "nothing":
        return False
    _parts(algorithm)
    if len(config.environment_names()) - len(config.test_envs) < 2:
        tqdm.write(f"--track {config.track}: with one training domain there is nothing to compare")
        return False
    return True


def tracked(config: JobConfig, algorithm: Algorithm, splits: Sequence[Split], feed: Feed) -> dict[str, float]:
    """What `--track landscape` adds to a record: the classifier's mean squared distances over pairs of domains."""
    requests = requests_for(splits, "in", BATCH, feed.batch_size)
    training = [of_env for env, of_env in enumerate(requests) if env not in config.test_envs]
    network, domains = classifier_view(algorithm, feed, training)
    return recorded_distances([statistics(network, domain) for domain in domains])


def _parts(algorithm: Algorithm) -> tuple[nn.Module, nn.Module]:
    parts = [getattr(algorithm, name, None) for name in ("featurizer", "classifier")]
    if not all(isinstance(part, nn.Module) for part in parts):
        raise UsageError(
            f"{type(algorithm).__name__} has no modules `featurizer` and `classifier`, whose landscape to look at"
        )
    return parts[0], parts[1]  # type: ignore[return-value]  # as was just seen
