"""Averages of the weights along training, around any algorithm (`--averaging`). This file does not import torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from domainbed.records import NO_AVERAGING
from domainbed.registry import Registry

if TYPE_CHECKING:
    from domainbed.engine.averaging.base import Averaging

AVERAGINGS: Registry[type["Averaging"]] = Registry(
    "averaging",
    {"sma": "domainbed.engine.averaging.sma:SMA", "swad": "domainbed.engine.averaging.swad:SWAD"},
    group="domainbed.averagings",
)

# Updates between evaluations in the published experiments, if they differ from the dataset's own.
CHECKPOINT_FREQS: Mapping[str, Mapping[str, int]] = {
    "swad": {"PACS": 100, "VLCS": 50, "OfficeHome": 100, "TerraIncognita": 100, "DomainNet": 500}
}

__all__ = ["AVERAGINGS", "CHECKPOINT_FREQS", "NO_AVERAGING"]
