"""Statistics of pixels, accumulated image by image."""

from dataclasses import dataclass, field

import numpy as np

GRAY_TOLERANCE = 2 / 255  # mean difference between the largest and the smallest channel; JPEG files of scans have some


@dataclass
class PixelStatistics:
    """Statistics of some images of an environment, before the normalization of their colors.

    Attributes:
        n: number of images.
        n_gray: images with three channels of colors that are all (nearly) equal.
        n_constant: images of a single color.
        n_not_finite: images with values that are not finite; nothing else counts them.
        low, high: the smallest and the largest value.
    """

    n: int = 0
    n_gray: int = 0
    n_constant: int = 0
    n_not_finite: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    _n_pixels: int = 0
    _sum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _sum_of_squares: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, image: np.ndarray, has_colors: bool) -> None:
        """Count an image, [channels, height, width], whose values may be colors in 0..1."""
        if not np.isfinite(image).all():
            self.n_not_finite += 1
            return
        values = image.reshape(len(image), -1).astype(np.float64)
        if not self.n:
            self._sum, self._sum_of_squares = np.zeros(len(image)), np.zeros(len(image))
        self.n += 1
        self._n_pixels += values.shape[1]
        self._sum += values.sum(1)
        self._sum_of_squares += (values**2).sum(1)
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        self.n_gray += has_colors and len(image) == 3 and np.ptp(values, axis=0).mean() < GRAY_TOLERANCE
        self.n_constant += not np.ptp(values, axis=1).any()

    @property
    def mean(self) -> np.ndarray:
        """The mean of each channel, [channels]; empty without images."""
        return self._sum / max(1, self._n_pixels)

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each channel over all pixels of all images, [channels]."""
        return np.sqrt(np.maximum(0, self._sum_of_squares / max(1, self._n_pixels) - self.mean**2))
