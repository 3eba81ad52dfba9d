"""The contact sheet of an environment, and its images as training sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from domainbed.datasets import FileEnvironment
from domainbed.inspection.contents import Row, Sheet
from domainbed.inspection.pictures import THUMBNAIL, Pictures, encode, make_sheet, make_strip, to_picture
from domainbed.inspection.reader import ImageReader

VIEW = 224  # pixels: the size of photos as networks receive them


@dataclass(frozen=True)
class SheetMaker:
    """Makes sheets of images.

    Attributes:
        dataset: the name of the dataset.
        classes: the names of the classes.
        reader: of the images.
        low: the value to show as black.
        high: the value to show as white.
    """

    dataset: str
    classes: Sequence[str]
    reader: ImageReader
    low: float
    high: float

    def contact_sheet(self, env: int, by_class: Sequence[Sequence[int]], counts: Sequence[int]) -> Sheet:
        """Return a sheet with a row for each class.

        Args:
            env: an environment.
            by_class: the images of each class to show.
            counts: the number of images of each class.
        """
        rows = []
        for name, images, n in zip(self.classes, by_class, counts, strict=True):
            label = [name, f"{n:,} image{'s' * (n != 1)}"]
            description = f"{len(images)} random images of class {name} in {self.reader.names[env]}"
            read = (self.reader.read(env, i) for i in images)
            rows.append((label, description, [x if x is None else self._picture(x, THUMBNAIL) for x in read]))
        return self._sheet(env, f"{self.dataset}, {self.reader.names[env]}: random images", rows, THUMBNAIL)

    def views(self, env: int, images: Sequence[int], views: Sequence[np.ndarray]) -> Sheet:
        """Return a sheet with a row for each image, given its views."""
        rows = []
        for i, x in zip(images, views, strict=True):
            name, label = self.reader.name(env, i), self.classes[self.reader.environments[env].labels[i]]
            description = f"{name}, class {label}: in evaluation, then {len(x) - 1} augmented views"
            rows.append(([label, name], description, [self._picture(view, VIEW) for view in x]))
        title = f"{self.dataset}, {self.reader.names[env]}: in evaluation (left), and augmented in training"
        return self._sheet(env, title, rows, VIEW)

    def _picture(self, x: np.ndarray, size: int) -> Image.Image:
        return to_picture(x, self.low, self.high, size)

    def _sheet(self, env: int, title: str, rows: Sequence[tuple[Sequence[str], str, Pictures]], size: int) -> Sheet:
        is_lossless = not isinstance(self.reader.environments[env], FileEnvironment)  # photos: a tenth of the size
        png = encode(make_sheet(title, [(label, pictures) for label, _, pictures in rows], size), "png")
        return Sheet([_make_row(*row, size, is_lossless) for row in rows], png)


def _make_row(label: Sequence[str], description: str, pictures: Pictures, size: int, is_lossless: bool) -> Row:
    if not pictures:
        return Row(label, description, None, 0, 0)
    strip = make_strip(pictures, size)
    return Row(label, description, encode(strip, "webp", is_lossless), *strip.size)
