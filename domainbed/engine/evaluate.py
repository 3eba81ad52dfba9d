"""The accuracy of a model on each split."""

from collections.abc import Callable, Iterable

import torch

from domainbed.algorithms.base import Algorithm, predicted_classes
from domainbed.engine.algorithm_errors import locate_errors
from domainbed.loading.base import Feed, Request


@torch.no_grad()  # not inference_mode: an algorithm may adapt in predict
def accuracies(
    algorithm: Algorithm,
    feed: Feed,
    requests: Iterable[tuple[str, Request]],
    before_batch: Callable[[], None] = lambda: None,
    place: str = "predict",
) -> dict[str, float]:
    """Return the accuracy on each split.

    Args:
        algorithm: the model; its `predict` returns logits [n, classes], or [n, 1] for two classes.
        feed: loads the requested images.
        requests: (name, request) pairs; requests of the same name (`env0_in_acc`, …) form one split.
        before_batch: called before each batch; an exception that it raises ends the evaluation.
        place: where an error in `predict` is reported to have happened.
    """
    named = list(requests)
    correct: dict[str, list[torch.Tensor]] = {}
    images: dict[str, int] = {}
    algorithm.eval()
    batches = feed.batches([request] for _, request in named)
    for (name, request), [(x, y)] in zip(named, batches, strict=True):
        before_batch()
        with locate_errors(type(algorithm), lambda: place):
            predicted = predicted_classes(split_on_oom(algorithm.predict, x))
        correct.setdefault(name, []).append((predicted == y).sum())
        images[name] = images.get(name, 0) + len(request.indices)
    algorithm.train()
    if not correct:
        return {}
    counts = torch.stack([torch.stack(batch_counts).sum() for batch_counts in correct.values()]).tolist()  # one sync
    return {name: count / images[name] for name, count in zip(correct, counts, strict=True)}


def split_on_oom(network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the network's output for images x [n, …], halving batches that do not fit into the device's memory."""
    try:
        return network(x)
    except torch.OutOfMemoryError:
        if len(x) == 1:
            raise
    if x.device.type == "cuda":
        torch.cuda.empty_cache()
    return torch.cat([split_on_oom(network, half) for half in x.split(-(-len(x) // 2))])
