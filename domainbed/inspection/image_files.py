"""Facts about image files that reading their headers reveals: sizes, formats and color modes."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from domainbed.errors import one_line
from domainbed.files import open_regular

TAIL = 4096  # bytes at the end of a file that tell most files of equal size apart


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        width, height: in pixels, as stored.
        format: such as "JPEG".
        mode: Pillow's name of the color mode, such as "RGB".
        is_rotated: whether EXIF asks viewers to rotate or flip the image, which training does not do.
        is_transparent: whether there are transparent pixels, perhaps; training drops transparency.
        fingerprint: equal for equal files, and different for most others, without reading them completely.
    """

    width: int
    height: int
    format: str
    mode: str
    is_rotated: bool
    is_transparent: bool
    fingerprint: bytes


def read_header(path: Path) -> Header | str:
    """Return the header of a file, or the reason why it cannot be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL))
            fingerprint = hashlib.blake2b(b"%d " % size + file.read(TAIL), digest_size=16).digest()
            file.seek(0)
            with Image.open(file) as image:
                return Header(
                    image.width,
                    image.height,
                    image.format or "?",
                    image.mode,
                    _is_rotated(image),
                    image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
                    fingerprint,
                )
    except UnidentifiedImageError:
        return "unknown format" if size else "the file is empty"
    except OSError as error:
        return error.strerror or one_line(error)
    except Exception as error:  # Pillow's readers raise many kinds of errors
        return f"{type(error).__name__}: {one_line(error)}"


def _is_rotated(image: Image.Image) -> bool:
    # Without EXIF data in a PNG file's header, getexif would decode the whole image.
    if "exif" not in image.info and image.format != "TIFF":
        return False
    return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)


def sha256_of(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with open_regular(path) as file:
        return hashlib.sha256(file.read()).digest()
