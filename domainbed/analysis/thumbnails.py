"""Thumbnails of test images, read from the dataset on which a sweep was run."""

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from domainbed.datasets import ArrayEnvironment, FileEnvironment, MultipleDomainDataset, get_dataset_class
from domainbed.errors import UsageError, printable
from domainbed.hparams import Hparams
from domainbed.loading.decode import decode, read_file, to_rgb
from domainbed.records import read_job
from domainbed.reporting.load import Sweep

ImageEnvironment: TypeAlias = ArrayEnvironment | FileEnvironment

SIZE = 144  # pixels of the longer side, at most; 200 dpi on a sheet


class ImageKey(NamedTuple):
    """An image of a test environment.

    Attributes:
        test_env: the number of the environment.
        image: its name, as in `Predictions.image`.
        label: the name of its class.
        trial_seed: a trial in which the environment has it. The color of a digit, for example, depends on the trial.
    """

    test_env: int
    image: str
    label: str
    trial_seed: int


@dataclass(frozen=True)
class ImageSource:
    """The dataset of a sweep's jobs. Its images are read when thumbnails are requested.

    Attributes:
        name: the name of the dataset.
        dataset_class: its class, for a table with the columns of the jobs.
        data_dir: the folder of the dataset, as for `train`.
        hparams: the hyperparameters of one of the jobs; images do not depend on them.
    """

    name: str
    dataset_class: type[MultipleDomainDataset]
    data_dir: str
    hparams: Hparams

    def read_thumbnails(self, keys: Iterable[ImageKey]) -> dict[ImageKey, np.ndarray]:
        """Return the images that exist and can be read, uint8 [height, width, 3], with SIZE pixels per side at most.

        The dataset is constructed once per trial; files are found in any trial.

        Raises:
            UsageError: the dataset cannot be constructed, or does not consist of images.
        """
        remaining = set(keys)
        thumbnails: dict[ImageKey, np.ndarray] = {}
        for trial in sorted({key.trial_seed for key in remaining}):
            if not any(key.trial_seed == trial for key in remaining):
                continue
            dataset, environments = self.construct(trial)
            classes = [printable(name) for name in dataset.class_names or range(dataset.num_classes)]
            for env in sorted({key.test_env for key in remaining}):
                environment = environments[env]
                has_files = isinstance(environment, FileEnvironment)
                requested = [k for k in remaining if k.test_env == env and (has_files or k.trial_seed == trial)]
                positions = dict(_locate(environment, classes, requested))
                thumbnails |= _read(environment, positions)
                remaining -= positions.keys()
        return thumbnails

    def construct(self, trial_seed: int) -> tuple[MultipleDomainDataset, list[ImageEnvironment]]:
        """Return the dataset of a trial, and its environments.

        Raises:
            UsageError: it cannot be constructed, or does not consist of images.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the jobs showed them
            dataset = self.dataset_class(self.data_dir, (), self.hparams, trial_seed)
        environments = [e for e in dataset if isinstance(e, ArrayEnvironment | FileEnvironment)]
        if len(environments) < len(dataset):
            raise UsageError(f"{self.name} does not consist of images; run without --data_dir")
        return dataset, environments


def open_source(sweep: Sweep, dataset: str, data_dir: str) -> ImageSource:
    """Return the source of a dataset's images, without downloading any.

    Raises:
        UsageError: the dataset is unknown, is not in `data_dir`, cannot be constructed, or does not consist of images.
    """
    jobs = sweep.jobs[sweep.jobs["dataset"] == dataset]
    folder = jobs.index[0]
    columns = read_job(sweep.folder / folder)[0][-1]["args"].get("columns")
    dataset_class = get_dataset_class(dataset, columns)
    problems = [*dataset_class.find_problems(data_dir), *dataset_class.find_downloads(data_dir)]
    if not problems:
        names = tuple(map(printable, dataset_class.environment_names(data_dir)))
        recorded = {names for names in jobs["environments"] if names}
        if recorded and names not in recorded:
            problems.append(
                f"--data_dir {data_dir!r} has the environments {', '.join(names)}, but the sweep was run on "
                f"{', '.join(min(recorded))}"
            )
    if problems:
        raise UsageError(
            f"cannot make contact sheets of {dataset}: {problems[0]}; without --data_dir, no images are required"
        )
    source = ImageSource(dataset, dataset_class, data_dir, json.loads(str(jobs.at[folder, "hparams"])))
    source.construct(int(jobs["trial_seed"].min()))  # raises; `seed_hash` hashes the text of a number, with its type
    return source


def _locate(
    environment: ImageEnvironment, classes: Sequence[str], keys: Iterable[ImageKey]
) -> Iterator[tuple[ImageKey, int]]:
    """Yield the keys of the images that the environment has, with their positions in it."""
    by_name = defaultdict(list)
    for key in keys:
        by_name[key.image].append(key)
    names = environment.image_names
    for i in range(len(environment)) if by_name else ():
        for key in by_name.get(str(i) if names is None else printable(names[i]), ()):
            if classes[environment.labels[i]] == key.label:
                yield key, i


def _read(environment: ImageEnvironment, positions: dict[ImageKey, int]) -> dict[ImageKey, np.ndarray]:
    """Return the thumbnails of the images at these positions, without those that cannot be read."""
    if isinstance(environment, ArrayEnvironment):
        arrays = {key: environment.images[i] for key, i in positions.items()}
        low, high = _value_range(arrays.values(), environment.images.dtype)
        return {key: _shrink(to_rgb(array, low, high)) for key, array in arrays.items()}
    thumbnails = {}
    for key, i in positions.items():
        path = Path(environment.folder, environment.files[i])
        try:
            thumbnails[key] = _shrink(decode(read_file(path), path))
        except UsageError:
            continue
    return thumbnails


def _value_range(arrays: Iterable[np.ndarray], dtype: np.dtype) -> tuple[float, float]:
    """Return the values to show as black and as white: of numbers other than bytes, the smallest and the largest."""
    if dtype == np.uint8:
        return 0.0, 255.0
    finite = np.concatenate([np.zeros(0), *(array[np.isfinite(array)] for array in arrays)])
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Return an image with SIZE pixels per side at most, in its own aspect ratio."""
    if max(pixels.shape[:2]) <= SIZE:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(image)
