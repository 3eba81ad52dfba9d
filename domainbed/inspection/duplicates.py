"""Images that occur more than once."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from domainbed.datasets import ArrayEnvironment, FileEnvironment
from domainbed.inspection.image_files import Header, sha256_of
from domainbed.inspection.reader import Key


class Duplicates(NamedTuple):
    """Pairs of an image and a later copy of it. All copies of an image are paired with the first one.

    Attributes:
        pairs: all pairs.
        across_environments: those in different environments.
        across_classes: those with different labels.
    """

    pairs: list[tuple[Key, Key]]
    across_environments: list[tuple[Key, Key]]
    across_classes: list[tuple[Key, Key]]


def find_duplicates(contents: Iterable[tuple[Key, Hashable]], labels: Sequence[np.ndarray]) -> Duplicates:
    """Return the duplicates among images.

    Args:
        contents: images, each with a value that is equal for equal images only.
        labels: for each environment, [n].
    """
    first: dict[Hashable, Key] = {}
    pairs = [(first[content], key) for key, content in contents if first.setdefault(content, key) != key]
    return Duplicates(
        pairs,
        [(a, b) for a, b in pairs if a[0] != b[0]],
        [(a, b) for a, b in pairs if labels[a[0]][a[1]] != labels[b[0]][b[1]]],
    )


def file_contents(
    environments: Mapping[int, FileEnvironment], headers: Mapping[Key, Header]
) -> Iterator[tuple[Key, Hashable]]:
    """Yield a checksum of each file that may have a copy. Only such files are read, which are few.

    Args:
        environments: the environments, by number.
        headers: those of the files that have one.
    """
    counts = Counter(header.fingerprint for header in headers.values())
    for (env, i), header in headers.items():
        if counts[header.fingerprint] > 1:
            yield (env, i), sha256_of(environments[env].folder / environments[env].files[i])


def array_contents(environments: Mapping[int, ArrayEnvironment]) -> Iterator[tuple[Key, Hashable]]:
    """Yield a checksum of each image of some environments, by number."""
    for env, environment in environments.items():
        for i, image in enumerate(environment.images):
            yield (env, i), hashlib.sha256(image.tobytes()).digest()
