"""Loggers copy a job's records to other programs (`--log_to`). This file imports none of them, nor torch."""

from typing import TYPE_CHECKING

from domainbed.registry import Registry

if TYPE_CHECKING:
    from domainbed.engine.loggers.base import Logger

LOGGERS: Registry[type["Logger"]] = Registry(
    "logger",
    {
        "tensorboard": "domainbed.engine.loggers.tensorboard:TensorBoardLogger",
        "wandb": "domainbed.engine.loggers.wandb:WandbLogger",
        "mlflow": "domainbed.engine.loggers.mlflow:MLflowLogger",
        "csv": "domainbed.engine.loggers.csv:CsvLogger",
    },
    group="domainbed.loggers",
)

__all__ = ["LOGGERS"]
