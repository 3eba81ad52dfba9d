"""Pictures of several images: strips for the page, and sheets with labels for PNG files."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from domainbed.loading.decode import to_rgb

THUMBNAIL = 84  # pixels: three times MNIST's images, ten times those of the small digits
GAP = 2
MARGIN = 12
FONT_SIZE = 13
LABEL_WIDTH = 180  # of the labels in a sheet; longer ones are shortened
LINE_HEIGHT = 18
WEBP_QUALITY = 80

Pictures: TypeAlias = Sequence[Image.Image | None]  # None: an image that cannot be read


def to_picture(image: np.ndarray, low: float, high: float, size: int) -> Image.Image:
    """Return an image as an RGBA picture of size x size pixels, with transparent margins if it is not square.

    Small images are enlarged by a whole number, pixel by pixel.

    Args:
        image, low, high: as in `to_rgb`.
        size: in pixels.
    """
    picture = Image.fromarray(to_rgb(image, low, high))
    longest = max(picture.size)
    if longest <= size:
        shape = [side * (size // longest) for side in picture.size]
        picture = picture.resize((shape[0], shape[1]), Image.Resampling.NEAREST)
    else:
        shape = [max(1, round(side * size / longest)) for side in picture.size]
        picture = picture.resize((shape[0], shape[1]), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(picture, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return canvas


def make_strip(pictures: Pictures, size: int) -> Image.Image:
    """Return pictures side by side, on a transparent background. A crossed box replaces one that cannot be read."""
    strip = Image.new("RGBA", (len(pictures) * (size + GAP) - GAP, size))
    for i, picture in enumerate(pictures):
        strip.paste(picture or _crossed_box(size), (i * (size + GAP), 0))
    return strip


def make_sheet(title: str, rows: Sequence[tuple[Sequence[str], Pictures]], size: int) -> Image.Image:
    """Return strips below each other on a white background.

    Args:
        title: above the strips.
        rows: the lines of each row's label, and its pictures.
        size: of a picture, in pixels.
    """
    font = _font()
    columns = max([1, *(len(pictures) for _, pictures in rows)])
    left, top = MARGIN + LABEL_WIDTH + MARGIN, MARGIN + LINE_HEIGHT + MARGIN
    width = max(left + columns * (size + GAP), MARGIN + round(font.getlength(title))) + MARGIN
    sheet = Image.new("RGB", (width, top + len(rows) * (size + GAP) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, "black", font)
    for row, (lines, pictures) in enumerate(rows):
        y = top + row * (size + GAP)
        for i, line in enumerate(lines):
            draw.text((MARGIN, y + i * LINE_HEIGHT), _shorten(line, font), "black" if i == 0 else "#5c6168", font)
        if pictures:
            strip = make_strip(pictures, size)
            sheet.paste(strip, (left, y), strip)
    return sheet


def encode(picture: Image.Image, format: str, is_lossless: bool = True) -> bytes:
    """Return the file of a picture; format is "png" or "webp"."""
    file = BytesIO()
    if format == "png":
        picture.save(file, "png")
    else:
        picture.save(file, "webp", lossless=is_lossless, quality=WEBP_QUALITY)
    return file.getvalue()


def _crossed_box(size: int) -> Image.Image:
    box = Image.new("RGBA", (size, size), "#b8b8b8")
    draw = ImageDraw.Draw(box)
    draw.line((0, 0, size, size), "#d03030", 3)
    draw.line((0, size, size, 0), "#d03030", 3)
    return box


def _font() -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which has more alphabets than Pillow's."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)


def _shorten(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Return text that is not wider than LABEL_WIDTH, shortened in the middle if necessary."""
    n = len(text)
    shortened = text
    while font.getlength(shortened) > LABEL_WIDTH:
        n -= 1
        shortened = f"{text[: n // 2]}…{text[len(text) - (n - n // 2) :]}"
    return shortened
