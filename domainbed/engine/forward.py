"""Forward passes of algorithms: in evaluation mode, with the outputs of their modules, and compared."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from domainbed.algorithms.base import Algorithm


@contextmanager
def evaluation_mode(algorithm: Algorithm) -> Iterator[None]:
    """Put an algorithm into evaluation mode for the duration of a `with` block."""
    was_training = algorithm.training
    algorithm.eval()
    try:
        yield
    finally:
        algorithm.train(was_training)


@contextmanager
def recorded_outputs(algorithm: Algorithm, module: nn.Module) -> Iterator[dict[nn.Module, torch.Tensor]]:
    """Record the outputs of a module, and of its copies, during a `with` block.

    Algorithms that average their weights predict with copies of their modules.

    Yields:
        The last output of each module of the algorithm that was called and has the structure of `module`, by the order
        of their first calls.
    """
    outputs: dict[nn.Module, torch.Tensor] = {}

    def store(called: nn.Module, args: Any, output: torch.Tensor) -> None:
        outputs[called] = output

    with ExitStack() as stack:
        for other in algorithm.modules():
            if str(other) == str(module):
                stack.callback(other.register_forward_hook(store).remove)
        yield outputs


def are_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Return whether logits have the same shape, and differ by at most `tolerance` relative to the largest finite one.

    Logits that are infinite or NaN must be so in both.
    """
    finite = expected[expected.isfinite()]
    limit = tolerance * float(finite.abs().max()) if finite.numel() else 0.0
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=limit, equal_nan=True)
