"""Check of a saved model: does it predict what the algorithm predicts?"""

from pathlib import Path

import torch

from domainbed.algorithms.base import Algorithm
from domainbed.engine.forward import are_close, evaluation_mode
from domainbed.engine.model import load_model
from domainbed.errors import UsageError
from domainbed.registry import is_builtin

N_IMAGES = 4
TOLERANCE = 0.02  # relative to the largest logit; the algorithm may compute in lower precision


def describe_difference(path: Path, algorithm: Algorithm, input_shape: tuple[int, ...]) -> str:
    """Return why the saved model of a user's algorithm cannot replace it, or "" if it can.

    A saved model has parameters, buffers and hyperparameters; checkpoints have all attributes.

    Args:
        path: the model's file.
        algorithm: the algorithm that was saved.
        input_shape: the shape of an image.
    """
    if is_builtin(type(algorithm)):
        return ""
    x = torch.randn(N_IMAGES, *input_shape, generator=torch.Generator().manual_seed(0))
    try:
        expected = _predict(algorithm, x)
    except Exception:  # it may require other images than random ones
        return ""
    try:
        found = _predict(load_model(path).algorithm, x)
    except UsageError as error:
        return str(error)
    except Exception as error:
        return f"the model loaded from {path} cannot predict ({type(error).__name__}: {error})"
    if are_close(found, expected, TOLERANCE):  # square roots of negative pixels, for example, are NaN in both
        return ""
    return (
        f"{path} does not predict what {type(algorithm).__name__} predicts: models contain parameters, buffers and "
        "hyperparameters, but no other attributes; make what predict uses a buffer or a registered module"
    )


def _predict(algorithm: Algorithm, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of images, without changing a random generator."""
    devices = {tensor.device for tensor in algorithm.state_dict().values() if isinstance(tensor, torch.Tensor)}
    device = next(iter(devices), torch.device("cpu"))
    generators = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with evaluation_mode(algorithm), torch.no_grad(), generators:
        torch.manual_seed(0)
        return algorithm.predict(x.to(device)).float().cpu()
