"""What a user should know of a dataset before training."""

from collections.abc import Sequence

from domainbed.errors import UsageError, list_some
from domainbed.inspection.contents import EnvironmentContents
from domainbed.inspection.duplicates import Duplicates
from domainbed.inspection.reader import ImageReader, Key
from domainbed.loading.splits import split_environment

HOLDOUT_FRACTION = 0.2  # the default of a job
UNBALANCED = 10  # times as many images of the most frequent class as of the least frequent one
GRAY_SHARE = 0.9  # of the sampled images
N_LISTED = 5


def find_problems(
    environments: Sequence[EnvironmentContents], classes: Sequence[str], duplicates: Duplicates, reader: ImageReader
) -> list[str]:
    """Return what is unusual, one line each, the most serious first."""
    problems = _describe_broken(reader)
    for env, environment in enumerate(environments):
        problems += _describe_counts(env, environment, classes)
    problems += _describe_duplicates(duplicates, reader)
    for environment in environments:
        problems += _describe_images(environment)
    return problems


def _describe_broken(reader: ImageReader) -> list[str]:
    if not reader.broken:
        return []
    listed = list_some(list(reader.broken.values()), N_LISTED)
    return [
        f"{_count(len(reader.broken), 'broken image')}: {listed}. Only the headers of files and the images shown or "
        "measured here were read; download --verify decodes all"
    ]


def _describe_counts(env: int, environment: EnvironmentContents, classes: Sequence[str]) -> list[str]:
    name, counts = environment.name, environment.counts.tolist()
    problems = []
    if missing := [classes[label] for label, n in enumerate(counts) if not n]:
        listed = list_some(missing, N_LISTED)
        problems.append(f"{name} has no images of {len(missing)} of {len(classes)} classes: {listed}")
    try:
        split_environment(sum(counts), env, 0, HOLDOUT_FRACTION)
    except UsageError as error:
        problems.append(f"{name}: {error}")
    present = {n: classes[label] for label, n in enumerate(counts) if n}
    if present and max(present) >= UNBALANCED * min(present):
        most, least = max(present), min(present)
        problems.append(
            f"{name} is unbalanced: {_count(most, 'image')} of {present[most]}, but {_count(least, 'image')} of "
            f"{present[least]}"
        )
    return problems


def _describe_duplicates(duplicates: Duplicates, reader: ImageReader) -> list[str]:
    def example(pairs: Sequence[tuple[Key, Key]]) -> str:
        original, copy = pairs[0]
        return f"{len(pairs):,}, such as {reader.name(*copy)} of {reader.name(*original)}"

    problems = []
    if pairs := duplicates.across_classes:
        problems.append(f"copies of images with other labels: {example(pairs)}")
    if pairs := duplicates.across_environments:
        problems.append(f"copies of images in other environments: {example(pairs)}")
    elsewhere = {*duplicates.across_classes, *duplicates.across_environments}
    if pairs := [pair for pair in duplicates.pairs if pair not in elsewhere]:
        problems.append(f"copies of images in the same class, perhaps in the other split: {example(pairs)}")
    return problems


def _describe_images(environment: EnvironmentContents) -> list[str]:
    name, pixels = environment.name, environment.pixels
    problems = []
    if pixels.n_not_finite:
        problems.append(f"{name}: {pixels.n_not_finite:,} of the sampled images have values that are not finite")
    if pixels.n_constant:
        problems.append(f"{name}: {pixels.n_constant:,} of {pixels.n:,} sampled images have a single color")
    if pixels.n and pixels.n_gray >= GRAY_SHARE * pixels.n:
        problems.append(f"{name} is grayscale: {pixels.n_gray:,} of {pixels.n:,} sampled images have no colors")
    if rotated := sum(header.is_rotated for header in environment.headers):
        problems.append(
            f"{name}: {_count(rotated, 'image')} not upright, because the EXIF orientation of files is ignored"
        )
    if transparent := sum(header.is_transparent for header in environment.headers):
        problems.append(f"{name}: {_count(transparent, 'image')} with transparency, which is dropped")
    return problems


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"
