"""The page of a dataset: one self-contained HTML file."""

import os
from io import BytesIO

from PIL import Image

from domainbed.inspection.contents import DatasetContents, Row
from domainbed.inspection.plots import CAPTION
from domainbed.inspection.tables import make_tables
from domainbed.reporting.formats.base import Picture, data_url, render_page


def as_html(contents: DatasetContents, sizes: bytes | None) -> str:
    """Return the page.

    Args:
        contents: the contents of the dataset.
        sizes: the plot of the sizes of image files, if there is one.
    """
    channels, height, width = contents.input_shape
    n = int(contents.counts.sum())
    summary = (
        f"{n:,} images, {len(contents.environments)} environments, {len(contents.classes)} classes; "
        f"networks receive {channels} x {height} x {width} values"
    )
    values = {
        "contents": contents,
        "tables": make_tables(contents),
        "plots": [_plot(sizes)] if sizes else [],
        "picture": _picture,
    }
    path = os.path.abspath(contents.data_dir) if contents.data_dir else ""
    return render_page(
        "domainbed.inspection", "inspection.html", contents.name, path, summary, values, ["inspection.css"]
    )


def _plot(png: bytes) -> Picture:
    with Image.open(BytesIO(png)) as image:
        return Picture(CAPTION, data_url(png, "png"), *image.size)


def _picture(row: Row) -> Picture:
    return Picture(row.description, data_url(row.strip or b"", "webp"), row.width, row.height)
