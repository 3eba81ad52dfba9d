"""The photo datasets: VLCS, PACS, OfficeHome, TerraIncognita, DomainNet, SVIRO, and `Folder`, the user's own tree."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from domainbed.datasets.base import SIZE, FileEnvironment, MultipleDomainDataset
from domainbed.datasets.image_folders import has_images, no_images_message, normalize_name, read_tree, subfolders
from domainbed.errors import UsageError, suggest
from domainbed.hparams import Hparams


class PhotoDataset(MultipleDomainDataset):
    """Images of any size, resized to 3x224x224; by default, they are in <dataset folder>/<environment>/<class>/.

    The training environments are augmented if the hyperparameter `data_augmentation` is set.
    """

    CHECKPOINT_FREQ = 300
    input_shape = (3, *SIZE)
    class_names: list[str]

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        n = len(self.environment_names(root))
        augmented = [hparams["data_augmentation"] and env not in test_envs for env in range(n)]
        self.environments, self.class_names = self.read_environments(root, augmented)
        self.num_classes = len(self.class_names)

    @classmethod
    def find_problems(cls, root: str | None) -> list[str]:
        try:
            folder = cls.dataset_folder(root)
            names = cls.environment_folders(root)
            return [no_images_message(folder / name) for name in names if not has_images(folder / name)]
        except UsageError as error:
            return [str(error)]

    @classmethod
    def read_environments(cls, root: str | None, augmented: Sequence[bool]) -> tuple[list[FileEnvironment], list[str]]:
        """Return the environments, of which the given ones are augmented, and the names of the classes.

        Raises:
            UsageError: the images cannot be listed.
        """
        return read_tree(cls.dataset_folder(root), cls.environment_folders(root), augmented)

    @classmethod
    def environment_titles(cls, root: str | None) -> list[str]:
        """Return the environments' names in messages about files: by default, their folders."""
        return cls.environment_folders(root)

    @classmethod
    def dataset_folder(cls, root: str | None) -> Path:
        """Return the folder that contains the environments' folders. Raises UsageError if it does not exist."""
        raise NotImplementedError(f"{cls.__name__} must implement dataset_folder")

    @classmethod
    def environment_folders(cls, root: str | None) -> list[str]:
        """Return the names of the environments' folders, in order. Raises UsageError if one is missing."""
        raise NotImplementedError(f"{cls.__name__} must implement environment_folders")


class Folder(PhotoDataset):
    """The user's own tree, --data_dir/<environment>/<class>/<image>; the folders define environments and classes."""

    ENVIRONMENTS = []

    @classmethod
    def dataset_folder(cls, root: str | None) -> Path:
        if not root:
            raise UsageError("Folder requires --data_dir, a folder with one subfolder per environment")
        return Path(root)

    @classmethod
    def environment_folders(cls, root: str | None) -> list[str]:
        folder = cls.dataset_folder(root)
        if len(found := subfolders(folder)) < 2:
            raise UsageError(
                f"--data_dir {folder} must contain at least two folders, one per environment; found {found or 'none'}"
            )
        return found

    @classmethod
    def environment_names(cls, root: str | None) -> list[str]:
        return cls.environment_folders(root)

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        super().__init__(root, test_envs, hparams, trial_seed)
        if self.num_classes < 2:
            raise UsageError(
                f"--data_dir {root} has only one class, {self.class_names[0]}; expected environment/class/image"
            )


class PublishedDataset(PhotoDataset):
    """A photo dataset that others have published.

    Attributes:
        COLLECTION: the name of its download; None if no other dataset has the same files.
        FOLDER: the dataset's folder under --data_dir.
        CONTENTS: names of folders and files that it must contain.
        LAYOUT: the images in it, for messages.
        NUM_CLASSES: the number of classes.
        CLASSES: the names of the classes, if there are few.
        IMAGES: known numbers of images per environment; those of the published tables come first.
    """

    COLLECTION: ClassVar[str | None] = None
    FOLDER: ClassVar[str]
    CONTENTS: ClassVar[tuple[str, ...]]
    LAYOUT: ClassVar[str]
    NUM_CLASSES: ClassVar[int]
    CLASSES: ClassVar[tuple[str, ...]] = ()
    IMAGES: ClassVar[tuple[tuple[int, ...], ...]] = ()

    @classmethod
    def dataset_folder(cls, root: str | None) -> Path:
        if not root:
            raise UsageError(f"{cls.__name__} requires --data_dir, the folder that contains {cls.FOLDER}/")
        if not (folder := Path(root) / cls.FOLDER).is_dir():
            raise UsageError(
                f"{cls.__name__} not found: {folder} is not a folder; to get it, run "
                f"python -m domainbed.scripts.download --data_dir {root} --dataset {cls.__name__}"
            )
        return folder

    @classmethod
    def environment_titles(cls, root: str | None) -> list[str]:
        return cls.ENVIRONMENTS

    @classmethod
    def source_name(cls) -> str:
        """Return the name of the dataset's download in `publishers.sources`."""
        return cls.COLLECTION or cls.__name__

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        super().__init__(root, test_envs, hparams, trial_seed)
        if self.num_classes != self.NUM_CLASSES:
            warnings.warn(
                f"{self.dataset_folder(root)} has {self.num_classes} classes, not the {self.NUM_CLASSES} of "
                f"{type(self).__name__}; results are not comparable with published results",
                stacklevel=2,
            )


class PublishedTree(PublishedDataset):
    """A published dataset with one folder per environment.

    Attributes:
        ENVIRONMENT_FOLDERS: the folder of each environment.
    """

    LAYOUT = "<environment>/<class>/<image>"
    ENVIRONMENT_FOLDERS: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls.CONTENTS = cls.ENVIRONMENT_FOLDERS

    @classmethod
    def environment_folders(cls, root: str | None) -> list[str]:
        """Return the environments' folders, matched by name regardless of case and separators; ignore others."""
        folder = cls.dataset_folder(root)
        found = subfolders(folder)
        by_name = {normalize_name(name): name for name in found}
        if missing := [name for name in cls.ENVIRONMENT_FOLDERS if normalize_name(name) not in by_name]:
            problems = [
                f"no folder {name!r}, an environment of {cls.__name__}; {suggest(name, found)}" for name in missing
            ]
            raise UsageError(f"{folder} has {'; it has '.join(problems)}")
        return [by_name[normalize_name(name)] for name in cls.ENVIRONMENT_FOLDERS]

    @classmethod
    def environment_titles(cls, root: str | None) -> list[str]:
        return cls.environment_folders(root)


class VLCS(PublishedTree):
    """Caltech101, LabelMe, SUN09 and VOC2007 (Fang et al., ICCV 2013)."""

    FOLDER = "VLCS"
    ENVIRONMENTS = ["C", "L", "S", "V"]
    ENVIRONMENT_FOLDERS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
    NUM_CLASSES = 5
    CLASSES = ("bird", "car", "chair", "dog", "person")
    IMAGES = ((1415, 2656, 3282, 3376),)


class PACS(PublishedTree):
    """Art, cartoons, photos and sketches (Li et al., ICCV 2017)."""

    FOLDER = "PACS"
    ENVIRONMENTS = ["A", "C", "P", "S"]
    ENVIRONMENT_FOLDERS = ("art_painting", "cartoon", "photo", "sketch")
    NUM_CLASSES = 7
    CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    IMAGES = ((2048, 2344, 1670, 3929),)


class OfficeHome(PublishedTree):
    """Office and home objects: art, clip art, products and photos (Venkateswara et al., CVPR 2017)."""

    FOLDER = "office_home"
    ENVIRONMENTS = ["A", "C", "P", "R"]
    ENVIRONMENT_FOLDERS = ("Art", "Clipart", "Product", "Real World")
    NUM_CLASSES = 65
    IMAGES = ((2427, 4365, 4439, 4357),)


class TerraIncognita(PublishedTree):
    """Animals photographed by camera traps at four locations (Beery et al., ECCV 2018).

    The archive used for the published tables (24,788 images) is no longer available; the current one has 24,330 images.
    """

    FOLDER = "terra_incognita"
    ENVIRONMENTS = ["L100", "L38", "L43", "L46"]
    ENVIRONMENT_FOLDERS = ("location_100", "location_38", "location_43", "location_46")
    NUM_CLASSES = 10
    CLASSES = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")
    IMAGES = ((4879, 9767, 4020, 6122), (4741, 9736, 3970, 5883))


class DomainNet(PublishedTree):
    """Clip art, infographics, paintings, quick drawings, photos and sketches (Peng et al., ICCV 2019).

    The published tables leave out images that occur in two environments; list them in domain_net/leave_out.txt.
    """

    CHECKPOINT_FREQ = 1000
    FOLDER = "domain_net"
    ENVIRONMENTS = ["clip", "info", "paint", "quick", "real", "sketch"]
    ENVIRONMENT_FOLDERS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    NUM_CLASSES = 345
    IMAGES = ((48129, 51605, 72266, 172500, 172947, 69128),)


class SVIRO(PublishedTree):
    """Rendered rear seats of ten car models (Dias Da Cruz et al., WACV 2020)."""

    FOLDER = "sviro"
    ENVIRONMENTS = ["aclass", "escape", "hilux", "i3", "lexus", "tesla", "tiguan", "tucson", "x5", "zoe"]
    ENVIRONMENT_FOLDERS = tuple(ENVIRONMENTS)
    NUM_CLASSES = 7
