"""The datasets, by name: `get_dataset_class("ColoredMNIST")`, `num_environments("ColoredMNIST")`."""

from domainbed.datasets.base import ArrayEnvironment, MultipleDomainDataset
from domainbed.registry import Registry

DATASETS: Registry[type[MultipleDomainDataset]] = Registry(
    "dataset",
    builtin={
        "ColoredDigits": "domainbed.datasets.digits:ColoredDigits",
        "RotatedDigits": "domainbed.datasets.digits:RotatedDigits",
        "ColoredMNIST": "domainbed.datasets.mnist:ColoredMNIST",
        "RotatedMNIST": "domainbed.datasets.mnist:RotatedMNIST",
    },
)


def get_dataset_class(name: str) -> type[MultipleDomainDataset]:
    """The dataset class of this name. Raises UsageError where there is none."""
    return DATASETS[name]


def num_environments(name: str) -> int:
    """How many environments the dataset of this name has."""
    return len(DATASETS[name].ENVIRONMENTS)


__all__ = ["DATASETS", "ArrayEnvironment", "MultipleDomainDataset", "get_dataset_class", "num_environments"]
