"""Environments whose images lie on the device from the first step to the last."""

import numpy as np
import torch


class ResidentImages:
    """The images and labels of one environment, on a device, ready to be drawn by index.

    uint8 images stay uint8 (a quarter of the memory) and become floats in [0, 1] as they are drawn.

    Args:
        images: [n, channels, height, width], uint8 or floating point.
        labels: [n], integers.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.from_numpy(labels).to(device)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [k, channels, height, width] as float32, and labels [k], for `indices` [k] on the same device."""
        images = self.images[indices]
        images = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
        return images, self.labels[indices]

    def __len__(self) -> int:
        return len(self.labels)
