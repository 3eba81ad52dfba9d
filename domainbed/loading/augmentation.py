"""The published augmentation of photographs, drawn from uniform numbers and applied to whole batches.

RandomResizedCrop(224, scale 0.7 to 1), a horizontal flip, ColorJitter(0.3, 0.3, 0.3, 0.3) and RandomGrayscale(0.1), as
torchvision defines them: equal in distribution to its transforms of single PIL images, but some three times as fast on
a CPU, and on a GPU as well. From the crop on colours are floats in 0..255; PIL rounds them after each step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from domainbed.backbones import IMAGENET_MEAN, IMAGENET_STD

SCALE = (0.7, 1.0)  # of the crop's area
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))  # of its width to its height
TRIES = 10
JITTER = 0.3
GREY_RATE = 0.1
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2: the grey of red, green and blue

# The columns of uniform numbers that an image takes.
_TRIES = slice(0, 2 * TRIES)
_POSITION = slice(2 * TRIES, 2 * TRIES + 2)
_FLIP = 2 * TRIES + 2
_FACTORS = slice(2 * TRIES + 3, 2 * TRIES + 7)
_ORDER = slice(2 * TRIES + 7, 2 * TRIES + 11)
_GREY = 2 * TRIES + 11
COLUMNS = 2 * TRIES + 12


@dataclass(frozen=True)
class Augmentation:
    """How each image of a batch is augmented: a function of `uniform`, [n, COLUMNS] in [0, 1)."""

    uniform: np.ndarray

    def crop(self, i: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of image i that is seen, given its size in pixels: (top, left, height, width)."""
        tries = self.uniform[i, _TRIES].tolist()
        down, right = self.uniform[i, _POSITION].tolist()
        for u_area, u_ratio in zip(tries[::2], tries[1::2], strict=True):
            area = height * width * (SCALE[0] + u_area * (SCALE[1] - SCALE[0]))
            ratio = math.exp(LOG_RATIO[0] + u_ratio * (LOG_RATIO[1] - LOG_RATIO[0]))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
        # No luck, as with panoramas: the middle, as much of it as the allowed ratios let.
        h = min(height, round(width / math.exp(LOG_RATIO[0])))
        w = min(width, round(height * math.exp(LOG_RATIO[1])))
        return (height - h) // 2, (width - w) // 2, h, w

    @property
    def flips(self) -> np.ndarray:
        """Whether left and right are exchanged: bool [n]."""
        return self.uniform[:, _FLIP] < 0.5

    @property
    def factors(self) -> np.ndarray:
        """Brightness, contrast and saturation, in 0.7..1.3, and the turn of the hue, in -0.3..0.3 circles: [n, 4]."""
        turn = JITTER * (2 * self.uniform[:, _FACTORS] - 1)
        return turn + np.array([1.0, 1.0, 1.0, 0.0])

    @property
    def order(self) -> np.ndarray:
        """The order in which these four are applied, as columns of `factors`: [n, 4]."""
        return self.uniform[:, _ORDER].argsort(axis=1)

    @property
    def greys(self) -> np.ndarray:
        """Whether the colours are taken away in the end: bool [n]."""
        return self.uniform[:, _GREY] < GREY_RATE

    def __getitem__(self, rows: slice) -> "Augmentation":
        return Augmentation(self.uniform[rows])


def resized_crop(image: torch.Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """A part of an image, bilinear with antialiasing as PIL's.

    Args:
        image: uint8 [height, width, 3].
        box: (top, left, height, width).
        size: (height, width) of the result.

    Returns:
        uint8 [3, *size].
    """
    top, left, height, width = box
    part = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
    if part.device.type == "cpu":  # bytes are resized as bytes, four times as fast
        # Plane by plane, or the colours would take four times as long.
        return F.interpolate(part, size, mode="bilinear", antialias=True)[0].contiguous()
    resized = F.interpolate(part.float(), size, mode="bilinear", antialias=True)[0]
    return resized.round_().clamp_(0, 255).byte()


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Colours [n, 3, height, width] in 0..255, bytes or floats, as the published networks want them: a new tensor."""
    mean, std = (_on(x.device, torch.tensor(c) * 255)[:, None, None] for c in (IMAGENET_MEAN, IMAGENET_STD))
    out = torch.empty(x.shape, device=x.device)
    at_once = 1 if x.device.type == "cpu" else len(x)  # what fits into a CPU's cache
    for part, result in zip(x.split(at_once), out.split(at_once), strict=True):
        torch.sub(part, mean, out=result).div_(std)
    return out


def augmented(x: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Flips and colours, for crops [n, 3, height, width], floats in 0..255. Writes into x."""
    x = _where(augmentation.flips.nonzero()[0].tolist(), lambda part: part.flip(3), x)
    x = jitter(x, augmentation)
    return _where(augmentation.greys.nonzero()[0].tolist(), lambda part: part.copy_(grey(part).expand_as(part)), x)


def to_bytes(x: torch.Tensor) -> torch.Tensor:
    """Floats in 0..255 as the nearest bytes. Writes into x."""
    return x.round_().short().byte()  # by way of short: a CPU is three times as fast


def jitter(x: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """The four changes of colour, each image's in its own order. Writes into x."""
    factors = _on(x.device, torch.from_numpy(augmentation.factors).to(x.dtype))[:, :, None, None, None]
    for column in augmentation.order.T.tolist():
        for which in set(column):
            # Whose turn it is is known here, on the host: the device is never waited for.
            rows = [i for i, turn in enumerate(column) if turn == which]
            x = _where(rows, CHANGES[which], x, factors[:, which])
    return x


def _where(rows: list[int], change: Callable[..., torch.Tensor], x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
    """`x` with the images of these rows changed."""
    if not rows:
        return x
    if len(rows) == x.shape[0]:
        return change(x, *args)
    index = _on(x.device, torch.tensor(rows))
    x[index] = change(x[index], *(values[index] for values in args))
    return x


def _on(device: torch.device, few: torch.Tensor) -> torch.Tensor:
    """A few numbers of the host's, on the device, without waiting for it."""
    return few.to(device, non_blocking=True)


# Below, x is [n, 3, height, width] in 0..255, and is written into (a CPU's cache holds one image, but no copies);
# factor and turn are [n, 1, 1, 1].


def brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Between black and the image, or beyond it."""
    return x.mul_(factor).clamp_(0, 255)


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Between the image's mean grey and the image, or beyond it."""
    mean = grey(x.mean((2, 3), keepdim=True))  # grey is linear: the mean's grey is the grey's mean
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255)


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Between the grey image and the image, or beyond it."""
    return x.lerp_(grey(x), 1 - factor).clamp_(0, 255)


def hue(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue by so many circles, at most one third either way; saturation and value stay (HSV).

    Let t be the hue in sixths of a circle, from -3 to 3. A channel is clamp(||t - o| - 3| - 1, 0, 1) of the way from
    the least channel to the most, with o = 0, 2 and -2 for red, green and blue. All is kept multiplied with
    chroma = most - least, so that grey pixels need no division by zero, and then

        |t| = green + blue - red - 2 least + most, with the sign of green - blue,

    whatever sixth it lies in: a CPU adds ten times faster than it chooses between cases.
    """
    red, green, blue = x.unbind(1)
    most = torch.maximum(red, green)
    torch.maximum(most, blue, out=most)
    least = torch.minimum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = most - least
    t = (green + blue).sub_(red).sub_(least, alpha=2).add_(most).copysign_(green - blue)
    t.addcmul_(chroma, 6 * turn[:, 0])
    for channel, offset in zip((red, green, blue), (0, 2, -2), strict=True):
        torch.sub(t, chroma, alpha=offset, out=channel)
    x.abs_().sub_(chroma[:, None], alpha=3).abs_().sub_((chroma - least)[:, None])
    torch.maximum(x, least[:, None], out=x)
    return torch.minimum(x, most[:, None], out=x)


def grey(x: torch.Tensor) -> torch.Tensor:
    """Each pixel's luma: a new tensor [n, 1, height, width]."""
    red, green, blue = x.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


CHANGES = (brightness, contrast, saturation, hue)  # in the order of Augmentation.factors
