"""ColoredDigits and RotatedDigits: the MNIST benchmarks' small twins, which need no download.

scikit-learn carries 1,797 digits scanned at 8x8 pixels (Alpaydin and Kaynak, UCI 1998).
"""

import numpy as np

from domainbed.datasets.shifts import Colored, Digits, Rotated


class ScannedDigits(Digits):
    """scikit-learn's digits, their 17 grey levels stretched to 256. So few images need fewer steps."""

    N_STEPS = 1001

    @staticmethod
    def load_images(root: str | None) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # takes a second to import

        digits = load_digits()
        return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


class ColoredDigits(Colored, ScannedDigits):
    """Three environments of 599 images, 2x8x8, 2 classes."""

    input_shape = (2, 8, 8)


class RotatedDigits(Rotated, ScannedDigits):
    """Six environments of 299 or 300 images, 1x8x8, 10 classes."""

    input_shape = (1, 8, 8)
