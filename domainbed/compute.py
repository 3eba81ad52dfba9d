"""How featurizers compute: in which precision, and whether compiled."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from domainbed.errors import UsageError, one_line


class Featurizing(nn.Module):
    """What a featurizer is beside its layers. Its `forward` is decorated with `as_set`.

    Attributes:
        in_bf16: its layers compute in bfloat16, from float32 weights. Images and features stay float32.
        is_compiled: its layers run as torch.compile makes them.
    """

    in_bf16 = False
    is_compiled = False


def runs_as_configured(
    forward: Callable[[Any, torch.Tensor], torch.Tensor],
) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """A featurizer's `forward`, run as its attributes say.

    Compiled code serves every batch size and every featurizer of the class, so that a process compiles once (and once
    more without gradients), whatever jobs it trains; torch keeps it on disk for other processes.
    """
    compiled = functools.cache(lambda: torch.compile(forward))

    def layers(self: Featurizing, x: torch.Tensor) -> torch.Tensor:
        if not self.is_compiled:
            return forward(self, x)
        from torch._dynamo import exc, maybe_mark_dynamic  # which takes seconds to import

        maybe_mark_dynamic(x, 0)
        try:
            return compiled()(self, x)
        except exc.TorchDynamoException as error:
            self.is_compiled = False
            tqdm.write(f"{type(self).__name__} is not compiled: {type(error).__name__}: {one_line(error)[:200]}")
        return forward(self, x)

    @functools.wraps(forward)
    def run(self: Featurizing, x: torch.Tensor) -> torch.Tensor:
        if not self.in_bf16:
            return layers(self, x)
        with torch.autocast(x.device.type, torch.bfloat16):
            features = layers(self, x)
        return features.float()

    return run


def featurizers_of(algorithm: nn.Module) -> list[Featurizing]:
    """The featurizers that `networks.Featurizer` made for it."""
    return [module for module in algorithm.modules() if isinstance(module, Featurizing)]


def set_precision(precision: str, algorithm: nn.Module) -> None:
    """Have the process, and the algorithm's featurizers, compute in this precision.

    "fp32"  everything in float32.
    "tf32"  PyTorch's default, and so DomainBed's: convolutions on a GPU that has TF32 round their factors to 10 bits.
    "bf16"  featurizers' layers in bfloat16, from float32 weights. Features, heads, losses and penalties (with their
            second derivatives) stay float32.

    Raises:
        UsageError: bf16 is wanted of an algorithm that has no featurizer of ours.
    """
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = False
    featurizers = featurizers_of(algorithm)
    if precision == "bf16" and not featurizers:
        raise UsageError(
            f"--precision bf16 is for featurizers that networks.Featurizer makes; {type(algorithm).__name__} has none"
        )
    for featurizer in featurizers:
        featurizer.in_bf16 = precision == "bf16"


def set_compiled(featurizers: Iterable[Featurizing], device: torch.device) -> str:
    """Have these compiled when they first run. Returns why that can't be, or an empty string."""
    if reason := _why_not_compiled(device.type):
        return reason
    # The draws of a sweep (dropout, widths, backbones), in training or not, with or without gradients: many variants,
    # of which torch keeps 8 by default, to go on uncompiled then without a word.
    torch._dynamo.config.cache_size_limit = 64
    for featurizer in featurizers:
        featurizer.is_compiled = True
    return ""


@functools.cache
def _why_not_compiled(device: str) -> str:
    """What becomes of the smallest thing to compile: most machines that can't, lack a compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(4, device=device))
    except Exception as error:  # of many classes
        return f"torch.compile fails here: {type(error).__name__}: {one_line(error)[:200]}"
    return ""
