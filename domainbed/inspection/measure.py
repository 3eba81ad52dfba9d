"""Inspects a dataset."""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np

from domainbed.datasets import ArrayEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.engine.config import JobConfig
from domainbed.engine.data import load_dataset
from domainbed.inspection.contents import DatasetContents, EnvironmentContents
from domainbed.inspection.duplicates import Duplicates, array_contents, file_contents, find_duplicates
from domainbed.inspection.findings import find_problems
from domainbed.inspection.image_files import Header, read_header
from domainbed.inspection.pixels import PixelStatistics
from domainbed.inspection.reader import ImageReader, Key, has_colors
from domainbed.inspection.sampling import round_robin, sample_classes, sample_images
from domainbed.inspection.sheets import SheetMaker
from domainbed.inspection.views import TrainingViews
from domainbed.terminal import ProgressBar

N_VIEWED = 4  # images of each environment whose augmented views are shown
N_AUGMENTED = 5  # views of each of them


def inspect_dataset(
    config: JobConfig, dataset: MultipleDomainDataset, images_per_class: int, sample: int
) -> DatasetContents:
    """Return what is in the dataset of a job, whose seed determines all random choices.

    Args:
        config: the job.
        dataset: its dataset, as returned by `load_with_warnings`.
        images_per_class: number of images of each class and environment to show.
        sample: number of images of each environment whose pixels are measured; 0 for all.
    """
    environments = [e for e in dataset if isinstance(e, ArrayEnvironment | FileEnvironment)]  # all: see `check_dataset`
    classes = dataset.class_names or [str(label) for label in range(dataset.num_classes)]
    reader = ImageReader(environments, config.environment_names())
    headers, duplicates = read_files(reader)
    pixels = measure_pixels(reader, sample, config.seed)
    are_colors = all(map(has_colors, environments))
    low, high = (0.0, 1.0) if are_colors else value_range(pixels)
    maker = SheetMaker(config.dataset, classes, reader, low, high)
    training_views = TrainingViews(config, dataset, reader)
    contents = []
    for env, environment in enumerate(ProgressBar(environments, "contact sheets", unit=" environments", leave=False)):
        counts = np.bincount(environment.labels.astype(np.int64), minlength=len(classes))
        by_class = sample_classes(environment.labels, len(classes), images_per_class, config.seed, env)
        contact_sheet = maker.contact_sheet(env, by_class, counts.tolist())
        views = None
        if environment.is_augmented:
            readable = (i for i in round_robin(by_class, config.seed, env) if reader.read(env, i) is not None)
            viewed = list(itertools.islice(readable, N_VIEWED))
            views = maker.views(env, viewed, training_views.of_images(env, viewed, N_AUGMENTED))
        contents.append(EnvironmentContents(reader.names[env], counts, headers[env], pixels[env], contact_sheet, views))
    has_files = any(isinstance(environment, FileEnvironment) for environment in environments)
    return DatasetContents(
        config.dataset,
        config.data_dir,
        classes,
        dataset.input_shape,
        has_files,
        are_colors,
        config.seed,
        contents,
        find_problems(contents, classes, duplicates, reader),
    )


def load_with_warnings(config: JobConfig) -> tuple[MultipleDomainDataset, list[str]]:
    """Return the dataset of a job, with all environments as if they were trained on, and the warnings on the way.

    Raises:
        UsageError: the dataset does not exist, cannot be read, or is not what its class declares.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        dataset = load_dataset(config, config.resolved_hparams(), ())
    return dataset, [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def read_files(reader: ImageReader) -> tuple[list[list[Header]], Duplicates]:
    """Return the headers of each environment's files that have one, and the duplicates among all images."""
    photos = {env: e for env, e in enumerate(reader.environments) if isinstance(e, FileEnvironment)}
    arrays = {env: e for env, e in enumerate(reader.environments) if isinstance(e, ArrayEnvironment)}
    keys = [(env, i) for env, environment in photos.items() for i in range(len(environment))]
    headers: dict[Key, Header] = {}
    for env, i in ProgressBar(keys, "image files", unit=" files", leave=False):  # not in threads, which are slower
        result = read_header(photos[env].folder / photos[env].files[i])
        if isinstance(result, Header):
            headers[env, i] = result
        else:
            reader.broken[env, i] = f"{reader.name(env, i)} ({result})"
    by_environment: list[list[Header]] = [[] for _ in reader.environments]
    for (env, _), header in headers.items():
        by_environment[env].append(header)
    contents = itertools.chain(file_contents(photos, headers), array_contents(arrays))
    return by_environment, find_duplicates(contents, [environment.labels for environment in reader.environments])


def measure_pixels(reader: ImageReader, sample: int, seed: int) -> list[PixelStatistics]:
    """Return statistics of `sample` random images of each environment."""
    samples = [sample_images(len(e), sample, seed, env) for env, e in enumerate(reader.environments)]
    statistics = [PixelStatistics() for _ in samples]
    with ProgressBar(total=sum(map(len, samples)), desc="pixels", unit=" images", leave=False) as bar:
        for env, images in enumerate(samples):
            for i in images:
                if (image := reader.read(env, i)) is not None:
                    statistics[env].add(image, has_colors(reader.environments[env]))
                bar.update()
    return statistics


def value_range(pixels: Sequence[PixelStatistics]) -> tuple[float, float]:
    """Return the smallest and the largest value in all environments."""
    measured = [statistics for statistics in pixels if statistics.n]
    return min((s.low for s in measured), default=0.0), max((s.high for s in measured), default=1.0)
