"""Moving averages in DomainBed's Fishr and ERM++. Their state is saved in checkpoints."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """An exponential moving average of a dict of tensors, from zero.

    Only the history is detached. With `oneminusema_correction`, the returned average is divided by 1 - ema, so that the
    magnitude of gradients does not depend on ema.
    """

    def __init__(self, ema: float, oneminusema_correction: bool = True) -> None:
        self.ema = ema
        self.ema_data: dict[str, torch.Tensor] = {}
        self._updates = 0
        self._oneminusema_correction = oneminusema_correction

    def update(self, dict_data: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add tensors and return the averages, each as a row [1, elements]."""
        averages = {}
        for name, data in dict_data.items():
            row = data.reshape(1, -1)
            previous = self.ema_data[name] if self._updates else torch.zeros_like(row)
            average = self.ema * previous + (1 - self.ema) * row
            self.ema_data[name] = average.detach().clone()
            averages[name] = average / (1 - self.ema) if self._oneminusema_correction else average
        self._updates += 1
        return averages

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "data": dict(self.ema_data)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates = state["updates"]
        self.ema_data = dict(state["data"])


class ErmPlusPlusMovingAvg:
    """The average of a network's weights over updates, `network_sma`; also a base class next to `Algorithm`.

    Up to update 599 it holds the current weights, then the uniform mean of the weights since update 599.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.network_sma = copy.deepcopy(network)
        self.network_sma.eval()
        self.sma_start_iter = 600
        self.global_iter = 0
        self.sma_count = 0

    @torch.no_grad()
    def update_sma(self) -> None:
        """Include the current weights and buffers, except for batch norm's counters of batches."""
        self.global_iter += 1
        if self.global_iter >= self.sma_start_iter:
            self.sma_count += 1
        current = self.network.state_dict()
        for name, average in self.network_sma.state_dict().items():
            if "num_batches_tracked" not in name:
                average.copy_((average * self.sma_count + current[name]) / (1 + self.sma_count))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(self, nn.Module):  # the state of an algorithm of which this is a base class
            return super().state_dict(*args, **kwargs)  # type: ignore[misc]
        counts = {"global_iter": self.global_iter, "sma_count": self.sma_count}
        return {"network_sma": self.network_sma.state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, nn.Module):
            return super().load_state_dict(state, *args, **kwargs)  # type: ignore[misc]
        self.network_sma.load_state_dict(state["network_sma"])
        self.global_iter, self.sma_count = state["global_iter"], state["sma_count"]
        return None
