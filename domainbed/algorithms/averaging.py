"""Running averages of a network's weights along training."""

import copy

import torch
from torch import nn


class WeightAverage(nn.Module):
    """A copy of a network that holds the mean of its parameters and buffers over updates.

    Before update number `start`, counted from 1, it holds the current weights; from then on the uniform mean of the
    weights after the updates start - 1, start, …. The count is a buffer, so that updates can be captured.

    Args:
        network: the network to average.
        start: the first update that is averaged.
    """

    count: torch.Tensor  # 0-dim: weights in the mean
    updates: torch.Tensor  # 0-dim: updates so far

    def __init__(self, network: nn.Module, start: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.start = start
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def train(self, mode: bool = True) -> "WeightAverage":
        """Stay in evaluation mode: the average is never trained."""
        return super().train(False)

    @torch.no_grad()
    def update_batch_norm(self, x: torch.Tensor) -> None:
        """Update the running statistics of batch norm on images."""
        self.network.train()
        self.network(x)
        self.network.eval()

    @torch.no_grad()
    def add(self, network: nn.Module) -> None:
        """Include the current weights of the network."""
        self.updates.add_(1)
        is_averaging = self.updates >= self.start
        self.count.copy_(torch.where(is_averaging, self.count, 0))
        share = 1 / (self.count + 1)
        for mean, value in zip(floating_tensors(self.network), floating_tensors(network), strict=True):
            mean.lerp_(value, share.to(mean.dtype))
        self.count.add_(1)


def floating_tensors(network: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers of a network, each once, except for integers such as counters."""
    state = network.state_dict(keep_vars=True).values()
    tensors = [value for value in state if isinstance(value, torch.Tensor)]  # a module's extra state may be anything
    return list({id(tensor): tensor for tensor in tensors if tensor.is_floating_point()}.values())
