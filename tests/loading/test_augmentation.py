"""Comparison of the augmentation with torchvision's: image by image with the same parameters, and in distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision import transforms
from torchvision.transforms import functional as TF

from domainbed.loading import augmentation as A
from domainbed.loading.augmentation import NUM_UNIFORMS, Augmentation, augment, normalize, resized_crop
from domainbed.loading.sampling import draw_uniforms


def draw(n: int, key: int = 0) -> Augmentation:
    return Augmentation(draw_uniforms(key, 0, n, NUM_UNIFORMS))


def smooth(n: int, height: int = 40, width: int = 48, seed: int = 0) -> torch.Tensor:
    """Return uint8 images [n, 3, height, width] that are as smooth as photos."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 7, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).mul(255).byte()


def test_batched_augmentation_equals_single_images():
    images, drawn = smooth(40), draw(40)
    batched = augment(images.float(), drawn)
    single = torch.cat([augment(images[i : i + 1].float(), drawn[i : i + 1]) for i in range(40)])
    assert torch.equal(batched, single)
    assert images.equal(smooth(40)), "the input was modified"


def with_torchvision(image: torch.Tensor, drawn: Augmentation) -> torch.Tensor:
    """Apply an augmentation to one float image [3, height, width] with torchvision's functions."""
    if drawn.is_flipped[0]:
        image = TF.hflip(image)
    transforms_ = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for column in drawn.order[0]:
        image = transforms_[column](image, float(drawn.factors[0, column]))
    return TF.rgb_to_grayscale(image, 3) if drawn.is_gray[0] else image


def test_images_equal_torchvision_on_tensors():
    images, drawn = smooth(60), draw(60, key=1)
    result = augment(images.float(), drawn)
    expected = torch.stack([with_torchvision(x / 255, drawn[i : i + 1]) for i, x in enumerate(images)])
    # torchvision's luma weights are 0.2989, 0.587 and 0.114; PIL's first one is 0.299
    torch.testing.assert_close(result / 255, expected, atol=2e-3, rtol=0)


def test_images_equal_torchvision_on_pil_images_up_to_rounding():
    images, drawn = smooth(30), draw(30, key=2)
    result = augment(images.float(), drawn)
    for i, image in enumerate(images):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        if drawn.is_flipped[i]:
            pil = TF.hflip(pil)
        transforms_ = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for column in drawn.order[i]:
            pil = transforms_[column](pil, float(drawn.factors[i, column]))
        if drawn.is_gray[i]:
            pil = TF.to_grayscale(pil, 3)
        difference = (result[i] - torch.from_numpy(np.array(pil)).permute(2, 0, 1)).abs()
        assert difference.mean() < 4, "gray levels, of 256"
        assert difference.max() < 20, "PIL's hue has 256 steps"


@pytest.mark.parametrize("shift", [-0.3, -0.1, 0.0, 1e-3, 0.2, 0.3])
def test_hue_of_grays_and_pure_colors(shift: float):
    corners = torch.tensor([[r, g, b] for r in (0.0, 0.5, 1.0) for g in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0)])
    x = corners.T.reshape(1, 3, 1, 27).double()
    expected = 255 * TF.adjust_hue(x, shift)
    shifts = torch.full((1, 1, 1, 1), shift).double()
    torch.testing.assert_close(A.hue(255 * x, shifts), expected, atol=1e-3, rtol=0)
    grays = 255 * torch.rand(1, 1, 5, 5).expand(1, 3, 5, 5)
    assert torch.equal(A.hue(grays.clone(), torch.full((1, 1, 1, 1), shift)), grays)


def test_crop_equals_pil():
    image = smooth(1, 61, 83)[0].permute(1, 2, 0).contiguous()
    for box in [(0, 0, 61, 83), (3, 10, 50, 60), (60, 82, 1, 1)]:
        result = resized_crop(image, box, (24, 24)).int()
        top, left, height, width = box
        pil = TF.resized_crop(Image.fromarray(image.numpy()), top, left, height, width, [24, 24])
        assert (result - torch.from_numpy(np.array(pil)).permute(2, 0, 1)).abs().max() <= 1


def test_normalization_uses_imagenet_statistics():
    x = smooth(2).float()
    expected = TF.normalize(x / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalize(x), expected)


@given(height=st.integers(1, 400), width=st.integers(1, 400), key=st.integers(0, 1000))
def test_crop_is_within_the_image(height: int, width: int, key: int):
    top, left, h, w = draw(1, key).crop(0, height, width)
    assert top >= 0
    assert left >= 0
    assert h > 0 or height == 0
    assert w > 0
    assert top + h <= height
    assert left + w <= width


class Extreme(Augmentation):
    """An augmentation whose random numbers all have the same value."""

    def __init__(self, value: float) -> None:
        super().__init__(np.full((1, NUM_UNIFORMS), value))


@pytest.mark.parametrize("value", [0.0, 1 - 2**-53])
def test_extreme_random_numbers(value: float):
    top, left, h, w = Extreme(value).crop(0, 227, 227)
    assert 0 <= top <= 227 - h
    assert 0 <= left <= 227 - w
    augment(smooth(1).float(), Extreme(value))


# --- distributions, compared with those of torchvision's transforms -------------------------------------------------

N = 3000


@pytest.mark.parametrize(("height", "width"), [(227, 227), (300, 400), (500, 333), (100, 400), (400, 100)])
def test_crops_have_torchvisions_distribution(height: int, width: int):
    torch.manual_seed(0)
    blank = Image.new("RGB", (width, height))
    expected = np.array(
        [transforms.RandomResizedCrop.get_params(blank, (0.7, 1.0), (3 / 4, 4 / 3)) for _ in range(N)], dtype=float
    )
    drawn = draw(N, key=height)
    result = np.array([drawn.crop(i, height, width) for i in range(N)], dtype=float)

    def statistics(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, h, w = boxes.T
        return {
            "area": h * w / (height * width),
            "ratio": w / h,
            "top": top / np.maximum(height - h, 1),
            "left": left / np.maximum(width - w, 1),
            "center": (top + h / 2) / height + (left + w / 2) / width,
        }

    for name, values in statistics(result).items():
        assert ks_2samp(values, statistics(expected)[name]).pvalue > 1e-3, name


def test_flips_grays_and_factors_have_torchvisions_distribution():
    drawn = draw(20_000, key=5)
    for rate, values in [(0.5, drawn.is_flipped), (0.1, drawn.is_gray)]:
        assert chisquare([values.sum(), (~values).sum()], [rate * 20_000, (1 - rate) * 20_000]).pvalue > 1e-3
    torch.manual_seed(1)
    params = [transforms.ColorJitter.get_params((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.3, 0.3)) for _ in range(N)]
    expected = np.array([p[1:] for p in params], dtype=float)
    for column, (low, width) in enumerate([(0.7, 0.6), (0.7, 0.6), (0.7, 0.6), (-0.3, 0.6)]):
        assert kstest(drawn.factors[:, column], "uniform", args=(low, width)).pvalue > 1e-3
        assert ks_2samp(drawn.factors[:N, column], expected[:, column]).pvalue > 1e-3
    # All 24 orders are equally likely.
    codes = drawn.order @ np.array([64, 16, 4, 1])
    values, counts = np.unique(codes, return_counts=True)
    assert len(values) == math.factorial(4)
    assert chisquare(counts).pvalue > 1e-3
    # All parameters are independent.
    table = np.column_stack([drawn.is_flipped, drawn.is_gray, drawn.factors, drawn.order])
    correlation = np.corrcoef(table.T)[:6, :6] - np.eye(6)
    assert np.abs(correlation).max() < 0.04


def test_pixels_have_the_published_pipelines_distribution():
    """Compare statistics of colors, saturation and position over many augmentations of one image."""
    pixels = smooth(1, 60, 80, seed=3)[0]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    published = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
        ]
    )
    torch.manual_seed(2)
    n = 1500
    expected = torch.stack([published(image) for _ in range(n)])
    drawn = draw(n, key=11)
    crops = [resized_crop(pixels.permute(1, 2, 0), drawn.crop(i, 60, 80), (32, 32)) for i in range(n)]
    result = augment(torch.stack(crops).float(), drawn) / 255

    def statistics(x: torch.Tensor) -> dict[str, np.ndarray]:
        halves = x[..., :16].mean((1, 2, 3)) - x[..., 16:].mean((1, 2, 3))
        values = {
            "red": x[:, 0].mean((1, 2)),
            "blue": x[:, 2].mean((1, 2)),
            "brightness": x.mean((1, 2, 3)),
            "contrast": x.mean(1).std((1, 2)),
            "saturation": (x.amax(1) - x.amin(1)).mean((1, 2)),
            "left against right": halves,
            "corner": x[:, 1, 0, 0],
        }
        return {name: value.numpy() for name, value in values.items()}

    for name, values in statistics(result).items():
        assert ks_2samp(values, statistics(expected)[name]).pvalue > 1e-3, name
