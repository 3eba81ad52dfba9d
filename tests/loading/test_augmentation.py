"""The augmentation against torchvision's: image by image with the same numbers, and in distribution."""

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
from domainbed.loading.augmentation import COLUMNS, Augmentation, augmented, normalised, resized_crop
from domainbed.loading.sampling import uniforms


def draw(n: int, key: int = 0) -> Augmentation:
    return Augmentation(uniforms(key, 0, n, COLUMNS))


def smooth(n: int, height: int = 40, width: int = 48, seed: int = 0) -> torch.Tensor:
    """uint8 [n, 3, height, width], as smooth as photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 7, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).mul(255).byte()


def test_batched_equals_one_by_one():
    images, drawn = smooth(40), draw(40)
    together = augmented(images.float(), drawn)
    alone = torch.cat([augmented(images[i : i + 1].float(), drawn[i : i + 1]) for i in range(40)])
    assert torch.equal(together, alone)
    assert images.equal(smooth(40)), "the bytes were written into"


def with_torchvision(image: torch.Tensor, drawn: Augmentation) -> torch.Tensor:
    """The same on one float image [3, height, width] by torchvision's functions."""
    if drawn.flips[0]:
        image = TF.hflip(image)
    changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for which in drawn.order[0]:
        image = changes[which](image, float(drawn.factors[0, which]))
    return TF.rgb_to_grayscale(image, 3) if drawn.greys[0] else image


def test_each_image_is_what_torchvision_makes_of_it():
    images, drawn = smooth(60), draw(60, key=1)
    ours = augmented(images.float(), drawn)
    theirs = torch.stack([with_torchvision(x / 255, drawn[i : i + 1]) for i, x in enumerate(images)])
    # torchvision's luma has 0.2989 and 0.587 and 0.114, whose sum is not 1; PIL's has 0.299
    torch.testing.assert_close(ours / 255, theirs, atol=2e-3, rtol=0)


def test_each_image_is_what_pil_makes_of_it_but_for_its_rounding():
    images, drawn = smooth(30), draw(30, key=2)
    ours = augmented(images.float(), drawn)
    for i, image in enumerate(images):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        if drawn.flips[i]:
            pil = TF.hflip(pil)
        changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for which in drawn.order[i]:
            pil = changes[which](pil, float(drawn.factors[i, which]))
        if drawn.greys[i]:
            pil = TF.to_grayscale(pil, 3)
        difference = (ours[i] - torch.from_numpy(np.array(pil)).permute(2, 0, 1)).abs()
        assert difference.mean() < 4, "grey levels, of 256"
        assert difference.max() < 20, "PIL's hue has 256 steps"


@pytest.mark.parametrize("turn", [-0.3, -0.1, 0.0, 1e-3, 0.2, 0.3])
def test_hue_of_greys_and_pure_colours(turn: float):
    corners = torch.tensor([[r, g, b] for r in (0.0, 0.5, 1.0) for g in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0)])
    x = corners.T.reshape(1, 3, 1, 27).double()
    expected = 255 * TF.adjust_hue(x, turn)
    turns = torch.full((1, 1, 1, 1), turn).double()
    torch.testing.assert_close(A.hue(255 * x, turns), expected, atol=1e-3, rtol=0)
    greys = 255 * torch.rand(1, 1, 5, 5).expand(1, 3, 5, 5)
    assert torch.equal(A.hue(greys.clone(), torch.full((1, 1, 1, 1), turn)), greys)


def test_the_crop_is_pils_resize():
    image = smooth(1, 61, 83)[0].permute(1, 2, 0).contiguous()
    for box in [(0, 0, 61, 83), (3, 10, 50, 60), (60, 82, 1, 1)]:
        ours = resized_crop(image, box, (24, 24)).int()
        top, left, height, width = box
        pil = TF.resized_crop(Image.fromarray(image.numpy()), top, left, height, width, [24, 24])
        assert (ours - torch.from_numpy(np.array(pil)).permute(2, 0, 1)).abs().max() <= 1


def test_normalisation_is_imagenets():
    x = smooth(2).float()
    expected = TF.normalize(x / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalised(x), expected)


@given(height=st.integers(1, 400), width=st.integers(1, 400), key=st.integers(0, 1000))
def test_a_crop_lies_within_the_image(height: int, width: int, key: int):
    top, left, h, w = draw(1, key).crop(0, height, width)
    assert top >= 0
    assert left >= 0
    assert h > 0 or height == 0
    assert w > 0
    assert top + h <= height
    assert left + w <= width


class Extreme(Augmentation):
    """Numbers at the ends of [0, 1)."""

    def __init__(self, value: float) -> None:
        super().__init__(np.full((1, COLUMNS), value))


@pytest.mark.parametrize("value", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval(value: float):
    top, left, h, w = Extreme(value).crop(0, 227, 227)
    assert 0 <= top <= 227 - h
    assert 0 <= left <= 227 - w
    augmented(smooth(1).float(), Extreme(value))


# --- in distribution, against torchvision's own transforms -----------------------------------------------------------

N = 3000


@pytest.mark.parametrize(("height", "width"), [(227, 227), (300, 400), (500, 333), (100, 400), (400, 100)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int):
    torch.manual_seed(0)
    blank = Image.new("RGB", (width, height))
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(blank, (0.7, 1.0), (3 / 4, 4 / 3)) for _ in range(N)], dtype=float
    )
    drawn = draw(N, key=height)
    ours = np.array([drawn.crop(i, height, width) for i in range(N)], dtype=float)

    def statistics(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, h, w = boxes.T
        return {
            "area": h * w / (height * width),
            "ratio": w / h,
            "top": top / np.maximum(height - h, 1),
            "left": left / np.maximum(width - w, 1),
            "centre": (top + h / 2) / height + (left + w / 2) / width,
        }

    for name, values in statistics(ours).items():
        assert ks_2samp(values, statistics(theirs)[name]).pvalue > 1e-3, name


def test_flips_greys_and_factors_are_distributed_as_torchvisions():
    drawn = draw(20_000, key=5)
    for rate, happened in [(0.5, drawn.flips), (0.1, drawn.greys)]:
        assert chisquare([happened.sum(), (~happened).sum()], [rate * 20_000, (1 - rate) * 20_000]).pvalue > 1e-3
    torch.manual_seed(1)
    params = [transforms.ColorJitter.get_params((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.3, 0.3)) for _ in range(N)]
    theirs = np.array([p[1:] for p in params], dtype=float)
    for which, (low, width) in enumerate([(0.7, 0.6), (0.7, 0.6), (0.7, 0.6), (-0.3, 0.6)]):
        assert kstest(drawn.factors[:, which], "uniform", args=(low, width)).pvalue > 1e-3
        assert ks_2samp(drawn.factors[:N, which], theirs[:, which]).pvalue > 1e-3
    # each of the 24 orders as often
    codes = drawn.order @ np.array([64, 16, 4, 1])
    values, counts = np.unique(codes, return_counts=True)
    assert len(values) == math.factorial(4)
    assert chisquare(counts).pvalue > 1e-3
    # and nothing depends on anything else
    table = np.column_stack([drawn.flips, drawn.greys, drawn.factors, drawn.order])
    correlation = np.corrcoef(table.T)[:6, :6] - np.eye(6)
    assert np.abs(correlation).max() < 0.04


def test_pixels_are_distributed_as_the_published_pipelines():
    """Means and spreads of colours, saturation and position, over many augmentations of one image."""
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
    theirs = torch.stack([published(image) for _ in range(n)])
    drawn = draw(n, key=11)
    crops = [resized_crop(pixels.permute(1, 2, 0), drawn.crop(i, 60, 80), (32, 32)) for i in range(n)]
    ours = augmented(torch.stack(crops).float(), drawn) / 255

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

    for name, values in statistics(ours).items():
        assert ks_2samp(values, statistics(theirs)[name]).pvalue > 1e-3, name
