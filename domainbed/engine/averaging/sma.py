"""SMA: simple moving average, of Ensemble of Averages (Arpit, Wang, Zhou and Xiong, NeurIPS 2022)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from domainbed.algorithms.averaging import floating_tensors
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.sma import START
from domainbed.engine.averaging.base import Averaging, RunningMean

if TYPE_CHECKING:
    from domainbed.engine.config import JobConfig


class SMA(Averaging):
    """The uniform mean of all parameters and buffers over the updates since number START - 1, counted from 1."""

    def __init__(self, config: "JobConfig", algorithm: Algorithm) -> None:
        super().__init__(config, algorithm)
        self.updates = 0
        self.mean = RunningMean()

    def tensors(self) -> list[torch.Tensor]:
        return floating_tensors(self.algorithm)

    def add_update(self) -> None:
        self.updates += 1
        if self.updates >= START - 1:
            self.mean.add(self.tensors())

    def average(self) -> Sequence[torch.Tensor]:
        return self.mean.tensors

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "mean": self.mean.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        self.mean = RunningMean.restored(state["mean"], self.tensors())
