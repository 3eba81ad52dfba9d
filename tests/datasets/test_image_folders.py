from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from domainbed.datasets.image_folders import common_classes, look_alike, read_tree
from domainbed.errors import UsageError
from tests.images import write_image, write_tree

ENVS = ["art", "photo"]


def read(root: Path, folders: list[str] = ENVS):
    return read_tree(root, folders, [True, False])


def test_files_come_in_the_order_of_torchvisions_image_folder(tmp_path: Path):
    """For the published splits are drawn from it."""
    root = write_tree(tmp_path, {env: {"dog": 12, "Cat": 2, "a bird": 3} for env in ENVS})
    for i, name in enumerate(["Z.JPG", "a.jpeg", "ü.bmp", "10.tiff", "9.webp", "deep/er/b.png", "dee/c.png", "x.pgm"]):
        if name.endswith(".pgm"):
            (root / "art/dog" / name).write_bytes(b"P5 1 1 255 \0")
        else:
            path = root / "art/dog" / name
            write_image(path.with_suffix(path.suffix.lower()), i)
            path.with_suffix(path.suffix.lower()).rename(path)
    for name in ["notes.txt", "Thumbs.db"]:
        (root / "art/dog" / name).write_text("no image")
    environments, classes = read(root)
    for env, environment in zip(ENVS, environments, strict=True):
        theirs = ImageFolder(str(root / env))
        assert theirs.classes == classes
        assert [
            (str(root / f), y) for f, y in zip(environment.files, environment.labels, strict=True)
        ] == theirs.samples
    assert [e.augmented for e in environments] == [True, False]


def test_what_other_systems_hide_is_no_image(tmp_path: Path):
    root = write_tree(tmp_path, {env: {"dog": 2, "cat": 1} for env in ENVS})
    (root / "art/dog/._000.png").write_bytes(b"resource fork")
    (root / "art/.thumbs").mkdir()
    write_image(root / "art/.thumbs/1.png")
    (root / "art/empty").mkdir()
    environments, classes = read(root)
    assert classes == ["cat", "dog"]
    assert len(environments[0]) == 3


def test_an_environment_may_lack_a_class(tmp_path: Path):
    root = write_tree(tmp_path, {"art": {"dog": 1, "cat": 1}, "photo": {"dog": 1, "horse": 2}})
    environments, classes = read(root)
    assert classes == ["cat", "dog", "horse"]
    assert environments[0].labels.tolist() == [0, 1]
    assert environments[1].labels.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [("dogs", "dog"), ("Dog", "dog"), ("alarm_clock", "Alarm Clock"), ("girafe", "giraffe"), ("hose", "horse")],
)
def test_a_misspelt_class_is_named_with_its_twin(tmp_path: Path, one: str, other: str):
    root = write_tree(tmp_path, {"art": {one: 1, "cat": 1}, "photo": {other: 1, "cat": 1}})
    with pytest.raises(UsageError) as error:
        read(root)
    for part in (repr(one), "'art'", repr(other), "'photo'", "the same name"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("one", "other"), [("dog", "cat"), ("house", "horse"), ("pen", "pencil"), ("class 10", "class 11"), ("3", "8")]
)
def test_different_classes_are_no_misspellings(one: str, other: str):
    assert common_classes({"art": [one, "x"], "photo": [other, "x"]}) == sorted([one, other, "x"])


def test_similar_classes_that_all_have_are_none_either():
    assert common_classes({"a": ["dog", "dogs"], "b": ["dog", "dogs"]}) == ["dog", "dogs"]


@given(name=st.text(min_size=1, max_size=12), other=st.text(min_size=1, max_size=12))
def test_looking_alike_is_mutual(name: str, other: str):
    assert look_alike(name, name)
    assert look_alike(name, other) == look_alike(other, name)


def test_files_to_leave_out(tmp_path: Path):
    root = write_tree(tmp_path, {env: {"dog": 3, "cat": 1} for env in ENVS})
    (root / "leave_out.txt").write_text(
        "# duplicates\n./art/dog/001.png\n\nphoto\\dog\\002.png\r\nart/dog/999.png\nart/cat/000.png\n"
    )
    with pytest.warns(UserWarning, match=r"1 lines of .*leave_out\.txt name no image, such as 'art/dog/999\.png'"):
        environments, classes = read(root)
    assert environments[0].files == ("art/dog/000.png", "art/dog/002.png")
    assert environments[1].files == ("photo/cat/000.png", "photo/dog/000.png", "photo/dog/001.png")
    assert classes == ["cat", "dog"], "a class stays, also where all its images are left out"
    (root / "leave_out.txt").write_text("".join(f"art/{file}\n" for file in ("dog/000.png", "dog/001.png")))
    with open(root / "leave_out.txt", "a") as file:
        file.write("art/dog/002.png\nart/cat/000.png\n")
    with pytest.raises(UsageError, match=r"leave_out\.txt leaves no image of art"):
        read(root)
    (root / "leave_out.txt").write_bytes(b"\xef\xbb\xbfart/dog/001.png\n")  # as Windows marks UTF-8
    assert read(root)[0][0].files == ("art/cat/000.png", "art/dog/000.png", "art/dog/002.png")
    (root / "leave_out.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"can't read .*leave_out\.txt"):
        read(root)


def test_a_tree_without_classes(tmp_path: Path):
    root = write_tree(tmp_path, {"art": {"dog": 1}})
    write_image(root / "photo/1.png")
    with pytest.raises(UsageError, match="photo holds no folder per class with images in it"):
        read(root)
    with pytest.raises(UsageError, match=r"can't look into .*sketch: No such file"):
        read(root, ["art", "sketch"])
