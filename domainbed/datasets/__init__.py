"""Datasets by name: `get_dataset_class("ColoredMNIST")`, `num_environments("ColoredMNIST")`."""

import inspect
from typing import Any

from domainbed.datasets.base import (
    ArrayEnvironment,
    DatasetSpec,
    Environment,
    FeatureEnvironment,
    FileEnvironment,
    MultipleDomainDataset,
)
from domainbed.errors import UsageError
from domainbed.registry import Registry


def _accept(name: str, item: Any) -> type[MultipleDomainDataset]:
    """Return a dataset to register. Raises UsageError if it does not have this package's interface."""
    if not (isinstance(item, type) and issubclass(item, MultipleDomainDataset)):
        raise UsageError(f"dataset {name!r}: {item!r} is not derived from domainbed.datasets.MultipleDomainDataset")
    try:
        inspect.signature(item).bind(None, (), {}, 0)
    except TypeError:
        raise UsageError(
            f"dataset {name!r}: {item.__name__}.__init__ must take (root, test_envs, hparams, trial_seed) and set "
            "self.environments, a list of ArrayEnvironment or FileEnvironment"
        ) from None
    return item


DATASETS: Registry[type[MultipleDomainDataset]] = Registry(
    "dataset",
    builtin={
        "ColoredDigits": "domainbed.datasets.digits:ColoredDigits",
        "RotatedDigits": "domainbed.datasets.digits:RotatedDigits",
        "ColoredMNIST": "domainbed.datasets.mnist:ColoredMNIST",
        "RotatedMNIST": "domainbed.datasets.mnist:RotatedMNIST",
        "VLCS": "domainbed.datasets.photos:VLCS",
        "PACS": "domainbed.datasets.photos:PACS",
        "OfficeHome": "domainbed.datasets.photos:OfficeHome",
        "TerraIncognita": "domainbed.datasets.photos:TerraIncognita",
        "DomainNet": "domainbed.datasets.photos:DomainNet",
        "SVIRO": "domainbed.datasets.photos:SVIRO",
        "WILDSCamelyon": "domainbed.datasets.wilds:WILDSCamelyon",
        "WILDSFMoW": "domainbed.datasets.wilds:WILDSFMoW",
        "SpawriousO2O_easy": "domainbed.datasets.spawrious:SpawriousO2O_easy",
        "SpawriousO2O_medium": "domainbed.datasets.spawrious:SpawriousO2O_medium",
        "SpawriousO2O_hard": "domainbed.datasets.spawrious:SpawriousO2O_hard",
        "SpawriousM2M_easy": "domainbed.datasets.spawrious:SpawriousM2M_easy",
        "SpawriousM2M_medium": "domainbed.datasets.spawrious:SpawriousM2M_medium",
        "SpawriousM2M_hard": "domainbed.datasets.spawrious:SpawriousM2M_hard",
        "Debug28": "domainbed.datasets.debug:Debug28",
        "Debug224": "domainbed.datasets.debug:Debug224",
        "Folder": "domainbed.datasets.photos:Folder",
        "Table": "domainbed.datasets.table:Table",
    },
    group="domainbed.datasets",
    path="domainbed.datasets.DATASETS",
    accept=_accept,
)

# The datasets of the published tables.
BENCHMARK = ("ColoredMNIST", "RotatedMNIST", "VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")


def get_dataset_class(name: str, columns: str | None = None) -> type[MultipleDomainDataset]:
    """Return the dataset class of this name, for a table with these columns (`--columns`).

    Raises:
        UsageError: the name is unknown, or the dataset does not have columns.
    """
    return DATASETS[name].with_columns(columns)


def num_environments(name: str, root: str | None = None) -> int:
    """Return the number of environments of a dataset; `root` is the data_dir (`Folder` and `Table` read it)."""
    return len(DATASETS[name].environment_names(root))


def dataset_spec(name: str, root: str | None = None, columns: str | None = None) -> DatasetSpec:
    """Return the specification of a dataset.

    Args:
        name: the dataset.
        root: the data_dir (`Folder` and `Table` read it).
        columns: the columns of a table.

    Raises:
        UsageError: the name is unknown, or the environments cannot be read.
    """
    cls = get_dataset_class(name, columns)
    environments = tuple(cls.environment_names(root))
    return DatasetSpec(environments, not cls.ENVIRONMENTS, cls.N_STEPS, cls.CHECKPOINT_FREQ, cls.N_TESTABLE)


__all__ = [
    "BENCHMARK",
    "DATASETS",
    "ArrayEnvironment",
    "DatasetSpec",
    "Environment",
    "FeatureEnvironment",
    "FileEnvironment",
    "MultipleDomainDataset",
    "dataset_spec",
    "get_dataset_class",
    "num_environments",
]
