"""What --verify finds: on small trees made here, and on real images where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.digits import ColoredDigits
from domainbed.datasets.mnist import ColoredMNIST, RotatedMNIST
from domainbed.datasets.photos import PACS, SVIRO, DomainNet, Folder, PublishedDataset, TerraIncognita
from domainbed.datasets.verify import verify, write_leave_out
from domainbed.errors import UsageError


class Small(PublishedDataset):
    """Two environments, two classes, and two counts that are known: 6 images and 5."""

    FOLDER = "small"
    ENVIRONMENTS = ["A", "B"]
    ENVIRONMENT_FOLDERS = ("one", "two")
    NUM_CLASSES = 2
    CLASSES = ("cat", "dog")
    IMAGES = ((2, 4), (2, 3))


def draw(path: Path) -> None:
    """A random image, in whatever form the path's name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(len(path.name)).randint(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The 6 images of Small. Returns its folder."""
    for file in ("one/cat/1.jpg", "one/dog/1.png", "two/cat/1.jpg", "two/cat/2.jpg", "two/dog/1.jpg", "two/dog/2.jpg"):
        draw(tmp_path / "small" / file)
    return tmp_path / "small"


def break_some(root: Path) -> list[str]:
    """Make four images broken, each in its own way. Returns them."""
    whole = (root / "one/cat/1.jpg").read_bytes()
    (root / "one/cat/1.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "two/cat/2.jpg").write_text("404: not found")
    (root / "two/dog/1.jpg").write_bytes(b"")
    png = bytearray((root / "one/dog/1.png").read_bytes())
    png[len(png) // 2] ^= 255
    (root / "one/dog/1.png").write_bytes(png)
    return ["one/cat/1.jpg", "one/dog/1.png", "two/cat/2.jpg", "two/dog/1.jpg"]


def test_as_published(small: Path):
    verdict = verify(Small, str(small.parent))
    assert verdict.lines == [
        "one: 2 of 2 images",
        "two: 4 of 4 images",
        "6 images, as published",
        "2 classes",
        "all 6 images decode",
    ]
    assert verdict.sound


def test_another_known_count(small: Path):
    (small / "two/cat/1.jpg").unlink()
    verdict = verify(Small, str(small.parent))
    assert "5 images, as known, but the published tables had 6" in verdict.lines
    assert verdict.sound


def test_terra_incognitas_two_counts_are_known():
    assert [sum(counts) for counts in TerraIncognita.IMAGES] == [24_788, 24_330]
    assert sum(DomainNet.IMAGES[0]) == 586_575


def test_part_only(small: Path):
    (small / "two/cat/1.jpg").unlink()
    (small / "two/dog/1.jpg").unlink()
    verdict = verify(Small, str(small.parent))
    assert "two: 2 of 3 images" in verdict.lines
    assert "4 images, a part only of the 5 published" in verdict.lines
    assert not verdict.sound


def test_too_many(small: Path):
    draw(small / "two/cat/3.jpg")
    verdict = verify(Small, str(small.parent))
    assert "two: 5 of 4 images, 1 too many" in verdict.lines
    assert "7 images, not the 6 published; is there a leave_out.txt to be had?" in verdict.lines
    assert not verdict.sound
    (small / "leave_out.txt").write_text("two/cat/3.jpg\ntwo/cat/4.jpg\n")
    verdict = verify(Small, str(small.parent))
    assert "6 images, as published" in verdict.lines
    assert f"{small / 'leave_out.txt'} names two/cat/4.jpg, which is not there" in verdict.lines
    assert verdict.sound


def test_other_classes(small: Path):
    for env in ("one", "two"):
        (small / env / "cat").rename(small / env / "horse")
    verdict = verify(Small, str(small.parent))
    assert "class 'horse' is none of Small's; choose from cat, dog" in verdict.lines
    assert "class 'cat' is missing" in verdict.lines
    assert not verdict.sound
    draw(small / "two" / "zebra" / "1.jpg")
    assert "3 classes, not 2" in verify(Small, str(small.parent)).lines


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("two", "three", "has no folder 'two', an environment of Small"),
        ("two/dog", "two/Dog", "look like the same class"),
    ],
)
def test_what_the_reader_refuses(small: Path, old: str, new: str, line: str):
    (small / old).rename(small / new)
    verdict = verify(Small, str(small.parent))
    assert len(verdict.lines) == 1
    assert line in verdict.lines[0]
    assert not verdict.sound


def test_broken_images_are_listed_and_left_out(small: Path):
    broken = break_some(small)
    verdict = verify(Small, str(small.parent))
    assert not verdict.sound
    assert verdict.broken == broken
    for file in broken:
        assert any(line.startswith(f"{file} is a broken image (") for line in verdict.lines)
    assert "4 of 6 images broken" in verdict.lines

    (small / "leave_out.txt").write_text("# mine\ntwo/dog/9.jpg")
    write_leave_out(small, verdict.broken[:-1])
    expected = "# mine\ntwo/dog/9.jpg\none/cat/1.jpg\none/dog/1.png\ntwo/cat/2.jpg\n"
    assert (small / "leave_out.txt").read_text() == expected
    assert sorted(os.listdir(small)) == ["leave_out.txt", "one", "two"]


def test_unreadable_file_is_no_broken_image(small: Path):
    """A loop of links: nothing is known about the image, so it isn't to be left out."""
    (small / "two/cat/1.jpg").unlink()
    (small / "two/cat/1.jpg").symlink_to("1.jpg")
    verdict = verify(Small, str(small.parent))
    assert any("can't read" in line and "two/cat/1.jpg" in line for line in verdict.lines)
    assert verdict.broken == []
    assert not verdict.sound


def test_name_that_cannot_be_listed(small: Path):
    draw(small / "two/cat/a\nb.jpg")
    with pytest.raises(UsageError, match="can't hold such names; delete or rename"):
        write_leave_out(small, ["two/cat/a\nb.jpg"])


def test_folder(small: Path):
    verdict = verify(Folder, str(small))
    assert verdict.lines == [
        "one: 2 images",
        "two: 4 images",
        "6 images of 2 classes: cat, dog",
        "all 6 images decode",
    ]
    assert verdict.sound
    break_some(small)
    assert not verify(Folder, str(small)).sound


def test_no_count_is_known(tmp_path: Path):
    for env in SVIRO.ENVIRONMENT_FOLDERS:
        for name in range(7):
            draw(tmp_path / "sviro" / env / str(name) / "1.png")
    verdict = verify(SVIRO, str(tmp_path))
    assert "zoe: 7 images" in verdict.lines
    assert "70 images; no published count to compare them with" in verdict.lines
    assert verdict.sound


def test_not_there(tmp_path: Path):
    with pytest.raises(UsageError, match=r"PACS is not there: .*scripts.download --data_dir .* --dataset PACS"):
        verify(PACS, str(tmp_path))
    with pytest.raises(UsageError, match=r"MNIST is not there: .* lacks train-images-idx3-ubyte, "):
        verify(ColoredMNIST, str(tmp_path))


def test_digits_need_nothing():
    assert verify(ColoredDigits, "").lines == ["needs no files"]


def test_another_mnist(small_mnist_dir: str):
    verdict = verify(RotatedMNIST, small_mnist_dir)
    assert len(verdict.lines) == 4
    assert all("ubyte has the md5" in line for line in verdict.lines)
    assert not verdict.sound


def test_mnist(mnist_dir: str):
    verdict = verify(ColoredMNIST, mnist_dir)
    assert verdict.lines == ["70,000 images, as published"]
    assert verdict.sound


def test_real_images(pacs_dir: str):
    verdict = verify(PACS, pacs_dir)
    assert verdict.broken == []
    assert "7 classes" in verdict.lines
    n = sum(1 for path in (Path(pacs_dir) / "PACS").rglob("*.*") if path.suffix.lower() in (".jpg", ".png"))
    assert f"all {n:,} images decode" in verdict.lines
    assert verdict.sound == (n == 9_991)
