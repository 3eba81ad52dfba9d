"""The benchmark's photographs: VLCS, PACS, OfficeHome, TerraIncognita, DomainNet and SVIRO, and trees of your own."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.image_folders import plain, read_tree, subfolders
from domainbed.errors import UsageError, suggest
from domainbed.hparams_registry import Hparams


class Photographs(MultipleDomainDataset):
    """Images of any size in root/<environment>/<class>/, seen at 3x224x224.

    Where `data_augmentation` is wanted, the training environments are augmented.
    """

    CHECKPOINT_FREQ = 300
    input_shape = (3, 224, 224)
    classes: list[str]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int) -> None:
        folders = self.environment_folders(root)
        augmented = [hparams["data_augmentation"] and env not in test_envs for env in range(len(folders))]
        self.environments, self.classes = read_tree(self.dataset_folder(root), folders, augmented)
        self.num_classes = len(self.classes)

    @classmethod
    def dataset_folder(cls, root: str | None) -> Path:
        """The folder that holds the environments' folders. Raises UsageError where there is none."""
        raise NotImplementedError(f"{cls.__name__} does not say where it lies")

    @classmethod
    def environment_folders(cls, root: str | None) -> list[str]:
        """The environments' folders in it, in order. Raises UsageError where they are not as they should be."""
        raise NotImplementedError(f"{cls.__name__} does not say which environments it has")


class Folder(Photographs):
    """A tree of your own, --data_dir/<environment>/<class>/<image>: environments and classes are what is there."""

    ENVIRONMENTS = []

    @classmethod
    def dataset_folder(cls, root: str | None) -> Path:
        if not root:
            raise UsageError("Folder needs --data_dir, the folder that holds a folder per environment")
        return Path(root)

    @classmethod
    def environment_folders(cls, root: str | None) -> list[str]:
        folder = cls.dataset_folder(root)
        if len(found := subfolders(folder)) < 2:
            raise UsageError(
                f"--data_dir {folder} must hold a folder per environment, two at least, not {found or 'none'}"
            )
        return found

    @classmethod
    def environment_names(cls, root: str | None) -> list[str]:
        return cls.environment_folders(root)

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int) -> None:
        super().__init__(root, test_envs, hparams, trial_seed)
        if self.num_classes < 2:
            raise UsageError(
                f"--data_dir {root} holds a single class, {self.classes[0]}; the tree must be environment/class/image"
            )


class PublishedDataset(Photographs):
    """A dataset of the benchmark.

    FOLDER: under --data_dir. ENVIRONMENT_FOLDERS: in it, for each environment. IMAGES: how many images each of them has
    in the published tables (by total, where more than one is known). CLASSES: the classes' names, where they are few.
    """

    FOLDER: ClassVar[str]
    ENVIRONMENT_FOLDERS: ClassVar[tuple[str, ...]]
    NUM_CLASSES: ClassVar[int]
    CLASSES: ClassVar[tuple[str, ...]] = ()
    IMAGES: ClassVar[tuple[tuple[int, ...], ...]] = ()

    @classmethod
    def dataset_folder(cls, root: str | None) -> Path:
        if not root:
            raise UsageError(f"{cls.__name__} needs --data_dir, the folder that holds {cls.FOLDER}/")
        if not (folder := Path(root) / cls.FOLDER).is_dir():
            raise UsageError(
                f"{cls.__name__} is not there: {folder} is not a folder. How to get it: "
                f"python -m domainbed.scripts.download --data_dir {root} --dataset {cls.__name__}"
            )
        return folder

    @classmethod
    def environment_folders(cls, root: str | None) -> list[str]:
        """By name, whatever its case and the signs between words; what else lies there is not of the dataset."""
        folder = cls.dataset_folder(root)
        found = subfolders(folder)
        there = {plain(name): name for name in found}
        for name in cls.ENVIRONMENT_FOLDERS:
            if plain(name) not in there:
                raise UsageError(
                    f"{folder} has no folder {name!r}, an environment of {cls.__name__}; {suggest(name, found)}"
                )
        return [there[plain(name)] for name in cls.ENVIRONMENT_FOLDERS]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int) -> None:
        super().__init__(root, test_envs, hparams, trial_seed)
        if self.num_classes != self.NUM_CLASSES:
            warnings.warn(
                f"{self.dataset_folder(root)} holds {self.num_classes} classes, not the {self.NUM_CLASSES} of "
                f"{type(self).__name__}: the results won't compare with published ones",
                stacklevel=2,
            )


class VLCS(PublishedDataset):
    """Caltech101, LabelMe, SUN09 and VOC2007 (Fang et al., ICCV 2013)."""

    FOLDER = "VLCS"
    ENVIRONMENTS = ["C", "L", "S", "V"]
    ENVIRONMENT_FOLDERS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
    NUM_CLASSES = 5
    CLASSES = ("bird", "car", "chair", "dog", "person")
    IMAGES = ((1415, 2656, 3282, 3376),)


class PACS(PublishedDataset):
    """Art, cartoons, photographs and sketches (Li et al., ICCV 2017)."""

    FOLDER = "PACS"
    ENVIRONMENTS = ["A", "C", "P", "S"]
    ENVIRONMENT_FOLDERS = ("art_painting", "cartoon", "photo", "sketch")
    NUM_CLASSES = 7
    CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    IMAGES = ((2048, 2344, 1670, 3929),)


class OfficeHome(PublishedDataset):
    """Things of offices and homes: art, clip art, products, photographs (Venkateswara et al., CVPR 2017)."""

    FOLDER = "office_home"
    ENVIRONMENTS = ["A", "C", "P", "R"]
    ENVIRONMENT_FOLDERS = ("Art", "Clipart", "Product", "Real World")
    NUM_CLASSES = 65
    IMAGES = ((2427, 4365, 4439, 4357),)


class TerraIncognita(PublishedDataset):
    """Animals before camera traps at four places (Beery et al., ECCV 2018).

    The archive that the tables were made with is gone; what can be had today yields 24,330 images, not 24,788.
    """

    FOLDER = "terra_incognita"
    ENVIRONMENTS = ["L100", "L38", "L43", "L46"]
    ENVIRONMENT_FOLDERS = ("location_100", "location_38", "location_43", "location_46")
    NUM_CLASSES = 10
    CLASSES = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")
    IMAGES = ((4879, 9767, 4020, 6122), (4741, 9736, 3970, 5883))


class DomainNet(PublishedDataset):
    """Clip art, infographics, paintings, quick drawings, photographs and sketches (Peng et al., ICCV 2019).

    The tables leave out images that stand in two environments; list them in domain_net/leave_out.txt.
    """

    CHECKPOINT_FREQ = 1000
    FOLDER = "domain_net"
    ENVIRONMENTS = ["clip", "info", "paint", "quick", "real", "sketch"]
    ENVIRONMENT_FOLDERS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    NUM_CLASSES = 345
    IMAGES = ((48129, 51605, 72266, 172500, 172947, 69128),)


class SVIRO(PublishedDataset):
    """Rear seats of ten car models, rendered (Dias Da Cruz et al., WACV 2020)."""

    FOLDER = "sviro"
    ENVIRONMENTS = ["aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"]
    ENVIRONMENT_FOLDERS = tuple(ENVIRONMENTS)
    NUM_CLASSES = 7
