"""Tests of --verify on small trees, and on real images if available."""

import hashlib
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from domainbed.datasets.base import FileEnvironment, MultipleDomainDataset
from domainbed.datasets.digits import ColoredDigits
from domainbed.datasets.mnist import ColoredMNIST, RotatedMNIST
from domainbed.datasets.photos import PACS, SVIRO, Folder, PublishedTree
from domainbed.datasets.verify import verify, write_leave_out
from domainbed.errors import UsageError


class Small(PublishedTree):
    """A dataset of two environments and two classes, with two known counts: 6 and 5 images."""

    FOLDER = "small"
    ENVIRONMENTS = ["A", "B"]
    ENVIRONMENT_FOLDERS = ("one", "two")
    NUM_CLASSES = 2
    CLASSES = ("cat", "dog")
    IMAGES = ((2, 4), (2, 3))


def draw(path: Path) -> None:
    """Write a random image in the format given by the file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-3:]).encode())
    pixels = np.random.RandomState(seed).randint(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Write the 6 images of Small and return its folder."""
    for file in ("one/cat/1.jpg", "one/dog/1.png", "two/cat/1.jpg", "two/cat/2.jpg", "two/dog/1.jpg", "two/dog/2.jpg"):
        draw(tmp_path / "small" / file)
    return tmp_path / "small"


def break_some(root: Path) -> list[str]:
    """Break four images in different ways and return their paths."""
    data = (root / "one/cat/1.jpg").read_bytes()
    (root / "one/cat/1.jpg").write_bytes(data[: len(data) // 2])
    (root / "two/cat/2.jpg").write_text("404: not found")
    (root / "two/dog/1.jpg").write_bytes(b"")
    png = bytearray((root / "one/dog/1.png").read_bytes())
    png[len(png) // 2] ^= 255
    (root / "one/dog/1.png").write_bytes(png)
    return ["one/cat/1.jpg", "one/dog/1.png", "two/cat/2.jpg", "two/dog/1.jpg"]


def test_published_dataset_is_valid(small: Path):
    result = verify(Small, str(small.parent))
    assert result.lines == [
        "one: 2 of 2 images",
        "two: 4 of 4 images",
        "6 images, as published",
        "2 classes",
        "all 6 images decode",
        content_line(small),
    ]
    assert result.is_valid


def content_line(root: Path) -> str:
    """Return the line with the checksum of all files, as `sha256sum */*/* | sha256sum` computes it."""
    files = sorted(file for file in root.glob("*/*/*") if file.is_file())
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(root)}\n" for file in files]
    checksum = hashlib.sha256("".join(lines).encode()).hexdigest()
    return f"SHA-256 of all names and images, to compare with other machines: {checksum}"


def test_checksum_changes_with_names_and_contents(small: Path):
    before = verify(Small, str(small.parent)).lines[-1]
    (small / "two/dog/2.jpg").rename(small / "two/dog/3.jpg")
    after = verify(Small, str(small.parent)).lines[-1]
    assert after == content_line(small) != before
    with open(small / "two/dog/3.jpg", "ab") as file:
        file.write(b"\0")
    assert verify(Small, str(small.parent)).lines[-1] == content_line(small) != after


@pytest.mark.parametrize("kind", ["hard link", "link", "copy"])
@pytest.mark.parametrize(("copy", "n_across"), [("one/cat/9.jpg", 0), ("one/dog/9.jpg", 1), ("two/cat/9.jpg", 1)])
def test_copies_and_links_are_reported(small: Path, kind: str, copy: str, n_across: int):
    original = small / "one/cat/1.jpg"
    if kind == "hard link":
        os.link(original, small / copy)
    elif kind == "link":
        (small / copy).symlink_to(original)
    else:
        (small / copy).write_bytes(original.read_bytes())
    (line,) = [line for line in verify(Folder, str(small)).lines if line.startswith("warning:")]
    assert line == (
        f"warning: 1 images are copies of others or links to them, {n_across} of them in another environment or class, "
        f"e.g. {copy} of one/cat/1.jpg"
    )


def test_link_that_contains_itself_is_ignored(small: Path):
    before = verify(Folder, str(small)).lines
    (small / "one/cat/loop").symlink_to(".")
    with pytest.warns(UserWarning, match=r"ignoring the link .*one/cat/loop to .*one/cat, which contains it"):
        assert verify(Folder, str(small)).lines == before


def test_folder_in_two_environments_is_invalid(small: Path):
    (small / "one/horse").symlink_to(small / "two/dog")
    result = verify(Folder, str(small))
    assert re.search(r"one/horse and .*two/dog are the same folder", result.lines[0])
    assert not result.is_valid


def test_other_known_count_is_valid(small: Path):
    (small / "two/cat/1.jpg").unlink()
    result = verify(Small, str(small.parent))
    assert "5 images, a known count; the published tables used 6" in result.lines
    assert result.is_valid


def test_incomplete_dataset_is_invalid(small: Path):
    (small / "two/cat/1.jpg").unlink()
    (small / "two/dog/1.jpg").unlink()
    result = verify(Small, str(small.parent))
    assert "two: 2 of 3 images" in result.lines
    assert "4 images, only part of the 5 published" in result.lines
    assert not result.is_valid


def test_excess_images_are_invalid_unless_left_out(small: Path):
    draw(small / "two/cat/3.jpg")
    result = verify(Small, str(small.parent))
    assert "two: 5 of 4 images, 1 too many" in result.lines
    assert "7 images, not the 6 published; does the dataset need a leave_out.txt?" in result.lines
    assert not result.is_valid
    (small / "leave_out.txt").write_text("two/cat/3.jpg\ntwo/cat/4.jpg\n")
    result = verify(Small, str(small.parent))
    assert "6 images, as published" in result.lines
    assert f"{small / 'leave_out.txt'} lists two/cat/4.jpg, which does not exist" in result.lines
    assert result.is_valid


def test_wrong_classes_are_invalid(small: Path):
    for env in ("one", "two"):
        (small / env / "cat").rename(small / env / "horse")
    result = verify(Small, str(small.parent))
    assert "'horse' is not a class of Small; choose from cat, dog" in result.lines
    assert "class 'cat' is missing" in result.lines
    assert not result.is_valid
    draw(small / "two" / "zebra" / "1.jpg")
    assert "3 classes, not 2" in verify(Small, str(small.parent)).lines


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("two", "three", "has no folder 'two', an environment of Small"),
        ("two/dog", "two/Dog", "seem to be the same class"),
    ],
)
def test_unreadable_tree_is_invalid(small: Path, old: str, new: str, line: str):
    (small / old).rename(small / new)
    result = verify(Small, str(small.parent))
    assert len(result.lines) == 1
    assert line in result.lines[0]
    assert not result.is_valid


def test_broken_images_are_listed_and_can_be_left_out(small: Path):
    broken = break_some(small)
    result = verify(Small, str(small.parent))
    assert not result.is_valid
    assert result.broken == broken
    for file in broken:
        assert any(line.startswith(f"{file} is a broken image (") for line in result.lines)
    assert "4 of 6 images broken" in result.lines

    (small / "leave_out.txt").write_text("# mine\ntwo/dog/9.jpg")
    write_leave_out(small, result.broken[:-1])
    expected = "# mine\ntwo/dog/9.jpg\none/cat/1.jpg\none/dog/1.png\ntwo/cat/2.jpg\n"
    assert (small / "leave_out.txt").read_text() == expected
    assert sorted(os.listdir(small)) == ["leave_out.txt", "one", "two"]


def test_unreadable_file_is_not_a_broken_image(small: Path):
    """The file is a link to itself; the image may be fine, so it must not be left out."""
    (small / "two/cat/1.jpg").unlink()
    (small / "two/cat/1.jpg").symlink_to("1.jpg")
    result = verify(Small, str(small.parent))
    assert any("cannot read" in line and "two/cat/1.jpg" in line for line in result.lines)
    assert result.broken == []
    assert not result.is_valid


def test_name_with_line_break_cannot_be_left_out(small: Path):
    draw(small / "two/cat/a\nb.jpg")
    with pytest.raises(UsageError, match="cannot contain these names; delete or rename"):
        write_leave_out(small, ["two/cat/a\nb.jpg"])


def test_own_tree(small: Path):
    result = verify(Folder, str(small))
    assert result.lines == [
        "one: 2 images",
        "two: 4 images",
        "6 images in 2 classes: cat, dog",
        "all 6 images decode",
        content_line(small),
    ]
    assert result.is_valid
    break_some(small)
    assert not verify(Folder, str(small)).is_valid


def test_dataset_without_published_count(tmp_path: Path):
    for env in SVIRO.ENVIRONMENT_FOLDERS:
        for name in range(7):
            draw(tmp_path / "sviro" / env / str(name) / "1.png")
    result = verify(SVIRO, str(tmp_path))
    assert "zoe: 7 images" in result.lines
    assert "70 images; no published count to compare with" in result.lines
    assert result.is_valid


def test_missing_dataset_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"PACS not found: .*scripts.download --data_dir .* --dataset PACS"):
        verify(PACS, str(tmp_path))
    with pytest.raises(UsageError, match=r"MNIST not found: .* lacks train-images-idx3-ubyte, "):
        verify(ColoredMNIST, str(tmp_path))


def test_digits_need_no_files():
    assert verify(ColoredDigits, "").lines == ["no files needed"]


class Listed(MultipleDomainDataset):
    """A user's dataset, which lists its files itself."""

    ENVIRONMENTS: ClassVar[list[str]] = ["A", "B"]

    def __init__(self, root: str, test_envs: Sequence[int], hparams: dict, trial_seed: int = 0) -> None:
        labels = np.array([0, 1], np.int8)
        self.environments = [
            FileEnvironment(Path(root, name), ["1.png", "2.png"], labels, hparams["data_augmentation"])
            for name in self.ENVIRONMENTS
        ]
        self.num_classes, self.input_shape = 2, (3, 224, 224)


class ListedSmall(Listed):
    """The same, with the hyperparameters for small images."""

    SMALL_IMAGES = True


@pytest.mark.parametrize("dataset", [Listed, ListedSmall])
def test_images_of_other_datasets_are_decoded(tmp_path: Path, dataset: type[Listed]):
    for name in ("A/1.png", "A/2.png", "B/1.png", "B/2.png"):
        draw(tmp_path / name)
    result = verify(dataset, str(tmp_path))
    assert result.is_valid
    assert "all 4 images decode" in result.lines
    (tmp_path / "B/2.png").write_bytes(b"not an image")
    (tmp_path / "B/1.png").write_bytes((tmp_path / "A/1.png").read_bytes())
    result = verify(dataset, str(tmp_path))
    assert not result.is_valid
    assert result.broken == ["B/2.png"]
    assert "1 of 4 images broken" in result.lines
    assert any("A/1.png" in line and "B/1.png" in line for line in result.lines), "a copy in another environment"


def test_labels_of_any_integer_type_become_int64(tmp_path: Path):
    """As losses require."""
    assert {environment.labels.dtype for environment in Listed(str(tmp_path), (), {"data_augmentation": True})} == {
        np.dtype(np.int64)
    }


def test_wrong_mnist_checksums_are_invalid(small_mnist_dir: str):
    result = verify(RotatedMNIST, small_mnist_dir)
    assert len(result.lines) == 4
    assert all("ubyte has MD5" in line for line in result.lines)
    assert not result.is_valid


def test_complete_mnist_is_valid(mnist_dir: str):
    result = verify(ColoredMNIST, mnist_dir)
    assert result.lines == ["70,000 images, as published"]
    assert result.is_valid


def test_real_pacs_images(pacs_dir: str):
    result = verify(PACS, pacs_dir)
    assert result.broken == []
    assert "7 classes" in result.lines
    n = sum(1 for path in (Path(pacs_dir) / "PACS").rglob("*.*") if path.suffix.lower() in (".jpg", ".png"))
    assert f"all {n:,} images decode" in result.lines
    assert result.is_valid == (n == 9_991)
