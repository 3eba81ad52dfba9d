"""Table: images listed in a CSV, TSV or Parquet file, or in a folder of Hugging Face's `datasets`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from domainbed.datasets.base import SIZE, FileEnvironment, MultipleDomainDataset
from domainbed.datasets.embedded_images import extract_images, image_folder
from domainbed.datasets.table_columns import format_columns, parse_columns
from domainbed.datasets.table_rows import Faults, Rows, read_rows
from domainbed.errors import UsageError, printable
from domainbed.hparams import Hparams

MAX_CLASSES, MAX_ENVIRONMENTS = 40, 12  # of the table of counts


class Table(MultipleDomainDataset):
    """The user's own table, --data_dir, with one row per image: its path, its label, and its environment.

    Images are resized to 3x224x224, and augmented like those of other photo datasets. `with_columns` returns the
    dataset with the columns that the user names; others are recognized by their names.
    """

    ENVIRONMENTS = []
    CHECKPOINT_FREQ = 300
    COLUMNS: ClassVar[str | None] = None
    input_shape = (3, *SIZE)
    class_names: list[str]

    @classmethod
    def with_columns(cls, columns: str | None) -> "type[Table]":
        if columns is None:
            return cls
        return type(cls.__name__, (cls,), {"COLUMNS": format_columns(parse_columns(columns)), "__doc__": cls.__doc__})

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        rows = self.rows(root)
        self.class_names, self.num_classes = rows.class_names, len(rows.class_names)
        ends = np.searchsorted(rows.environments, np.arange(len(rows.environment_names) + 1))
        self.environments = [
            FileEnvironment(
                rows.folder,
                rows.paths.slice(start, stop - start).to_pylist(),
                rows.labels[start:stop],
                hparams["data_augmentation"] and env not in test_envs,
                groups=None if rows.groups is None else rows.groups[start:stop],
            )
            for env, (start, stop) in enumerate(pairwise(ends))
        ]

    @classmethod
    def rows(cls, root: str | None) -> Rows:
        """Return the rows of the table. Raises UsageError if it cannot be read."""
        if not root:
            raise UsageError("Table requires --data_dir, a table of images in a .csv, .tsv or .parquet file")
        return read_rows(root, cls.COLUMNS)

    @classmethod
    def environment_names(cls, root: str | None) -> list[str]:
        rows = cls.rows(root)
        if len(rows.environment_names) < 2:
            found = ", ".join(map(repr, rows.environment_names)) or "none"
            raise UsageError(
                f"{root}: column {rows.columns['environment']!r} must contain at least two environments; found {found}"
                + (f". The table has {_join(rows.faults)}" if rows.faults else "")
            )
        return rows.environment_names

    @classmethod
    def find_problems(cls, root: str | None) -> list[str]:
        try:
            faults = cls.rows(root).find_faults()
        except UsageError as error:
            return [str(error)]
        return [f"{root} has {_join(faults)}; correct or delete these rows"] if faults else []

    @classmethod
    def find_downloads(cls, root: str | None) -> list[str]:
        try:
            rows = cls.rows(root)
        except UsageError:
            return []  # `find_problems` reports it
        if rows.are_images_embedded and not rows.folder.is_dir():
            return [f"the images in {root} are not extracted to {rows.folder} yet"]
        return []

    @classmethod
    def prepare(cls, root: str | None) -> None:
        """Check all rows, and extract the images that the table itself contains."""
        super().prepare(root)
        rows = cls.rows(root)
        if rows.are_images_embedded:
            extract_images(rows.table, rows.columns["path"], len(rows.labels))

    @classmethod
    def describe(cls, root: str | None) -> list[str]:
        rows = cls.rows(root)
        counts, n = rows.counts(), len(rows.labels)
        classes, environments = (list(map(printable, names)) for names in (rows.class_names, rows.environment_names))
        lines = [f"{root}: {n:,} images, {len(classes)} classes, {len(environments)} environments", *rows.notes]
        if rows.groups is not None:
            lines.append(f"group: {rows.columns['group']}, {len(set(rows.groups)):,} groups")
        if rows.are_images_embedded:
            lines.append(f"images extracted to {image_folder(rows.table.path, rows.columns['path'])}")
        shown = [*environments[:MAX_ENVIRONMENTS], "total"]
        cells = np.column_stack([counts[:, :MAX_ENVIRONMENTS], counts.sum(1)])
        body = [(name, *map("{:,}".format, row)) for name, row in zip(classes[:MAX_CLASSES], cells, strict=False)]
        total = ("total", *map("{:,}".format, cells.sum(0)))
        widths = [max(map(len, column)) for column in zip(("", *shown), *body, total, strict=True)]
        for row in (("", *shown), *body, total):
            lines.append("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]))
        for names, limit, kind in ((classes, MAX_CLASSES, "classes"), (environments, MAX_ENVIRONMENTS, "environments")):
            if len(names) > limit:
                lines.append(f"and {len(names) - limit:,} more {kind}")
        return lines


def _join(faults: Sequence[Faults]) -> str:
    return "; ".join(map(str, faults))
