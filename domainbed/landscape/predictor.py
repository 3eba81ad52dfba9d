"""The modules by which an algorithm predicts: `predict(x)` must be `classifier(featurizer(x))`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm
from domainbed.engine.algorithm_errors import locate_errors
from domainbed.engine.forward import are_close, evaluation_mode, recorded_outputs
from domainbed.errors import UsageError

N_IMAGES = 4  # on which both are compared
TOLERANCE = 1e-3  # relative to the largest logit


class Predictor(NamedTuple):
    """The names of the modules by which an algorithm predicts.

    Attributes:
        featurizer: the module from images to features.
        classifier: the module from features to logits.
    """

    featurizer: str
    classifier: str

    def modules(self, algorithm: Algorithm) -> tuple[nn.Module, nn.Module]:
        """Return these modules of the algorithm."""
        return algorithm.get_submodule(self.featurizer), algorithm.get_submodule(self.classifier)


def check_modules(algorithm: Algorithm) -> tuple[nn.Module, nn.Module]:
    """Return the algorithm's featurizer and classifier, without running them.

    Raises:
        UsageError: it has no modules of these names, or its class says that it does not predict by them.
    """
    featurizer, classifier = (getattr(algorithm, name, None) for name in ("featurizer", "classifier"))
    if not (isinstance(featurizer, nn.Module) and isinstance(classifier, nn.Module)):
        raise UsageError(
            f"{type(algorithm).__name__} has no modules `featurizer` and `classifier`; its loss landscape cannot be "
            "measured"
        )
    if not algorithm.PREDICTS_BY_CLASSIFIER:
        raise _other_prediction(algorithm)
    return featurizer, classifier


def find_predictor(algorithm: Algorithm, x: torch.Tensor) -> Predictor:
    """Return the modules by which an algorithm predicts.

    An algorithm that averages its weights predicts with copies of its featurizer and its classifier.

    Args:
        algorithm: the algorithm; `predict` may draw random numbers and change its state.
        x: some images [n, *input_shape].

    Raises:
        UsageError: as in `check_modules`, or `predict(x)` is not `classifier(featurizer(x))`.
        AlgorithmError: `predict` of a user's class fails.
    """
    modules = check_modules(algorithm)
    names = {module: name for name, module in algorithm.named_modules()}
    with torch.no_grad(), evaluation_mode(algorithm):
        with ExitStack() as stack:
            outputs = [stack.enter_context(recorded_outputs(algorithm, module)) for module in modules]
            stack.enter_context(locate_errors(type(algorithm), lambda: "predict"))
            logits = algorithm.predict(x)
        featurizer, classifier = (
            module if module in called or not called else next(iter(called))
            for module, called in zip(modules, outputs, strict=True)
        )
        try:
            is_composition = are_close(classifier(featurizer(x)), logits, TOLERANCE)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # they expect other inputs
            is_composition = False
        # Weights that predict exchanges for others may be equal to these now, and differ after some updates.
        with _scaled_weights(classifier), locate_errors(type(algorithm), lambda: "predict"):
            is_composition = is_composition and are_close(classifier(featurizer(x)), algorithm.predict(x), TOLERANCE)
    if not is_composition:
        raise _other_prediction(algorithm)
    return Predictor(names[featurizer], names[classifier])


@contextmanager
def _scaled_weights(module: nn.Module) -> Iterator[None]:
    """Double the weights of a module for the duration of a `with` block."""
    weights: list[torch.Tensor] = [weight for weight in module.parameters() if weight.is_floating_point()]
    values = [weight.detach().clone() for weight in weights]
    torch._foreach_mul_(weights, 2.0)
    try:
        yield
    finally:
        torch._foreach_copy_(weights, values)


def _other_prediction(algorithm: Algorithm) -> UsageError:
    return UsageError(
        f"{type(algorithm).__name__} does not predict by classifier(featurizer(x)), so its loss landscape cannot be "
        "measured"
    )
