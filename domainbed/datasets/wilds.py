"""WILDSCamelyon and WILDSFMoW: the environments of two datasets of WILDS (Koh et al., ICML 2021), read from its files.

As in DomainBed, an environment has all images of one hospital or region, whatever their split in WILDS, and images are
resized before they are augmented. The package wilds is not needed.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from domainbed.datasets.base import FileEnvironment
from domainbed.datasets.image_folders import read_leave_out
from domainbed.datasets.photos import PublishedDataset
from domainbed.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

OTHER = "Other"  # WILDS' region of countries that its table of countries lacks


class WILDS(PublishedDataset):
    """Images that a CSV file lists. A subclass implements `read_metadata`."""

    CHECKPOINT_FREQ = 100

    @classmethod
    def read_metadata(cls, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Return the file, environment and label of each image, `[n]` each, and the names of the classes.

        Raises:
            UsageError: the metadata cannot be read.
        """
        raise NotImplementedError(f"{cls.__name__} must implement read_metadata")

    @classmethod
    def find_problems(cls, root: str | None) -> list[str]:
        try:
            folder = cls.dataset_folder(root)
        except UsageError as error:
            return [str(error)]
        return [f"{folder} has no {name}" for name in cls.CONTENTS if not (folder / name).exists()]

    @classmethod
    def read_environments(cls, root: str | None, augmented: Sequence[bool]) -> tuple[list[FileEnvironment], list[str]]:
        folder = cls.dataset_folder(root)
        files, numbers, labels, classes = cls.read_metadata(folder)
        if leave_out := read_leave_out(folder):
            is_used = np.array([file not in leave_out for file in files])
            files, numbers, labels = files[is_used], numbers[is_used], labels[is_used]
        environments = []
        for env, is_augmented in enumerate(augmented):
            (rows,) = np.nonzero(numbers == env)  # in the order of the metadata
            if not len(rows):
                raise UsageError(f"{folder / cls.CONTENTS[0]} lists no image of {cls.ENVIRONMENTS[env]}")
            environments.append(
                FileEnvironment(folder, files[rows].tolist(), labels[rows], is_augmented, is_resized_first=True)
            )
        return environments, classes


class WILDSCamelyon(WILDS):
    """Patches of lymph nodes from five hospitals, with tumor or without (Bandi et al., IEEE TMI 2018)."""

    FOLDER = "camelyon17_v1.0"
    CONTENTS = ("metadata.csv", "patches")
    LAYOUT = "metadata.csv, patches/patient_<patient>_node_<node>/<image>"
    ENVIRONMENTS = [f"hospital_{i}" for i in range(5)]
    NUM_CLASSES = 2
    CLASSES = ("no tumor", "tumor")
    IMAGES = ((59436, 34904, 85054, 129838, 146722),)

    @classmethod
    def read_metadata(cls, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        path = folder / "metadata.csv"
        table = read_table(path, ("patient", "node", "x_coord", "y_coord", "tumor", "center"))
        # As text, because patients have leading zeros.
        columns = [table[name] for name in ("patient", "node", "x_coord", "y_coord")]
        files = [
            f"patches/patient_{patient}_node_{node}/patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"
            for patient, node, x, y in zip(*columns, strict=True)
        ]
        hospitals = parse_numbers(path, table["center"], len(cls.ENVIRONMENTS))
        labels = parse_numbers(path, table["tumor"], cls.NUM_CLASSES)
        check_files(path, files)
        return np.array(files, dtype=object), hospitals, labels, list(cls.CLASSES)


class WILDSFMoW(WILDS):
    """Satellite images of 62 kinds of buildings or land use (Christie et al., CVPR 2018) from six regions.

    Regions are numbered by their first appearance in rgb_metadata.csv; rows of the split "seq" count for that and for
    the numbers of the images, but have none.
    """

    FOLDER = "fmow_v1.1"
    CONTENTS = ("rgb_metadata.csv", "country_code_mapping.csv", "images")
    LAYOUT = "rgb_metadata.csv, country_code_mapping.csv, images/rgb_img_<row>.png"
    ENVIRONMENTS = [f"region_{i}" for i in range(6)]
    NUM_CLASSES = 62

    @classmethod
    def read_metadata(cls, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        path = folder / "rgb_metadata.csv"
        table = read_table(path, ("split", "category", "country_code"))
        numbers, names = cls._number_regions(folder, table)
        if len(names) > len(cls.ENVIRONMENTS):
            raise UsageError(f"{path} has {len(names)} regions, not {len(cls.ENVIRONMENTS)}: {', '.join(names)}")
        classes, labels = np.unique(table["category"].to_numpy(dtype=object), return_inverse=True)
        (rows,) = np.nonzero((table["split"] != "seq").to_numpy())
        files = np.array([f"images/rgb_img_{row}.png" for row in rows.tolist()], dtype=object)
        return files, numbers[rows], labels[rows].astype(np.int64), [str(name) for name in classes]

    @classmethod
    def environment_titles(cls, root: str | None) -> list[str]:
        folder = cls.dataset_folder(root)
        _, regions = cls._number_regions(folder, read_table(folder / "rgb_metadata.csv", ("country_code",)))
        return [f"{env} ({region})" for env, region in zip(cls.ENVIRONMENTS, regions, strict=False)]

    @staticmethod
    def _number_regions(folder: Path, table: "pd.DataFrame") -> tuple[np.ndarray, list[str]]:
        """Return the number of each row's region, `[n]`, and the regions' names in the order of their numbers."""
        import pandas as pd

        countries = read_table(folder / "country_code_mapping.csv", ("alpha-3", "region"))
        region_of: Mapping[str, str] = dict(zip(countries["alpha-3"], countries["region"], strict=True))
        regions = table["country_code"].map(lambda code: region_of.get(code) or OTHER)
        numbers, names = pd.factorize(regions)
        return numbers.astype(np.int64), [str(name) for name in names]


def read_table(path: Path, columns: Sequence[str]) -> "pd.DataFrame":
    """Return the columns of a CSV file, as text. Raises UsageError if it cannot be read, or lacks one or all rows."""
    import pandas as pd

    try:
        # As text, and not as categories, whose values would be numbers and lose leading zeros.
        table = pd.read_csv(path, usecols=lambda name: name in columns, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UsageError(f"cannot read {path}: {reason}") from error
    if missing := [name for name in columns if name not in table]:
        raise UsageError(f"{path} has no column {', '.join(missing)}")
    if table.empty:
        raise UsageError(f"{path} has no rows")
    return table


def parse_numbers(path: Path, column: "pd.Series", n: int) -> np.ndarray:
    """Return a column of numbers 0, …, n - 1. Raises UsageError if it has anything else."""
    number_of = {str(number): number for number in range(n)}
    numbers = column.map(number_of)
    if numbers.isna().any():
        row = int(np.argmax(numbers.isna()))
        raise UsageError(f"{path}, row {row + 1}: {column.name} is {column.iloc[row]!r}, not in 0, …, {n - 1}")
    return numbers.to_numpy(dtype=np.int64)


def check_files(path: Path, files: Sequence[str]) -> None:
    """Raise UsageError if a name made from metadata is not that of a patch, or occurs twice."""
    pattern = re.compile(r"patches/patient_\w+_node_\w+/patch_patient_\w+_node_\w+_x_\d+_y_\d+\.png")
    if invalid := next((file for file in files if not pattern.fullmatch(file)), None):
        raise UsageError(f"{path} lists {invalid!r}, which is not the name of a patch")
    if len(set(files)) != len(files):
        raise UsageError(f"{path} lists an image more than once")
