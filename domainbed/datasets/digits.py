"""ColoredDigits and RotatedDigits: small counterparts of the MNIST benchmarks that need no download.

They use the 1,797 scanned digits of 8x8 pixels in scikit-learn (Alpaydin and Kaynak, UCI 1998).
"""

import numpy as np

from domainbed.datasets.shifts import Colored, Digits, Rotated


class ScannedDigits(Digits):
    """scikit-learn's digits, with the 17 gray levels rescaled to 0..255."""

    N_STEPS = 1001  # few images need fewer steps

    @staticmethod
    def load_images(root: str | None) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # imported here because it takes a second

        digits = load_digits()
        return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


class ColoredDigits(Colored, ScannedDigits):
    """Three environments of 599 images, 2x8x8, 2 classes."""

    input_shape = (2, 8, 8)


class RotatedDigits(Rotated, ScannedDigits):
    """Six environments of 299 or 300 images, 1x8x8, 10 classes."""

    input_shape = (1, 8, 8)
