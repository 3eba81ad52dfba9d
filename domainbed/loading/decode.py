"""From an image file's bytes to RGB pixels."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from domainbed.errors import UsageError

# As torchvision's ImageFolder has them, so that our lists of files are DomainBed's.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class BadImageError(UsageError):
    """A file that can be read but is no whole image."""


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises UsageError where the system can't read it: that is no broken image, but a broken disk."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error


def decode(data: bytes, name: object) -> np.ndarray:
    """The pixels of an image of any mode, uint8 [height, width, 3].

    Transparency is dropped, and a photograph's note of how the camera was held is left unread, as in the published
    pipeline. (Unlike that one, which fills up with grey what a truncated file lacks, this takes no part for the whole.)

    Args:
        data: the file's bytes.
        name: the file, for messages.

    Raises:
        BadImageError: they are no whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):
                return _from_deep_grey(np.asarray(image))
            # A copy, since torch wants arrays that may be written to.
            return np.array(image.convert("RGB"))
    except MemoryError:
        raise  # that says nothing of the image
    except UnidentifiedImageError as error:  # whose words name an object of ours
        reason = "of no form that is known" if data else "the file is empty"
        raise BadImageError(f"{name} is a broken image ({reason})") from error
    except Exception as error:  # decoders fail in many ways
        raise BadImageError(f"{name} is a broken image ({type(error).__name__}: {error})") from error


def _from_deep_grey(grey: np.ndarray) -> np.ndarray:
    """Grey levels of more than 8 bits, which PIL would clip to white: 0..1 for floats, else 0..65535."""
    scale = 255.0 if np.issubdtype(grey.dtype, np.floating) else 255 / 65535
    levels = np.rint(np.clip(grey * scale, 0, 255)).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)
