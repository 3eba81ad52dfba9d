"""Published results: DomainBed's tables and the averages of Fishr and Fish. Accuracies are in percent."""

from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from domainbed.datasets import BENCHMARK

AVERAGE = "Avg"  # over environments or datasets, in published.csv and in the tables

# Published results use this protocol, and the default number of steps of each dataset.
N_HPARAMS, N_TRIALS = 20, 3
# Differences that no option can remove.
KNOWN_DIFFERENCES = {
    "RotatedMNIST": "the published tables used bicubic rotation; this package rotates bilinearly, as DomainBed "
    "does now",
    "TerraIncognita": "the published tables used 24,788 images; up to 458 of them are missing from today's download",
}
KNOWN_DIFFERENCES_OF_ALGORITHMS = {
    "DANN": "its gradient penalty had no effect",
    "CDANN": "its gradient penalty had no effect",
    "GroupDRO": "its loss was divided by the number of domains",
    "Mixup": "mixup_alpha was 0.1 in all draws",
    "MLDG": "it paired all domains in a random cycle",
}


class PublishedResult(NamedTuple):
    """A published accuracy.

    Attributes:
        accuracy: in percent.
        standard_error: in percent; NaN if none was published.
        source: the publication.
    """

    accuracy: float
    standard_error: float
    source: str


def find_published(selection: str, dataset: str, environment: str, algorithm: str) -> PublishedResult | None:
    """Return the published result of one cell of a dataset's table, if any; `environment` may be AVERAGE."""
    return _results().get((selection, dataset, environment, algorithm))


def find_published_average(selection: str, datasets: Collection[str], algorithm: str) -> PublishedResult | None:
    """Return the published average over datasets, if any; it exists only for the benchmark's seven datasets."""
    return find_published(selection, AVERAGE, AVERAGE, algorithm) if set(datasets) == set(BENCHMARK) else None


@cache
def _results() -> dict[tuple[str, str, str, str], PublishedResult]:
    import pandas as pd  # takes half a second; --help does not need it

    with (resources.files("domainbed.reporting") / "published.csv").open(encoding="utf-8") as file:
        # An environment's name may look like a number ("0" of RotatedMNIST).
        rows = pd.read_csv(file, dtype={"environment": str, "stderr": np.float64})
    keys = rows[["selection", "dataset", "environment", "algorithm"]].itertuples(index=False, name=None)
    values = rows[["accuracy", "stderr", "source"]].itertuples(index=False, name=None)
    return {key: PublishedResult(*value) for key, value in zip(keys, values, strict=True)}
