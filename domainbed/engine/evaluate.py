"""How many images of each split a model gets right."""

from collections.abc import Callable, Iterable

import torch

from domainbed.algorithms.base import Algorithm, predicted_classes
from domainbed.loading.base import Feed, Request


@torch.no_grad()  # not inference_mode: an algorithm may adapt itself in predict
def accuracies(
    algorithm: Algorithm,
    feed: Feed,
    requests: Iterable[tuple[str, Request]],
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The accuracy on the images of all requests that have the same name, by that name (`env0_in_acc`, …).

    A single logit (of an algorithm that has but one) says class 1 where it is positive. `before_batch` is called again
    and again, and may put an end to it by an exception.
    """
    named = list(requests)
    correct: dict[str, list[torch.Tensor]] = {}
    images: dict[str, int] = {}
    algorithm.eval()
    batches = feed.batches([request] for _, request in named)
    for (name, request), [(x, y)] in zip(named, batches, strict=True):
        before_batch()
        predicted = predicted_classes(split_on_oom(algorithm.predict, x))
        correct.setdefault(name, []).append((predicted == y).sum())
        images[name] = images.get(name, 0) + len(request.indices)
    algorithm.train()
    if not correct:
        return {}
    counts = torch.stack([torch.stack(of_batches).sum() for of_batches in correct.values()]).tolist()  # waits once
    return {name: count / images[name] for name, count in zip(correct, counts, strict=True)}


def split_on_oom(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """What a network gives for images x, in halves where the device's memory does not hold all at once."""
    try:
        return network(x)
    except torch.OutOfMemoryError:
        if len(x) == 1:
            raise
    if x.device.type == "cuda":
        torch.cuda.empty_cache()
    return torch.cat([split_on_oom(network, half) for half in x.split(-(-len(x) // 2))])
