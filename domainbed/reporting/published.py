"""What papers printed: DomainBed's tables of 2020, Fishr's and Fish's averages. Accuracies in percent."""

from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
import pandas as pd

from domainbed.datasets import BENCHMARK
from domainbed.reporting.cells import AVERAGE

DRAWS, TRIALS = 20, 3  # with which they were made; and each dataset's own number of steps
# What can't be had as it was then.
MADE_OTHERWISE = {
    "RotatedMNIST": "DomainBed's tables of 2020 rest on bicubic rotation, these on bilinear (as DomainBed has it now)",
    "TerraIncognita": "the published tables rest on 24,788 images, of which a download today may lack 458",
}


class PublishedResult(NamedTuple):
    """A printed accuracy, its standard error (NaN where none was printed), and where it was printed."""

    accuracy: float
    error: float
    source: str


def published(selection: str, dataset: str, environment: str, algorithm: str) -> PublishedResult | None:
    """What was printed in a dataset's table (`environment` may be AVERAGE), if anything was."""
    return _cells().get((selection, dataset, environment, algorithm))


def published_average(selection: str, datasets: list[str], algorithm: str) -> PublishedResult | None:
    """What was printed as the average over datasets; it is over the benchmark's seven."""
    return published(selection, AVERAGE, AVERAGE, algorithm) if set(datasets) == set(BENCHMARK) else None


@cache
def _cells() -> dict[tuple[str, str, str, str], PublishedResult]:
    file = resources.files("domainbed.reporting") / "published.csv"
    with file.open(encoding="utf-8") as text:
        # Algorithms and environments are names, whatever they look like ("0" is one of RotatedMNIST).
        cells = pd.read_csv(text, dtype={"environment": str})
    keys = cells[["selection", "dataset", "environment", "algorithm"]].itertuples(index=False, name=None)
    values = cells[["accuracy", "stderr", "source"]].astype({"stderr": np.float64}).itertuples(index=False, name=None)
    return {key: PublishedResult(*value) for key, value in zip(keys, values, strict=True)}
