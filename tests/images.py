"""Small trees of image files for tests of photo datasets."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from domainbed.datasets import get_dataset_class


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20)) -> np.ndarray:
    """Write an image of smooth random colors and return its pixels; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 5, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    image.save(path, quality=95) if path.suffix in (".jpg", ".jpeg") else image.save(path)
    return np.array(image)


def write_tree(root: Path, tree: Mapping[str, Mapping[str, int]], suffix: str = ".png") -> Path:
    """Write images of different sizes; `tree` is environment -> class -> number of images."""
    seed = 0
    for environment, classes in tree.items():
        for name, n in classes.items():
            (root / environment / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                write_image(root / environment / name / f"{i:03}{suffix}", seed, (20 + seed % 7, 24 - seed % 5))
                seed += 1
    return root


def write_dataset(data_dir: Path, name: str, per_class: int = 5, classes: int | None = None) -> Path:
    """Write a small version of a published dataset and return its folder."""
    dataset = get_dataset_class(name)
    names = dataset.CLASSES or [f"class {i:03}" for i in range(dataset.NUM_CLASSES)]
    counts = dict.fromkeys(names[:classes], per_class)
    return write_tree(data_dir / dataset.FOLDER, dict.fromkeys(dataset.ENVIRONMENT_FOLDERS, counts))
