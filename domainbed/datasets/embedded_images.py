"""Images stored within a table, extracted once into a folder of image files next to it."""

import io
import os
import shutil
from pathlib import Path

from domainbed.datasets.table_files import TableFile, version
from domainbed.errors import UsageError, list_some, printable
from domainbed.files import file_lock, open_regular
from domainbed.terminal import ProgressBar

ROWS_PER_FOLDER = 10_000
MAX_NAMED = 3  # rows that a message names


def image_folder(path: Path, column: str) -> Path:
    """Return the folder for the images of a table's column. A table that was written again has another one."""
    safe = "".join(c if c.isalnum() else "_" for c in column)
    return path.with_name(f"{path.name}.{safe}-{version(path)}")


def image_file(row: int) -> str:
    """Return the path of the image of a row, counted from 0, in the folder. Images are recognized by their content."""
    return f"{row // ROWS_PER_FOLDER:04}/{row:08}.img"


def extract_images(table: TableFile, column: str, n_rows: int) -> None:
    """Write the images of a column as files into `image_folder`, unless that is done. The folder appears when complete.

    Processes that extract the same table wait for the first one.

    Raises:
        UsageError: rows have no image, or the folder cannot be written.
    """
    folder = image_folder(table.path, column)
    if folder.is_dir():
        return
    partial = folder.with_name(f"{folder.name}.part")
    try:
        with file_lock(folder.with_name(f"{folder.name}.lock"), f"Waiting for the extraction of {folder}"):
            if folder.is_dir():
                return
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _write_images(table, column, n_rows, partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
                raise
            os.rename(partial, folder)
    except OSError as error:
        raise UsageError(
            f"cannot extract the images of {table.path} into {folder}: {error.strerror}; to extract them elsewhere, "
            "link the table into another folder and pass the link as --data_dir"
        ) from error


def _write_images(table: TableFile, column: str, n_rows: int, folder: Path) -> None:
    """Write the images of a table to files in a new folder. Raises UsageError if rows have no image."""
    folder.mkdir()
    faulty = []
    images = table.images(column)
    base = table.path if table.path.is_dir() else table.path.parent
    for row, (data, path) in enumerate(ProgressBar(images, "extracting", n_rows, unit=" images")):
        if data is None and path:
            data = _read_linked(base / path)
        if not is_image(data):
            faulty.append(row + table.first_row)
            continue
        file = folder / image_file(row)
        if row % ROWS_PER_FOLDER == 0 or not file.parent.is_dir():
            file.parent.mkdir(exist_ok=True)
        file.write_bytes(data or b"")
    if faulty:
        raise UsageError(
            f"{table.path}: {len(faulty):,} rows have no image in column {printable(column)!r} "
            f"(rows {list_some(faulty, MAX_NAMED)}); delete these rows"
        )


def _read_linked(path: Path) -> bytes | None:
    """Return the content of the file that a row stores the path of; None if there is no such file."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError:
        return None


def is_image(data: bytes | None) -> bool:
    """Return whether data begins like an image file that Pillow can open."""
    from PIL import Image  # not before images are read, so that commands start fast

    try:
        with Image.open(io.BytesIO(data or b"")):
            return True
    except Exception:  # decoders raise many kinds of errors
        return False
