"""The input of a trained network: how evaluation makes it from an image, and checks of tensors that users pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from domainbed.backbones import IMAGENET_MEAN, IMAGENET_STD
from domainbed.datasets import DATASETS, ArrayEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.datasets.photos import PhotoDataset
from domainbed.datasets.shifts import Digits
from domainbed.engine.frozen import FeatureDataset, image_shape
from domainbed.errors import UsageError
from domainbed.loading.augmentation import normalize, resized_crop, to_bytes, to_gray
from domainbed.loading.decode import decode, read_file

RESIZE = "bilinear with antialiasing, without preserving the aspect ratio"
FAR_FROM_NORMALIZED = 10.0  # ImageNet-normalized colors are in -2.2..2.7


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of an image to a network's input, as in evaluation without augmentation.

    An image is converted to RGB and resized. Networks for one channel receive its gray levels (ITU-R 601-2 luma), those
    for two channels its red and green.

    Attributes:
        input_shape: (channels, height, width) of the input.
        is_normalized: normalize colors with the mean and standard deviation of ImageNet; otherwise, they are in [0, 1].
    """

    input_shape: tuple[int, int, int]
    is_normalized: bool

    @classmethod
    def of_dataset(cls, dataset: MultipleDomainDataset) -> "Preprocessing | None":
        """Return the preprocessing of a dataset; None if it consists of floating-point arrays, which have no rule."""
        if isinstance(dataset, FeatureDataset):
            return cls(dataset.image_shape, is_normalized=True)
        if all(isinstance(environment, FileEnvironment) for environment in dataset):
            return cls(dataset.input_shape, is_normalized=True)
        if all(isinstance(e, ArrayEnvironment) and e.images.dtype == np.uint8 for e in dataset):
            return cls(dataset.input_shape, is_normalized=False)
        return None

    @classmethod
    def of_saved(cls, saved: dict[str, Any]) -> "Preprocessing | None":
        """Return the preprocessing of a saved model. If the file does not contain it, that of the built-in datasets."""
        shape, name = image_shape(saved), saved["args"]["dataset"]
        if "preprocessing" not in saved:
            if name not in DATASETS or not issubclass(DATASETS[name], PhotoDataset | Digits):
                return None
            return cls(shape, issubclass(DATASETS[name], PhotoDataset))
        if saved["preprocessing"] is None:
            return None
        for is_normalized in (True, False):
            if (preprocessing := cls(shape, is_normalized)).as_dict() == saved["preprocessing"]:
                return preprocessing
        raise UsageError(
            f"unknown preprocessing {saved['preprocessing']}; a newer version of domainbed may have saved it"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return a description in numbers and text, with which other programs can implement the preprocessing.

        An RGB image with colors in [0, 1] is resized to (height, width) `size`, converted to the `channels`, and
        normalized: (color - mean) / std.
        """
        n_channels, *size = self.input_shape
        channels = {1: "gray", 2: "red, green", 3: "red, green, blue"}.get(n_channels, str(n_channels))
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if self.is_normalized else ((0.0,) * n_channels, (1.0,) * n_channels)
        return {"channels": channels, "size": size, "resize": RESIZE, "mean": list(mean), "std": list(std)}

    def read_image(self, image: str | Path | Image.Image, name: object = None) -> torch.Tensor:
        """Return the resized pixels of an image, uint8 [channels, height, width]; see `to_input`.

        Args:
            image: a file, or an image opened or created with Pillow.
            name: the name of the image in messages; by default, its path.

        Raises:
            UsageError: the file cannot be read, or (BadImageError) is not a complete image.
        """
        if isinstance(image, str | Path):
            pixels = decode(read_file(Path(image)), image if name is None else name)
        elif isinstance(image, Image.Image):
            pixels = decode(image, "image" if name is None else name)
        else:
            raise UsageError(f"images must be paths or PIL images, not {type(image).__name__}")
        height, width = pixels.shape[:2]
        resized = resized_crop(torch.from_numpy(pixels), (0, 0, height, width), self.input_shape[1:])
        channels = self.input_shape[0]
        if channels == 1:
            return to_bytes(to_gray(resized[None].float()))[0]
        if channels > 3:
            raise UsageError(f"the model expects {channels} channels, but images have 3; pass tensors to predict")
        return resized[:channels]

    def to_input(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the network's input of pixels from `read_image`, uint8 [n, channels, height, width]."""
        return normalize(pixels) if self.is_normalized else pixels.div(255)


def check_input(x: torch.Tensor, shapes: Sequence[tuple[int, ...]], preprocessing: Preprocessing | None) -> None:
    """Check a tensor that a user passes to a model. Synchronizes with the device.

    Args:
        x: the tensor.
        shapes: the valid shapes, without the dimension of the batch.
        preprocessing: that of images; None if their range is not known.

    Raises:
        UsageError: the shape is wrong, a value is not finite, or the range is clearly not that of the preprocessing.
    """
    if not isinstance(x, torch.Tensor):
        raise UsageError(f"expected a tensor, got {type(x).__name__}; predict_images accepts paths and PIL images")
    if tuple(x.shape[1:]) not in shapes:
        expected = " or ".join(f"[n, {', '.join(map(str, shape))}]" for shape in shapes)
        if tuple(x.shape) in shapes:
            hint = "add a batch dimension: x[None]"
        elif x.ndim == 4 and (x.shape[3], *x.shape[1:3]) in shapes:
            hint = "move the channels to the second dimension: x.permute(0, 3, 1, 2)"
        else:
            hint = "predict_images resizes images as in evaluation"
        raise UsageError(f"expected a tensor {expected}, got {list(x.shape)}; {hint}")
    if not x.is_floating_point():
        raise UsageError(f"expected a floating-point tensor{_range(preprocessing)}, got {x.dtype}")
    if not x.numel():
        return
    low, high = (value.item() for value in x.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError("the tensor has values that are not finite")
    if preprocessing is None or tuple(x.shape[1:]) != preprocessing.input_shape:
        return
    if preprocessing.is_normalized:
        # An image with colors in [0, 1] has no negative value; a normalized one only if all its colors are bright.
        is_valid = -FAR_FROM_NORMALIZED <= low <= high <= FAR_FROM_NORMALIZED and not 0 <= low <= high <= 1
    else:
        is_valid = -0.01 <= low <= high <= 1.01  # tolerates interpolation
    if not is_valid:
        raise UsageError(
            f"expected a tensor{_range(preprocessing)}, got values from {low:.4g} to {high:.4g}; "
            "predict_images converts images as in evaluation"
        )


def _range(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return ""
    if not preprocessing.is_normalized:
        return " with values in [0, 1]"
    mean, std = (", ".join(map(str, values)) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return f" of colors in [0, 1] that are normalized with mean ({mean}) and std ({std})"
