"""Precision and compilation of featurizers."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from domainbed.errors import UsageError, one_line


class FeaturizerBase(nn.Module):
    """A featurizer with configurable precision and compilation; decorate its `forward` with `runs_as_configured`.

    Attributes:
        is_bf16: compute its layers in bfloat16, from float32 weights. Images and features stay float32.
        is_compiled: run its layers compiled by torch.compile.
        activation: applied to the features; algorithms may replace the identity.
    """

    is_bf16 = False
    is_compiled = False

    def __init__(self) -> None:
        super().__init__()
        self.activation: nn.Module = nn.Identity()


def runs_as_configured(
    forward: Callable[[Any, torch.Tensor], torch.Tensor],
) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Decorate a featurizer's `forward` to respect `is_bf16` and `is_compiled`.

    Compiled code supports all batch sizes and all instances of the class: a process compiles once with gradients and
    once without, no matter how many jobs it trains. PyTorch caches compiled code on disk for other processes.
    """
    compiled = functools.cache(lambda: torch.compile(forward))

    def run_layers(self: FeaturizerBase, x: torch.Tensor) -> torch.Tensor:
        if not self.is_compiled:
            return forward(self, x)
        from torch._dynamo import exc, maybe_mark_dynamic  # takes seconds to import

        maybe_mark_dynamic(x, 0)
        try:
            return compiled()(self, x)
        except exc.TorchDynamoException as error:
            self.is_compiled = False
            reason = f"{type(error).__name__}: {one_line(error)[:200]}"
            tqdm.write(f"{type(self).__name__} cannot be compiled; falling back to eager mode: {reason}")
        return forward(self, x)

    @functools.wraps(forward)
    def run(self: FeaturizerBase, x: torch.Tensor) -> torch.Tensor:
        if not self.is_bf16:
            return self.activation(run_layers(self, x))
        with torch.autocast(x.device.type, torch.bfloat16):
            features = run_layers(self, x)
        return self.activation(features.float())

    return run


def featurizers_of(algorithm: nn.Module) -> list[FeaturizerBase]:
    """Return the algorithm's featurizers with configurable precision and compilation."""
    return [module for module in algorithm.modules() if isinstance(module, FeaturizerBase)]


def set_precision(precision: str, algorithm: nn.Module) -> None:
    """Set the precision of the process and of the algorithm's featurizers.

    "fp32"  float32 everywhere.
    "tf32"  the default of PyTorch and DomainBed: on a GPU with TF32, convolutions round inputs to 10-bit mantissas.
    "bf16"  layers of featurizers in bfloat16, from float32 weights. Features, heads, losses and penalties (with their
            second derivatives) stay float32.

    Raises:
        UsageError: bf16 is requested for an algorithm without a featurizer that supports it.
    """
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = False
    featurizers = featurizers_of(algorithm)
    if precision == "bf16" and not featurizers:
        raise UsageError(
            f"--precision bf16 requires a featurizer from networks.Featurizer; {type(algorithm).__name__} has none"
        )
    for featurizer in featurizers:
        featurizer.is_bf16 = precision == "bf16"


def enable_compilation(featurizers: Iterable[FeaturizerBase], device: torch.device) -> str:
    """Compile the featurizers on their first use. Return the reason if that is impossible, else an empty string."""
    if reason := _compiler_error(device.type):
        return reason
    # A sweep needs many compiled variants: dropout, widths and backbones, training and evaluation, with and without
    # gradients. By default, PyTorch keeps 8 and then silently falls back to eager mode.
    torch._dynamo.config.cache_size_limit = 64
    for featurizer in featurizers:
        featurizer.is_compiled = True
    return ""


@functools.cache
def _compiler_error(device: str) -> str:
    """Compile a trivial function. Return the error, if any (usually a missing compiler)."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(4, device=device))
    except Exception as error:  # of many types
        return f"torch.compile does not work on this machine: {type(error).__name__}: {one_line(error)[:200]}"
    return ""
