"""The accuracy and the loss of a model on each split."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch.nn import functional as F

from domainbed.algorithms.base import Algorithm, predicted_classes
from domainbed.engine.algorithm_errors import locate_errors
from domainbed.loading.base import Feed, Request

Observer: TypeAlias = Callable[[Request, torch.Tensor], object]  # of a request and the logits [n, classes]
Score: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits and labels [n]; returns [n]


def is_correct(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return whether each image is classified correctly."""
    return predicted_classes(logits) == y


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each image, in float64."""
    if logits.shape[1] == 1:  # the logit of class 1
        return F.binary_cross_entropy_with_logits(logits[:, 0].double(), y.double(), reduction="none")
    return F.cross_entropy(logits.double(), y, reduction="none")


@torch.no_grad()  # not inference_mode: an algorithm may adapt in predict
def split_means(
    algorithm: Algorithm,
    feed: Feed,
    requests: Iterable[tuple[str, Request]],
    before_batch: Callable[[], None] = lambda: None,
    score: Score = is_correct,
    place: str = "predict",
    observe: Observer = lambda request, logits: None,
    n_classes: int | None = None,
) -> dict[str, float]:
    """Return the mean of a score over the images of each split; by default, the accuracy.

    Args:
        algorithm: the model; its `predict` returns logits [n, classes], or [n, 1] for two classes.
        feed: loads the requested images.
        requests: (name, request) pairs; requests of the same name (`env0_in_acc`, …) form one split.
        before_batch: called before each batch; an exception that it raises ends the evaluation.
        score: the score of each image.
        place: where an error in `predict` is reported to have happened.
        observe: called with each request and its logits; it must not synchronize with the device.
        n_classes: the number of classes, if the shape of the logits is to be checked.
    """
    named = list(requests)
    if not named:
        return {}  # without starting loader processes that read nothing
    sums: dict[str, list[torch.Tensor]] = {}
    images: dict[str, int] = {}
    algorithm.eval()
    batches = feed.batches([request] for _, request in named)
    for (name, request), [(x, y)] in zip(named, batches, strict=True):
        before_batch()
        with locate_errors(type(algorithm), lambda: place):
            # If the algorithm sets the size of a batch, its predictions depend on it.
            logits = algorithm.predict(x) if algorithm.EVAL_BATCH_SIZE else split_on_oom(algorithm.predict, x)
            _check_logits(logits, len(x), n_classes)
        observe(request, logits)
        sums.setdefault(name, []).append(score(logits, y).sum())
        images[name] = images.get(name, 0) + len(request.indices)
    algorithm.train()
    totals = torch.stack([torch.stack(batch_sums).sum() for batch_sums in sums.values()]).tolist()  # one sync
    return {name: total / images[name] for name, total in zip(sums, totals, strict=True)}


def _check_logits(logits: object, n: int, n_classes: int | None) -> None:
    """Raise TypeError if these are not the logits of n images."""
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if n_classes and shape not in ((n, n_classes), (n, 1)):
        raise TypeError(f"predict must return logits [n, num_classes], here {(n, n_classes)}, not {shape}")


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
