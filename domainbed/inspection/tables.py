"""Tables of the contents of a dataset, for the terminal and the page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from domainbed.errors import printable
from domainbed.inspection.contents import DatasetContents

CHANNELS = {1: ("gray",), 2: ("red", "green"), 3: ("red", "green", "blue")}


class Table(NamedTuple):
    """A table of text.

    Attributes:
        title: its heading.
        caption: what the cells are.
        columns: the names of the columns; the first one names the rows.
        rows: the cells, row by row.
        note: more about them; "" if there is none.
        is_numeric: whether all columns but the first contain numbers.
    """

    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    note: str
    is_numeric: bool = True


def make_tables(contents: DatasetContents) -> list[Table]:
    """Return all tables of a dataset."""
    return [counts_table(contents), *([files_table(contents)] if contents.has_files else []), pixels_table(contents)]


def counts_table(contents: DatasetContents) -> Table:
    """Return the number of images per class and environment; the more numerous of the two are the rows."""
    names, counts, kind = list(contents.classes), contents.counts, "Class"
    columns = [environment.name for environment in contents.environments]
    if len(columns) > len(names):
        names, counts, kind, columns = columns, counts.T, "Environment", names
    rows = [[name, *map(_number, row), _number(row.sum())] for name, row in zip(names, counts, strict=True)]
    totals = counts.sum(0)
    rows.append(["all", *map(_number, totals), _number(totals.sum())])
    return Table("Images per class and environment", "Number of images", [kind, *columns, "all"], rows, "")


def files_table(contents: DatasetContents) -> Table:
    """Return the sizes, formats and color modes of image files."""
    rows = []
    for environment in contents.environments:
        headers = environment.headers
        rows.append(
            [
                environment.name,
                _number(len(headers)),
                _range([header.width for header in headers]),
                _range([header.height for header in headers]),
                _shares(header.format for header in headers),
                _shares(header.mode for header in headers),
            ]
        )
    _, height, width = contents.input_shape
    columns = ["Environment", "Files", "Width", "Height", "Formats", "Modes"]
    note = f"Networks receive images of {width} x {height} pixels, in RGB."
    return Table("Image files", "As stored; sizes in pixels", columns, rows, note, False)


def pixels_table(contents: DatasetContents) -> Table:
    """Return the mean and the standard deviation of each channel."""
    n_channels = contents.input_shape[0]
    channels = CHANNELS.get(n_channels) or [f"channel {i + 1}" for i in range(n_channels)]
    rows = []
    for environment in contents.environments:
        pixels = environment.pixels
        values = np.stack([pixels.mean, pixels.std], axis=1).ravel().tolist() if pixels.n else []
        rows.append([environment.name, _number(pixels.n), *(f"{value:.3f}" for value in values)])
    columns = ["Environment", "Images", *(f"{channel} {kind}" for channel in channels for kind in ("mean", "std"))]
    caption = "Colors from 0 to 1" if contents.has_colors else "Values as networks receive them"
    note = (
        "From all pixels of a random sample of each environment's images, as in evaluation"
        f"{' before normalization' if contents.has_files else ''}."
    )
    return Table("Pixels", caption, columns, rows, note)


def as_text(contents: DatasetContents) -> str:
    """Return the tables and warnings for a terminal."""
    blocks = []
    for table in make_tables(contents):
        alignment = ["left", *["right" if table.is_numeric else "left"] * (len(table.columns) - 1)]
        rows = [row + [""] * (len(table.columns) - len(row)) for row in table.rows]
        shown = tabulate(rows, table.columns, colalign=alignment, disable_numparse=True)
        blocks.append("\n".join([table.title, shown, *([f"{table.caption}. {table.note}"] if table.note else [])]))
    if contents.warnings:
        blocks.append("\n".join(["Warnings:", *(f"  {warning}" for warning in contents.warnings)]))
    return printable("\n\n".join(blocks) + "\n")


def _number(n: int) -> str:
    return f"{n:,}"


def _range(sizes: Sequence[int]) -> str:
    """Return the range and median of sizes, such as "64 to 640, median 227", or the only one."""
    ordered = sorted(sizes)
    if not ordered:
        return "-"
    if ordered[0] == ordered[-1]:
        return f"all {ordered[0]:,}"
    return f"{ordered[0]:,} to {ordered[-1]:,}, median {ordered[len(ordered) // 2]:,}"


def _shares(values: Iterable[str]) -> str:
    """Return how often each value occurs, such as "JPEG 20, PNG 3"."""
    return ", ".join(f"{value} {n:,}" for value, n in Counter(values).most_common()) or "-"
