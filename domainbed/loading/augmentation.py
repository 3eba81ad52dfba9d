"""The published augmentation of photos, computed from a table of uniform random numbers for whole batches.

RandomResizedCrop(224, scale=(0.7, 1)), RandomHorizontalFlip(), ColorJitter(0.3, 0.3, 0.3, 0.3) and RandomGrayscale(0.1)
of torchvision. Results are equal in distribution to torchvision's transforms of single PIL images, but take a third of
the time on a CPU, and can be computed on a GPU. After the crop, colors are floats in 0..255; PIL rounds them
after each step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from domainbed.backbones import IMAGENET_MEAN, IMAGENET_STD

SCALE = (0.7, 1.0)  # crop area / image area
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))  # log of the crop's width / height
CROP_ATTEMPTS = 10
JITTER = 0.3
GRAY_PROBABILITY = 0.1
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2: weights of red, green and blue

# Columns of the table of random numbers; each image uses one row.
_CROPS = slice(0, 2 * CROP_ATTEMPTS)
_POSITION = slice(2 * CROP_ATTEMPTS, 2 * CROP_ATTEMPTS + 2)
_FLIP = 2 * CROP_ATTEMPTS + 2
_FACTORS = slice(2 * CROP_ATTEMPTS + 3, 2 * CROP_ATTEMPTS + 7)
_ORDER = slice(2 * CROP_ATTEMPTS + 7, 2 * CROP_ATTEMPTS + 11)
_GRAY = 2 * CROP_ATTEMPTS + 11
NUM_UNIFORMS = 2 * CROP_ATTEMPTS + 12


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of each image of a batch, as a function of `uniform`, [n, NUM_UNIFORMS] in [0, 1)."""

    uniform: np.ndarray

    def crop(self, i: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the crop (top, left, height, width) of image i, given its size in pixels."""
        crops = self.uniform[i, _CROPS].tolist()
        down, right = self.uniform[i, _POSITION].tolist()
        for u_area, u_ratio in zip(crops[::2], crops[1::2], strict=True):
            area = height * width * (SCALE[0] + u_area * (SCALE[1] - SCALE[0]))
            ratio = math.exp(LOG_RATIO[0] + u_ratio * (LOG_RATIO[1] - LOG_RATIO[0]))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        # No attempt fits, e.g. in a panorama: the largest center crop with a valid ratio.
        h = min(height, round(width / math.exp(LOG_RATIO[0])))
        w = min(width, round(height * math.exp(LOG_RATIO[1])))
        return (height - h) // 2, (width - w) // 2, h, w

    @property
    def is_flipped(self) -> np.ndarray:
        """Mask of the images that are flipped horizontally, bool [n]."""
        return self.uniform[:, _FLIP] < 0.5

    @property
    def factors(self) -> np.ndarray:
        """Brightness, contrast and saturation factors in 0.7..1.3 and the hue shift in -0.3..0.3 turns, [n, 4]."""
        offsets = JITTER * (2 * self.uniform[:, _FACTORS] - 1)
        return offsets + np.array([1.0, 1.0, 1.0, 0.0])

    @property
    def order(self) -> np.ndarray:
        """The order in which these four are applied, as columns of `factors`, [n, 4]."""
        return self.uniform[:, _ORDER].argsort(axis=1)

    @property
    def is_gray(self) -> np.ndarray:
        """Mask of the images that are finally converted to grayscale, bool [n]."""
        return self.uniform[:, _GRAY] < GRAY_PROBABILITY

    def __getitem__(self, rows: slice) -> "Augmentation":
        return Augmentation(self.uniform[rows])


def resized_crop(image: torch.Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """Crop an image and resize the crop, bilinear with antialiasing as in PIL.

    Args:
        image: uint8 [height, width, 3].
        box: (top, left, height, width).
        size: (height, width) of the result.

    Returns:
        uint8 [3, *size].
    """
    top, left, height, width = box
    crop = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
    if crop.device.type == "cpu":  # resizing uint8 is four times as fast as resizing floats
        # Contiguous, because the color transforms would take four times as long on interleaved channels.
        return F.interpolate(crop, size, mode="bilinear", antialias=True)[0].contiguous()
    resized = F.interpolate(crop.float(), size, mode="bilinear", antialias=True)[0]
    return resized.round_().clamp_(0, 255).byte()


def normalize(x: torch.Tensor) -> torch.Tensor:
    """Normalize colors [n, 3, height, width] in 0..255, uint8 or float, with ImageNet's statistics: a new tensor."""
    mean, std = (_to_device(torch.tensor(c) * 255, x.device)[:, None, None] for c in (IMAGENET_MEAN, IMAGENET_STD))
    out = torch.empty(x.shape, device=x.device)
    chunk = 1 if x.device.type == "cpu" else len(x)  # one image fits in a CPU's cache
    for part, result in zip(x.split(chunk), out.split(chunk), strict=True):
        torch.sub(part, mean, out=result).div_(std)
    return out


def denormalize(x: torch.Tensor) -> torch.Tensor:
    """Return the colors, [n, 3, height, width] in 0..255, of images that `normalize` returned."""
    mean, std = (torch.tensor(c, device=x.device)[:, None, None] * 255 for c in (IMAGENET_MEAN, IMAGENET_STD))
    return (x * std + mean).clamp_(0, 255)


def augment(x: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Flip crops [n, 3, height, width], floats in 0..255, and change their colors. May modify x in place."""
    x = _apply_to_rows(augmentation.is_flipped.nonzero()[0].tolist(), lambda rows: rows.flip(3), x)
    x = color_jitter(x, augmentation)
    gray_rows = augmentation.is_gray.nonzero()[0].tolist()
    return _apply_to_rows(gray_rows, lambda rows: rows.copy_(to_gray(rows).expand_as(rows)), x)


def to_bytes(x: torch.Tensor) -> torch.Tensor:
    """Round floats in 0..255 to uint8. Modifies x in place."""
    return x.round_().short().byte()  # via int16, which is three times as fast on a CPU


def color_jitter(x: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Apply the four color transforms to each image in its own order. May modify x in place."""
    factors = _to_device(torch.from_numpy(augmentation.factors).to(x.dtype), x.device)[:, :, None, None, None]
    for column in augmentation.order.T.tolist():
        for transform in set(column):
            # Rows are selected on the host, so the device is never synchronized.
            rows = [i for i, other in enumerate(column) if other == transform]
            x = _apply_to_rows(rows, COLOR_TRANSFORMS[transform], x, factors[:, transform])
    return x


def _apply_to_rows(
    rows: list[int], transform: Callable[..., torch.Tensor], x: torch.Tensor, *args: torch.Tensor
) -> torch.Tensor:
    """Apply a transform to some images of `x`, with the same rows of `args`."""
    if not rows:
        return x
    if len(rows) == x.shape[0]:
        return transform(x, *args)
    index = _to_device(torch.tensor(rows), x.device)
    x[index] = transform(x[index], *(values[index] for values in args))
    return x


def _to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a small tensor from the host to the device without waiting."""
    return x.to(device, non_blocking=True)


# The color transforms below modify x, [n, 3, height, width] in 0..255, in place: a CPU's cache holds one image, but no
# copies of it. `factor` and `shift` are [n, 1, 1, 1].


def brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale the image."""
    return x.mul_(factor).clamp_(0, 255)


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Interpolate between the image's mean gray level (factor 0) and the image (factor 1), or extrapolate."""
    mean = to_gray(x.mean((2, 3), keepdim=True))  # to_gray is linear, so it commutes with the mean
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255)


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Interpolate between the grayscale image (factor 0) and the image (factor 1), or extrapolate."""
    return x.lerp_(to_gray(x), 1 - factor).clamp_(0, 255)


def hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift the hue by at most a third of a turn in either direction, with constant saturation and value (HSV).

    Let t be the hue in sixths of a turn, from -3 to 3. Then a channel is

        low + chroma * clamp(||t - offset| - 3| - 1, 0, 1),

    where low and high are the pixel's smallest and largest channels, chroma = high - low, and offset is 0, 2 and -2 for
    red, green and blue. All terms are multiplied by chroma, which avoids a division by zero at gray pixels. In every
    sixth,

        chroma * |t| = green + blue - red - 2 low + high,

    and t has the sign of green - blue. This form needs only additions, which are ten times as fast on a CPU as a
    selection between six cases.
    """
    red, green, blue = x.unbind(1)
    high = torch.maximum(red, green)
    torch.maximum(high, blue, out=high)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    t = (green + blue).sub_(red).sub_(low, alpha=2).add_(high).copysign_(green - blue)
    t.addcmul_(chroma, 6 * shift[:, 0])
    for channel, offset in zip((red, green, blue), (0, 2, -2), strict=True):
        torch.sub(t, chroma, alpha=offset, out=channel)
    x.abs_().sub_(chroma[:, None], alpha=3).abs_().sub_((chroma - low)[:, None])
    torch.maximum(x, low[:, None], out=x)
    return torch.minimum(x, high[:, None], out=x)


def to_gray(x: torch.Tensor) -> torch.Tensor:
    """Return each pixel's luma: a new tensor [n, 1, height, width]."""
    red, green, blue = x.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


COLOR_TRANSFORMS = (brightness, contrast, saturation, hue)  # in the order of Augmentation.factors
