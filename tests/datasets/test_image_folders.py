import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from domainbed.datasets import image_folders
from domainbed.datasets.image_folders import is_likely_typo, merge_classes, read_tree
from domainbed.errors import UsageError
from tests.images import write_image, write_tree

ENVS = ["art", "photo"]


def read(root: Path, folders: list[str] = ENVS):
    return read_tree(root, folders, [True, False])


def test_file_order_equals_torchvision_image_folder(tmp_path: Path):
    """The published splits depend on this order."""
    root = write_tree(tmp_path, {env: {"dog": 12, "Cat": 2, "a bird": 3} for env in ENVS})
    for i, name in enumerate(["Z.JPG", "a.jpeg", "ü.bmp", "10.tiff", "9.webp", "deep/er/b.png", "dee/c.png", "x.pgm"]):
        if name.endswith(".pgm"):
            (root / "art/dog" / name).write_bytes(b"P5 1 1 255 \0")
        else:
            path = root / "art/dog" / name
            write_image(path.with_suffix(path.suffix.lower()), i)
            path.with_suffix(path.suffix.lower()).rename(path)
    for name in ["notes.txt", "Thumbs.db"]:
        (root / "art/dog" / name).write_text("not an image")
    environments, classes = read(root)
    for env, environment in zip(ENVS, environments, strict=True):
        reference = ImageFolder(str(root / env))
        assert reference.classes == classes
        assert [
            (str(root / f), y) for f, y in zip(environment.files, environment.labels, strict=True)
        ] == reference.samples
    assert [e.is_augmented for e in environments] == [True, False]


def test_hidden_files_and_folders_are_ignored(tmp_path: Path):
    root = write_tree(tmp_path, {env: {"dog": 2, "cat": 1} for env in ENVS})
    (root / "art/dog/._000.png").write_bytes(b"resource fork")
    (root / "art/.thumbs").mkdir()
    write_image(root / "art/.thumbs/1.png")
    (root / "art/empty").mkdir()
    environments, classes = read(root)
    assert classes == ["cat", "dog"]
    assert len(environments[0]) == 3


def test_environment_may_lack_a_class(tmp_path: Path):
    root = write_tree(tmp_path, {"art": {"dog": 1, "cat": 1}, "photo": {"dog": 1, "horse": 2}})
    environments, classes = read(root)
    assert classes == ["cat", "dog", "horse"]
    assert environments[0].labels.tolist() == [0, 1]
    assert environments[1].labels.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [("dogs", "dog"), ("Dog", "dog"), ("alarm_clock", "Alarm Clock"), ("girafe", "giraffe"), ("hose", "horse")],
)
def test_misspelled_class_is_an_error_that_names_both(tmp_path: Path, one: str, other: str):
    root = write_tree(tmp_path, {"art": {one: 1, "cat": 1}, "photo": {other: 1, "cat": 1}})
    with pytest.raises(UsageError) as error:
        read(root)
    for part in (repr(one), "'art'", repr(other), "'photo'", "the same name"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("one", "other"), [("dog", "cat"), ("house", "horse"), ("pen", "pencil"), ("class 10", "class 11"), ("3", "8")]
)
def test_different_classes_are_not_misspellings(one: str, other: str):
    assert merge_classes({"art": [one, "x"], "photo": [other, "x"]}) == sorted([one, other, "x"])


def test_similar_classes_of_one_environment_are_not_misspellings():
    assert merge_classes({"a": ["dog", "dogs"], "b": ["dog", "dogs"]}) == ["dog", "dogs"]
    assert merge_classes({"a": ["typical"], "b": ["atypical"], "c": ["typical", "atypical"]}) == ["atypical", "typical"]
    with pytest.raises(UsageError, match="class 'typical' of environment 'a' and class 'atypical' of 'b'"):
        merge_classes({"a": ["typical"], "b": ["atypical"], "c": ["typical", "other"]})


@given(name=st.text(min_size=1, max_size=12), other=st.text(min_size=1, max_size=12))
def test_is_likely_typo_is_symmetric(name: str, other: str):
    assert is_likely_typo(name, name)
    assert is_likely_typo(name, other) == is_likely_typo(other, name)


def test_leave_out_file(tmp_path: Path):
    root = write_tree(tmp_path, {env: {"dog": 3, "cat": 1} for env in ENVS})
    (root / "leave_out.txt").write_text(
        "# duplicates\n./art/dog/001.png\n\nphoto\\dog\\002.png\r\nart/dog/999.png\nart/cat/000.png\n"
    )
    with pytest.warns(UserWarning, match=r"1 lines of .*leave_out\.txt match no image, e\.g\. 'art/dog/999\.png'"):
        environments, classes = read(root)
    assert environments[0].files == ("art/dog/000.png", "art/dog/002.png")
    assert environments[1].files == ("photo/cat/000.png", "photo/dog/000.png", "photo/dog/001.png")
    assert classes == ["cat", "dog"], "a class is kept even if all its images are left out"
    (root / "leave_out.txt").write_text("".join(f"art/{file}\n" for file in ("dog/000.png", "dog/001.png")))
    with open(root / "leave_out.txt", "a") as file:
        file.write("art/dog/002.png\nart/cat/000.png\n")
    with pytest.raises(UsageError, match=r"leave_out\.txt excludes all images of art"):
        read(root)
    # With a byte order mark, as written by Windows.
    (root / "leave_out.txt").write_bytes(b"\xef\xbb\xbfart/dog/001.png\n")
    assert read(root)[0][0].files == ("art/cat/000.png", "art/dog/000.png", "art/dog/002.png")
    (root / "leave_out.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"cannot read .*leave_out\.txt"):
        read(root)


def test_tree_without_classes_is_an_error(tmp_path: Path):
    root = write_tree(tmp_path, {"art": {"dog": 1}})
    write_image(root / "photo/1.png")
    with pytest.raises(UsageError, match="photo has no class folders with images"):
        read(root)
    with pytest.raises(UsageError, match=r"cannot list .*sketch: No such file"):
        read(root, ["art", "sketch"])


def assert_like_image_folder(root: Path) -> None:
    environments, _ = read(root)
    for env, environment in zip(ENVS, environments, strict=True):
        assert [str(root / file) for file in environment.files] == [
            file for file, _ in ImageFolder(str(root / env)).imgs
        ]


def test_links_to_other_disks_are_followed_as_in_torchvision(tmp_path: Path):
    root = write_tree(tmp_path / "data", {env: {"dog": 3, "cat": 2} for env in ENVS})
    disk = write_tree(tmp_path / "disk", {"art": {"bird": 2, "more dogs": 2}, "photo": {"bird": 1}})
    for env in ENVS:
        (root / env / "bird").symlink_to(disk / env / "bird")
    (root / "art/dog/000").symlink_to(disk / "art/more dogs")
    write_image(root / "art/dog/x.jpg/1.png")  # a folder with the name of an image
    (root / "art/dog/broken.png").symlink_to("no such file")
    (root / "photo/cat/link.png").symlink_to(disk / "photo/bird/000.png")
    assert_like_image_folder(root)
    (tmp_path / "linked").symlink_to(root)
    assert_like_image_folder(tmp_path / "linked")


@pytest.mark.parametrize("target", [".", "..", "../..", "deep", "/"])
def test_link_to_a_folder_that_contains_it_is_ignored(tmp_path: Path, target: str):
    root = write_tree(tmp_path, {env: {"dog": 3, "cat": 2} for env in ENVS})
    write_image(root / "art/cat/deep/er/1.png")
    expected = read(root)[0][0].files
    folder = root / "art/cat/deep" if target == "deep" else root / "art/cat"
    for name in ("loop", "another loop"):
        (folder / name).symlink_to("../deep" if target == "deep" else root if target == "/" else target)
    with pytest.warns(UserWarning, match=r"ignoring the link .*art/cat/.*loop to .*, which contains it") as warned:
        environments, _ = read(root)
    assert len(warned) == 2
    assert environments[0].files == expected


def test_link_to_itself_is_ignored(tmp_path: Path):
    root = write_tree(tmp_path, {env: {"dog": 3, "cat": 2} for env in ENVS})
    expected = read(root)[0][0].files
    for folder in (root, root / "art", root / "art/cat"):
        (folder / "itself").symlink_to("itself")
    assert read(root)[0][0].files == expected


@pytest.mark.parametrize(
    ("link", "target", "others"),
    [
        ("art/dog/link", "../cat", {"art/cat", "art/dog/link"}),  # two classes
        ("photo/bird", "../art/dog", {"art/dog", "photo/bird"}),  # two environments
        ("art/cat/link", "../../photo", {"art/cat/link/dog", "photo/dog"}),
        ("art/dog/link", "a/b", {"art/dog/a/b", "art/dog/link"}),  # twice in one class
    ],
)
def test_folder_that_occurs_twice_is_an_error_that_names_both(tmp_path: Path, link: str, target: str, others: set[str]):
    root = write_tree(tmp_path, {"art": {"dog": 2, "cat": 2}, "photo": {"dog": 2}})
    write_image(root / "art/dog/a/b/1.png")
    (root / link).symlink_to(target)
    with pytest.raises(UsageError, match="are the same folder, so its images would occur twice") as error:
        read(root)
    assert {word.removeprefix(f"{root}/") for word in str(error.value).split() if word.startswith(str(root))} == others


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "socket"])
def test_special_file_is_an_error(tmp_path: Path, kind: str, monkeypatch):
    root = write_tree(tmp_path, {env: {"dog": 2, "cat": 1} for env in ENVS})
    path = root / "art/dog/x.png"
    if kind == "socket":
        monkeypatch.chdir(path.parent)  # the path of a socket must be short
        socket.socket(socket.AF_UNIX).bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path if kind == "pipe" else tmp_path / "pipe")
    if kind == "link to a pipe":
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"art/dog/x\.png is a pipe, socket or device, not an image"):
        read(root)


def test_leave_out_file_must_be_a_small_regular_file(tmp_path: Path, monkeypatch):
    root = write_tree(tmp_path, {env: {"dog": 2, "cat": 1} for env in ENVS})
    leave_out = root / "leave_out.txt"
    os.mkfifo(leave_out)
    with pytest.raises(UsageError, match=r"cannot read .*leave_out\.txt: Not a regular file"):
        read(root)
    leave_out.unlink()
    leave_out.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"cannot read .*leave_out\.txt: Not a regular file"):
        read(root)
    leave_out.unlink()
    leave_out.write_text("art/dog/000.png\n")
    monkeypatch.setattr(image_folders, "MAX_LEAVE_OUT_SIZE", 10)
    with pytest.raises(UsageError, match=r"cannot read .*leave_out\.txt: Larger than 10 bytes"):
        read(root)


def test_unreadable_subfolder_is_an_error(tmp_path: Path, monkeypatch):
    root = write_tree(tmp_path, {env: {"dog": 2, "cat": 1} for env in ENVS})
    scandir = os.scandir

    def fail(path: Path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UsageError, match=r"cannot list .*art/dog: Permission denied"):
        read(root)


def test_files_are_listed_without_a_system_call_for_each(tmp_path: Path, monkeypatch):
    root = write_tree(tmp_path, {env: {"dog": 30, "cat": 30} for env in ENVS})
    calls = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kwargs: calls.append(path) or stat(path, **kwargs))
    read(root)
    assert 0 < len(calls) <= 10, "one for each folder"
