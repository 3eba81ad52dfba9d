"""Conversion of image files and arrays to RGB pixels."""

import errno
import io
import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from domainbed.errors import UsageError
from domainbed.files import open_regular

# An image of the most pixels that Pillow decodes (2 * MAX_IMAGE_PIXELS), uncompressed, with 16 bits per channel.
MAX_FILE_SIZE = 2**30  # bytes
MANY_PIXELS = 89_478_485  # Pillow's default MAX_IMAGE_PIXELS; it refuses twice as many
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode` warns itself, with the name of the file

TOLERANCE = 1e-3  # of the range of gray levels that are floats
# Those of torchvision's ImageFolder, to get the same file lists as DomainBed.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class BadImageError(UsageError):
    """A readable file that is not a complete image."""


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises UsageError, but not BadImageError, if it cannot be read."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_SIZE:
                raise OSError(errno.EFBIG, f"larger than {MAX_FILE_SIZE:,} bytes")
            return file.read()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def decode(data: bytes | Image.Image, name: object) -> np.ndarray:
    """Return the pixels of an image of any mode, uint8 [height, width, 3].

    As in the published pipeline, transparency is dropped and the EXIF orientation is ignored. A truncated image is an
    error; DomainBed fills the missing part with gray.

    Args:
        data: the bytes of the file, or an image that Pillow has opened.
        name: the file's name for messages.

    Raises:
        BadImageError: the data is not a complete image.
    """
    try:
        with nullcontext(data) if isinstance(data, Image.Image) else Image.open(io.BytesIO(data)) as image:
            if (pixels := image.width * image.height) > MANY_PIXELS:
                warnings.warn(f"{name} has {pixels:,} pixels; scale it down to save time and memory", stacklevel=2)
            if image.mode.startswith(("I", "F")):
                return _from_deep_gray(np.asarray(image))
            # A copy, because torch requires writable arrays.
            return np.array(image.convert("RGB"))
    except MemoryError:
        raise  # not the image's fault
    except Image.DecompressionBombError as error:
        raise BadImageError(f"{name} is a broken image (more than {2 * MANY_PIXELS:,} pixels)") from error
    except UnidentifiedImageError as error:  # its message names the BytesIO object
        reason = "unknown format" if data else "the file is empty"
        raise BadImageError(f"{name} is a broken image ({reason})") from error
    except Exception as error:  # decoders raise many kinds of errors
        raise BadImageError(f"{name} is a broken image ({type(error).__name__}: {error})") from error


def to_rgb(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the pixels of an image with any number of channels for people to look at, uint8 [height, width, 3].

    Args:
        image: [channels, height, width]; one channel is shown as gray, two as red and green, and of more, the first
            three as red, green and blue. Values that are not finite are black.
        low: the value to show as black.
        high: the value to show as white.
    """
    channels = np.repeat(image, 3, axis=0) if len(image) == 1 else image[:3]
    rgb = np.zeros((3, *image.shape[1:]))
    rgb[: len(channels)] = np.where(np.isfinite(channels), (channels - low) / max(high - low, 1e-12), 0)
    return np.rint(rgb.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def _from_deep_gray(gray: np.ndarray) -> np.ndarray:
    """Convert gray levels of more than 8 bits, which PIL would clip to white: floats in 0..1, integers in 0..65535."""
    is_float = np.issubdtype(gray.dtype, np.floating)
    if is_float and not (gray.min() > -TOLERANCE and gray.max() < 1 + TOLERANCE):  # also if any is NaN
        raise ValueError(f"floating-point gray levels must be in 0..1, not {gray.min():g}..{gray.max():g}")
    scale = 255.0 if is_float else 255 / 65535
    levels = np.rint(np.clip(gray * scale, 0, 255)).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)
