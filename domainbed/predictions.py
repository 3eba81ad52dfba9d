"""The predictions that a job saves with `--save_predictions`: the schema between the job and their analysis.

`predictions.npz` holds NumPy arrays without pickled objects, so loading it never runs code. It has one row per image
that was evaluated, by environment and index, and one slice per saved evaluation: that with the best validation accuracy
(`records.validation_accuracy`) and the last one, or the last one alone if both are the same.
"""

import json
import math
import zipfile
import zlib
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from domainbed.errors import one_line, printable
from domainbed.files import atomic_write, open_regular

PREDICTIONS_FILE = "predictions.npz"
PARTS = ("in", "out", "uda")  # the splits of an environment; `part` counts in this order
FORMAT = 1
MAX_SIZE = 2**31  # bytes of all arrays; all of DomainNet takes about 1 GB
MIN_LOG_PROBABILITY = -65504.0  # of float16
NOT_EVALUATED = -1


@dataclass(frozen=True)
class Predictions:
    """The predictions of a job on n images.

    Attributes:
        environments: the names of the dataset's environments.
        classes: the names of its classes.
        environment: int16 [n], the number of each image's environment.
        index: int32 [n], its number in the environment.
        image: [n], text that names the image in all trials: its path in the dataset or, if the assignment of images to
            environments depends on the trial, its number among all of them. The same as `index` if there are no names.
        part: uint8 [n], the split of each image, as a position in PARTS.
        label: int32 [n], its class.
        steps: int64 [k], the steps after which the saved evaluations took place, ascending.
        predicted: int32 [k, n], the predicted class, before any rounding; NOT_EVALUATED where an evaluation left the
            image out (`--eval`).
        log_probabilities: float16 [k, n, classes], the logarithms of the softmax of the logits; NaN where an evaluation
            left the image out. Networks with a single logit have two classes here.
        logsumexp: float32 [k, n], the logarithm of the softmax's denominator; added to log_probabilities, it gives the
            logits (of a single logit: in addition to a zero).
    """

    environments: tuple[str, ...]
    classes: tuple[str, ...]
    environment: np.ndarray
    index: np.ndarray
    image: np.ndarray
    part: np.ndarray
    label: np.ndarray
    steps: np.ndarray
    predicted: np.ndarray
    log_probabilities: np.ndarray
    logsumexp: np.ndarray

    def position(self, step: int) -> int | None:
        """Return the position of a step's evaluation, or None if it was not saved."""
        positions = np.flatnonzero(self.steps == step)
        return int(positions[0]) if len(positions) else None

    def rows(self, position: int, environment: int, part: str) -> np.ndarray:
        """Return the rows of a split's images, by index; none if the evaluation at this position left them out."""
        is_in_split = (self.environment == environment) & (self.part == PARTS.index(part))
        return np.flatnonzero(is_in_split & (self.predicted[position] != NOT_EVALUATED))

    def accuracy(self, position: int, rows: np.ndarray) -> float:
        """Return the accuracy on some images; the same number as in the record."""
        return int((self.predicted[position, rows] == self.label[rows]).sum()) / len(rows)


DTYPES = {
    "environment": np.int16,
    "index": np.int32,
    "part": np.uint8,
    "label": np.int32,
    "steps": np.int64,
    "predicted": np.int32,
    "log_probabilities": np.float16,
    "logsumexp": np.float32,
}
ARRAYS = [f.name for f in fields(Predictions) if f.name not in ("environments", "classes")]


# Exceptions of reading a damaged file.
_DAMAGE = (
    *(ValueError, LookupError, TypeError, EOFError, OSError, MemoryError, RuntimeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error),
)


def file_size(n_images: int, n_classes: int) -> int:
    """Return the size of a file in bytes, at most, without the names of the images."""
    per_evaluation = sum(np.dtype(DTYPES[name]).itemsize for name in ("predicted", "logsumexp"))
    per_image = sum(np.dtype(DTYPES[name]).itemsize for name in ("environment", "index", "part", "label"))
    return n_images * (2 * (per_evaluation + 2 * n_classes) + per_image)


class DamagedError(ValueError):
    """A file does not contain predictions in this format."""


def save_predictions(folder: Path, predictions: Predictions) -> None:
    """Write the predictions of a job to its folder, atomically. Equal predictions give equal bytes."""
    names = {"format": FORMAT, "environments": predictions.environments, "classes": predictions.classes}
    arrays = {"names": np.array(json.dumps(names)), **{name: getattr(predictions, name) for name in ARRAYS}}
    with atomic_write(folder / PREDICTIONS_FILE) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of a constant date
            # Probabilities hardly compress; everything else compresses well.
            is_float = array.dtype.kind == "f"
            member.compress_type = zipfile.ZIP_STORED if is_float else zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def load_predictions(folder: Path) -> Predictions:
    """Return the predictions of a job.

    Raises:
        OSError: the file does not exist, or is not a regular file.
        DamagedError: it is damaged, too large, or has another format.
    """
    with open_regular(folder / PREDICTIONS_FILE) as file:
        return read_predictions(file)


def read_predictions(file: BinaryIO) -> Predictions:
    """Return the predictions in an open file. Raises DamagedError as `load_predictions` does."""
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            if sum(sizes.values()) > MAX_SIZE:
                raise DamagedError(f"it has more than {MAX_SIZE:,} bytes")
            # Members are read up to their size in the directory, with their checksums.
            arrays = {name: _parse_array(archive.read(f"{name}.npy")) for name in ("names", *ARRAYS)}
        names = json.loads(str(arrays.pop("names")))
        if names["format"] != FORMAT:
            raise DamagedError(f"it has format {names['format']}, and this version of domainbed reads {FORMAT}")
        environments, classes = (tuple(map(str, names[kind])) for kind in ("environments", "classes"))
    except DamagedError:
        raise
    except _DAMAGE as error:
        raise DamagedError(f"it is damaged ({type(error).__name__}: {one_line(error)})") from error
    if problem := _find_problem(arrays, len(environments), len(classes)):
        raise DamagedError(f"it is damaged: {problem}")
    arrays["image"] = np.array([printable(name) for name in arrays["image"].tolist()], dtype=str)
    return Predictions(tuple(map(printable, environments)), tuple(map(printable, classes)), **arrays)


def _parse_array(data: bytes) -> np.ndarray:
    """Return the array in the content of a .npy file, without allocating more memory than the content has."""
    file = BytesIO(data)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it contains Python objects")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("an array is not as large as it should be")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _find_problem(arrays: dict[str, np.ndarray], n_environments: int, n_classes: int) -> str:
    """Return why arrays are not those of predictions; "" if they are."""
    n, k = arrays["index"].size, arrays["steps"].size
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(ARRAYS, (n,))
    shapes |= {"steps": (k,), "predicted": (k, n), "log_probabilities": (k, n, n_classes), "logsumexp": (k, n)}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            return f"{name} has the shape {array.shape}, not {shape}"
        if array.dtype.kind != "U" if name == "image" else array.dtype != DTYPES[name]:
            return f"{name} has the type {array.dtype}"
    limits = {
        "environment": (0, n_environments),
        "index": (0, 2**31),
        "part": (0, len(PARTS)),
        "label": (0, n_classes),
        "predicted": (NOT_EVALUATED, n_classes),
        "steps": (0, 2**63),
    }
    for name, (low, high) in limits.items():
        if arrays[name].size and not (low <= int(arrays[name].min()) and int(arrays[name].max()) < high):
            return f"{name} is out of range"
    keys = arrays["environment"].astype(np.int64) * 2**32 + arrays["index"]
    if (np.diff(keys) <= 0).any() or (np.diff(arrays["steps"]) <= 0).any() or not 1 <= k <= 2:
        return "its rows or steps are out of order"
    is_evaluated = arrays["predicted"] != NOT_EVALUATED
    is_finite = np.isfinite(arrays["log_probabilities"]).all(-1) & np.isfinite(arrays["logsumexp"])
    return "" if (is_finite == is_evaluated).all() else "its probabilities are not finite numbers"
