import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.errors import UsageError
from domainbed.loading import decode as module
from domainbed.loading.decode import BadImageError, decode, read_file

PIXELS = np.random.RandomState(0).randint(0, 256, (5, 7, 4)).astype(np.uint8)
RGBA = Image.fromarray(PIXELS, "RGBA")
RGB = Image.fromarray(PIXELS[:, :, :3].copy())


def saved(image: Image.Image, image_format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (RGB, "PNG"),
        (RGB, "BMP"),
        (RGB, "TIFF"),
        (RGB, "PPM"),
        (RGBA, "PNG"),  # transparency is dropped without changing the colors
        (RGBA, "TIFF"),
    ],
)
def test_lossless_formats_keep_colors(image: Image.Image, image_format: str):
    assert np.array_equal(decode(saved(image, image_format), "x"), PIXELS[:, :, :3])


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (RGB, "JPEG"),
        (RGB, "WEBP"),
        (RGB.convert("CMYK"), "JPEG"),
        (RGB.convert("CMYK"), "TIFF"),
        (RGB.convert("YCbCr"), "JPEG"),
        (RGB.convert("L"), "JPEG"),
        (RGB.convert("L"), "PNG"),
        (RGBA.convert("LA"), "PNG"),
        (RGB.convert("1"), "PNG"),
        (RGB.quantize(16), "PNG"),
        (RGBA.quantize(16), "PNG"),
        (RGB.quantize(4), "BMP"),
    ],
)
def test_every_mode_is_converted_to_rgb_as_in_pil(image: Image.Image, image_format: str):
    data = saved(image, image_format)
    pixels = decode(data, "x")
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_deep_grays_are_scaled_not_clipped():
    levels = np.array([[0, 257, 65535, 32896]], dtype=np.uint16)
    for image_format in ("PNG", "TIFF"):
        assert decode(saved(Image.fromarray(levels), image_format), "x")[0, :, 0].tolist() == [0, 1, 255, 128]
    floats = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert decode(saved(floats, "TIFF"), "x")[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [[0.0, 255.0], [-0.5, 0.5], [0.0, float("nan")]])
def test_floating_point_grays_outside_of_their_range_are_an_error(values: list[float]):
    """They would all be white or black."""
    data = saved(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    with pytest.raises(BadImageError, match=r"gray levels must be in 0\.\.1"):
        decode(data, "x")


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    RGB.save(file, "JPEG", exif=exif)
    assert decode(file.getvalue(), "x").shape == (5, 7, 3)


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", saved(RGB, "PNG")[:-30], saved(RGB, "JPEG")[:-30], saved(RGB, "TIFF")[:60], b"\xff\xd8\xff"],
)
def test_incomplete_image_is_an_error_that_names_the_file(data: bytes):
    with pytest.raises(BadImageError, match=r"a/b\.jpg is a broken image"):
        decode(data, "a/b.jpg")


@pytest.mark.parametrize(("data", "reason"), [(b"", "the file is empty"), (b"not an image", "unknown format")])
def test_non_image_error_message(data: bytes, reason: str):
    with pytest.raises(BadImageError) as error:
        decode(data, "a/b.jpg")
    assert str(error.value) == f"a/b.jpg is a broken image ({reason})"


def test_unreadable_file_is_not_a_broken_image(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot read .*gone\.png: No such file") as error:
        read_file(tmp_path / "gone.png")
    assert not isinstance(error.value, BadImageError)


def png_header(width: int, height: int) -> bytes:
    """Return the start of a PNG file of this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 1000) + b"IDAT"


def test_decompression_bomb_is_a_broken_image():
    with pytest.raises(BadImageError, match=r"a/b\.png is a broken image \(more than 178,956,970 pixels\)"):
        decode(png_header(100_000, 100_000), "a/b.png")


def test_huge_image_is_decoded_with_a_warning_that_names_it(monkeypatch):
    monkeypatch.setattr(module, "MANY_PIXELS", 30)
    with pytest.warns(UserWarning, match=r"^a/b\.png has 35 pixels; scale it down to save time and memory$"):
        assert decode(saved(RGB, "PNG"), "a/b.png").shape == (5, 7, 3)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_regular_files_of_limited_size_are_read(tmp_path: Path, kind: str):
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, module.MAX_FILE_SIZE + 1)  # sparse
    reasons = {"folder": "Is a directory", "large": r"larger than 1,073,741,824 bytes"}
    with pytest.raises(UsageError, match=rf"cannot read .*x\.png: {reasons.get(kind, 'Not a regular file')}$"):
        read_file(path)
