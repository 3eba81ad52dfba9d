"""Spawrious: generated photos of four breeds of dogs, whose backgrounds predict the breed only in training.

Lynch et al. 2023, https://arxiv.org/abs/2303.05470. The images are in spawrious224/{0,1}/<place>/<breed>/. In O2O (one
to one), a breed has one place, apart from a few images in a place that all breeds share. In M2M (many to many), pairs
of breeds swap places between the two training environments.

DomainBed takes the first images of a folder in the order of os.listdir, which differs between machines. They are sorted
here, so environments and splits are the same everywhere, but not necessarily those of a run of DomainBed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from domainbed.datasets.base import FileEnvironment
from domainbed.datasets.image_folders import FileId, list_images, read_leave_out
from domainbed.datasets.photos import PublishedDataset
from domainbed.errors import UsageError
from domainbed.hparams import Hparams

IMAGES_PER_FOLDER = 3168  # of one breed in one place
BREEDS = ("bulldog", "dachshund", "labrador", "corgi")  # in the order in which an environment lists them
CORRELATED = (0.97, 0.87)  # fractions of a breed's images that are in its own place, in the environments 1 and 2 of O2O


class Part(NamedTuple):
    """The first `n` images of a breed in a folder such as "0/desert"."""

    folder: str
    breed: str
    n: int


class Spawrious(PublishedDataset):
    """A test environment and two training environments.

    Environment 0 is meant for testing, and is always plain. The others are always augmented, without crops, even if
    they are test environments too.

    Attributes:
        PLACES: a place for each of BREEDS in the training environments; its meaning is up to the subclass.
        TEST_PLACES: the same for the test environment.
    """

    CHECKPOINT_FREQ = 100
    COLLECTION = "Spawrious"
    FOLDER = "spawrious224"
    CONTENTS = ("0", "1")
    LAYOUT = "{0,1}/<place>/<breed>/<image>"
    ENVIRONMENTS = ["Test", "SC_group_1", "SC_group_2"]
    N_TESTABLE = 1
    NUM_CLASSES = 4
    CLASSES = ("bulldog", "corgi", "dachshund", "labrador")
    IMAGES = ((25344, 12672, 12672),)
    PLACES: ClassVar[tuple[str, str, str, str]]
    TEST_PLACES: ClassVar[tuple[str, str, str, str]]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        super().__init__(root, [0], hparams, trial_seed)

    @classmethod
    def dataset_folder(cls, root: str | None) -> Path:
        # DomainBed's --data_dir is the archive's folder itself.
        if root and not (Path(root) / cls.FOLDER).is_dir() and all((Path(root) / n).is_dir() for n in cls.CONTENTS):
            return Path(root)
        return super().dataset_folder(root)

    @classmethod
    def parts(cls) -> list[list[Part]]:
        """Return the parts of each environment."""
        raise NotImplementedError(f"{cls.__name__} must implement parts")

    @classmethod
    def find_problems(cls, root: str | None) -> list[str]:
        try:
            folder = cls.dataset_folder(root)
        except UsageError as error:
            return [str(error)]
        names = {f"{part.folder}/{part.breed}" for parts in cls.parts() for part in parts}
        return [f"{folder / name} is not a folder" for name in sorted(names) if not (folder / name).is_dir()]

    @classmethod
    def read_environments(cls, root: str | None, augmented: Sequence[bool]) -> tuple[list[FileEnvironment], list[str]]:
        folder = cls.dataset_folder(root)
        leave_out = read_leave_out(folder)
        known: dict[FileId, str] = {}
        trees: dict[str, dict[str, list[str]]] = {}
        environments = []
        for parts, is_augmented in zip(cls.parts(), augmented, strict=True):
            files: list[str] = []
            labels: list[int] = []
            for part in parts:
                if part.folder not in trees:
                    trees[part.folder] = list_images(folder, part.folder, known)
                if part.breed not in trees[part.folder]:
                    raise UsageError(f"{folder / part.folder / part.breed} has no images")
                first = trees[part.folder][part.breed][: part.n]  # list_images sorts them
                used = [file for file in first if file not in leave_out]
                files += used
                labels += [cls.CLASSES.index(part.breed)] * len(used)
            environment = FileEnvironment(folder, files, np.array(labels, np.int64), is_augmented, is_cropped=False)
            environments.append(environment)
        return environments, list(cls.CLASSES)


class SpawriousO2O(Spawrious):
    """Each breed in a place of its own, apart from a few images of all breeds in the place FILLER."""

    FILLER: ClassVar[str]

    @classmethod
    def parts(cls) -> list[list[Part]]:
        environments = [whole_folders(f, cls.TEST_PLACES) for f in (0, 1)]
        test = [part for parts in environments for part in parts]
        training = []
        for folder, fraction in enumerate(CORRELATED):
            n = int(fraction * IMAGES_PER_FOLDER)
            own = [Part(f"{folder}/{place}", breed, n) for place, breed in zip(cls.PLACES, BREEDS, strict=True)]
            filler = [Part(f"{folder}/{cls.FILLER}", breed, IMAGES_PER_FOLDER - n) for breed in BREEDS]
            training.append(own + filler)
        return [test, *training]


class SpawriousM2M(Spawrious):
    """Two breeds share two places, and the other two breeds two other places; they swap them between environments."""

    @classmethod
    def parts(cls) -> list[list[Part]]:
        test = whole_folders(0, cls.TEST_PLACES) + whole_folders(0, swap_pairs(cls.TEST_PLACES))
        return [test, whole_folders(0, cls.PLACES), whole_folders(0, swap_pairs(cls.PLACES))]


def whole_folders(folder: int, places: Sequence[str]) -> list[Part]:
    """Return all images of each of BREEDS in its place."""
    return [Part(f"{folder}/{place}", breed, IMAGES_PER_FOLDER) for place, breed in zip(places, BREEDS, strict=True)]


def swap_pairs(places: Sequence[str]) -> list[str]:
    """Return the places b, a, d, c of a, b, c, d."""
    a, b, c, d = places
    return [b, a, d, c]


class SpawriousO2O_easy(SpawriousO2O):
    PLACES = ("desert", "jungle", "dirt", "snow")
    FILLER = "beach"
    TEST_PLACES = ("dirt", "snow", "desert", "jungle")


class SpawriousO2O_medium(SpawriousO2O):
    PLACES = ("mountain", "beach", "dirt", "jungle")
    FILLER = "desert"
    TEST_PLACES = ("jungle", "dirt", "beach", "snow")


class SpawriousO2O_hard(SpawriousO2O):
    PLACES = ("jungle", "mountain", "snow", "desert")
    FILLER = "beach"
    TEST_PLACES = ("mountain", "snow", "desert", "jungle")


class SpawriousM2M_easy(SpawriousM2M):
    PLACES = ("desert", "mountain", "dirt", "jungle")
    TEST_PLACES = ("dirt", "jungle", "mountain", "desert")


class SpawriousM2M_medium(SpawriousM2M):
    PLACES = ("beach", "snow", "mountain", "desert")
    TEST_PLACES = ("desert", "mountain", "beach", "snow")


class SpawriousM2M_hard(SpawriousM2M):
    PLACES = ("dirt", "jungle", "snow", "beach")
    TEST_PLACES = ("snow", "beach", "dirt", "jungle")
