"""The interface of an export format, and the comparison of an exported model with the original."""

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch

from domainbed.engine.export import EXPORT_FORMATS
from domainbed.engine.frozen import image_shape, is_frozen, rounds_features
from domainbed.engine.trained_model import TrainedModel
from domainbed.errors import UsageError, one_line
from domainbed.files import atomic_write

METADATA = "domainbed.json"  # the key of the metadata in a file
TOLERANCE = 1e-5  # of logits, relative to the largest one or 1
# Of models that round features to float16: another program may round some of them in the other direction.
TOLERANCE_OF_ROUNDED = 1e-3
TRACED_BATCH_SIZE = 2
COMPARED_BATCH_SIZES = (1, 3)  # others than that with which programs are traced

Predict: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # images [n, *input_shape] -> logits [n, classes]


class ExportFormat:
    """A format of trained models.

    Attributes:
        REQUIRES: the packages that it requires.
        IS_PROGRAM: whether it contains the computation, rather than weights for the classes of this package.
        IS_FOLDER: whether it is a folder rather than a file.
    """

    REQUIRES: ClassVar[tuple[str, ...]] = ()
    IS_PROGRAM: ClassVar[bool] = False
    IS_FOLDER: ClassVar[bool] = False

    def write(self, model: TrainedModel, path: Path) -> None:
        """Write the model to an empty file or folder."""
        raise NotImplementedError(f"{type(self).__name__} must implement write")

    def read(self, path: Path) -> Predict:
        """Return a function that computes logits with the model in a file or folder."""
        raise NotImplementedError(f"{type(self).__name__} must implement read")


def export_model(model: TrainedModel, name: str, output: Path) -> None:
    """Write a model on the CPU in one of EXPORT_FORMATS, atomically.

    Raises:
        UsageError: a required package is missing, the folder exists, the algorithm cannot be exported in this format,
            or the logits of the exported model differ from those of the model by more than TOLERANCE.
    """
    export_format = EXPORT_FORMATS[name]()
    if missing := [package for package in export_format.REQUIRES if find_spec(package) is None]:
        raise UsageError(f"--format {name} requires {' and '.join(missing)}; run pip install 'domainbed[export]'")
    algorithm = type(model.algorithm).__name__
    if export_format.IS_PROGRAM and model.EVAL_BATCH_SIZE:
        raise UsageError(
            f"cannot export {algorithm} as {name}, because its predictions depend on how images are batched; "
            "use --format safetensors or huggingface"
        )
    with _atomic_folder(output) if export_format.IS_FOLDER else _atomic_file(output) as path:
        with _explain_errors(algorithm, name):
            export_format.write(model, path)
            predict = export_format.read(path)
            inputs = [example_inputs(model, n, export_format.IS_PROGRAM) for n in COMPARED_BATCH_SIZES]
            difference = max(_difference(model, predict, x) for x in inputs)
        if not difference <= (TOLERANCE_OF_ROUNDED if rounds_features(model.hparams) else TOLERANCE):
            raise UsageError(
                f"cannot export {algorithm} as {name}: logits differ from those of the model by {difference:.1e}; its "
                "predictions may be random, or depend on how images are batched"
            )


def public_metadata(model: TrainedModel) -> dict[str, Any]:
    """Return what is required to create the model and to use it, without paths and other arguments of its job."""
    args = model.metadata["args"]
    return model.metadata | {
        "args": {name: args[name] for name in ("dataset", "algorithm", "test_envs", "imports") if name in args}
    }


def example_inputs(model: TrainedModel, n: int, is_program: bool) -> torch.Tensor:
    """Return n random images as the model expects them.

    If it was trained on features of a frozen backbone, programs contain the backbone, but weights are exported without
    those of the backbone; features are then returned.
    """
    generator = torch.Generator().manual_seed(n)
    if is_frozen(model.hparams) and not is_program:
        return torch.rand((n, *model.input_shapes[0]), generator=generator)
    pixels = torch.randint(0, 256, (n, *image_shape(model.metadata)), generator=generator, dtype=torch.uint8)
    return model.preprocessing.to_input(pixels) if model.preprocessing else pixels / 255


def _difference(model: TrainedModel, predict: Predict, x: torch.Tensor) -> float:
    """Return the largest difference of logits for inputs x, relative to the largest logit or 1."""
    expected, logits = model.predict(x), predict(x)
    if logits.shape != expected.shape:
        raise ValueError(f"logits of the shape {list(logits.shape)} instead of {list(expected.shape)}")
    difference = (logits - expected).abs().max() / expected.abs().max().clamp(min=1)
    return difference.item() if difference.isfinite() else float("inf")


@contextmanager
def _explain_errors(algorithm: str, name: str) -> Iterator[None]:
    """Turn the many kinds of errors of exporters into UsageErrors."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about deprecated formats, and about constants, which the comparison finds
            yield
    except (UsageError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise UsageError(f"cannot export {algorithm} as {name}: {reason}") from error


@contextmanager
def _atomic_file(path: Path) -> Iterator[Path]:
    with atomic_write(path) as file:
        yield Path(file.name)


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder that becomes `path`, which must not exist or be empty."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
