"""ColoredMNIST and RotatedMNIST, on all 70,000 images of MNIST (training and test images together)."""

import contextlib
import io
import os
import socket
import tempfile
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from domainbed.datasets.shifts import Colored, Digits, Rotated
from domainbed.errors import UsageError
from domainbed.hparams import Hparams

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
NUM_IMAGES = 70_000


class MNIST(Digits):
    """The 70,000 images of data_dir/MNIST/raw."""

    @classmethod
    def find_problems(cls, root: str | None) -> list[str]:
        if not root:
            return [f"{cls.__name__} requires --data_dir, the folder that contains MNIST/raw"]
        if not Path(root).is_dir():
            return [f"--data_dir {root!r} is not a folder; create it first; MNIST is downloaded into it"]
        return []

    @classmethod
    def find_downloads(cls, root: str | None) -> list[str]:
        missing = missing_files(root) if root else []
        return [f"{raw_folder(root)} lacks {', '.join(missing)} of MNIST"] if missing else []

    @classmethod
    def prepare(cls, root: str | None) -> None:
        super().prepare(root)
        if root and missing_files(root):
            download(root)

    def __init__(self, root: str | None, test_envs: Sequence[int], hparams: Hparams, trial_seed: int = 0) -> None:
        super().__init__(root, test_envs, hparams, trial_seed)
        warn_if_incomplete(root, sum(map(len, self.environments)))

    @staticmethod
    def version(root: str | None) -> Hashable:
        files = [raw_folder(root) / name for name in FILES]
        return tuple(file.stat().st_mtime_ns for file in files if file.exists())

    @staticmethod
    def load_images(root: str | None) -> tuple[np.ndarray, np.ndarray]:
        from torchvision import datasets  # imports torch

        try:
            parts = [datasets.MNIST(str(root), train=train) for train in (True, False)]
            images = np.concatenate([part.data.numpy() for part in parts])
            digits = np.concatenate([part.targets.numpy() for part in parts])
            if len(images) != len(digits):
                raise ValueError(f"{len(images)} images, but {len(digits)} labels")
        except Exception as error:  # torchvision barely validates, and raises many kinds of errors
            raise UsageError(
                f"cannot read MNIST in {raw_folder(root)}: {type(error).__name__}: {error}; "
                "delete the folder to download MNIST again"
            ) from error
        return images, digits


class ColoredMNIST(Colored, MNIST):
    """Three environments of 23,334 / 23,333 / 23,333 images, 2x28x28, 2 classes."""

    input_shape = (2, 28, 28)


class RotatedMNIST(Rotated, MNIST):
    """Six environments of 11,667 or 11,666 images, 1x28x28, 10 classes."""

    input_shape = (1, 28, 28)


def raw_folder(root: str | None) -> Path:
    """Return the folder in which torchvision expects MNIST under `root`."""
    return Path(str(root)) / "MNIST" / "raw"


def warn_if_incomplete(root: str | None, n: int) -> None:
    """Warn if `n` is not the number of images of MNIST."""
    if n != NUM_IMAGES:
        warnings.warn(
            f"{raw_folder(root)} has {n} images, not MNIST's {NUM_IMAGES}; "
            "results are not comparable with published results",
            stacklevel=3,
        )


def missing_files(root: str) -> list[str]:
    """Return the names of MNIST's four files that do not exist."""
    return [name for name in FILES if not (raw_folder(root) / name).is_file()]


def download(root: str) -> None:
    """Download MNIST with torchvision into a temporary folder and move complete files into place.

    Raises:
        UsageError: the download failed; `root` is unchanged.
    """
    from torchvision import datasets

    timeout = socket.getdefaulttimeout()
    try:
        raw = raw_folder(root)
        existing = next(folder for folder in (raw, *raw.parents) if folder.is_dir())  # may be a link to another disk
        with tempfile.TemporaryDirectory(dir=existing, prefix=".mnist-") as temporary:
            socket.setdefaulttimeout(30)
            with contextlib.redirect_stdout(io.StringIO()):  # one line per mirror that did not respond
                datasets.MNIST(temporary, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            for name in missing_files(root):
                os.replace(raw_folder(temporary) / name, raw / name)
    except Exception as error:
        raise UsageError(
            f"MNIST is not in {raw_folder(root)} and could not be downloaded ({' '.join(str(error).split())}); "
            f"put {', '.join(FILES)} there"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
