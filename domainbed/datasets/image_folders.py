"""Image trees environment/class/image, with files in the order from which the published splits were drawn."""

import difflib
import functools
import itertools
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from domainbed.datasets.base import FileEnvironment
from domainbed.errors import UsageError, printable
from domainbed.files import read_regular
from domainbed.loading.decode import EXTENSIONS

LEAVE_OUT_FILE = "leave_out.txt"
MAX_LEAVE_OUT_SIZE = 64 * 2**20  # bytes; room for a line of 100 bytes for every image of DomainNet

FileId: TypeAlias = tuple[int, int]


def read_tree(root: Path, folders: Sequence[str], augmented: Sequence[bool]) -> tuple[list[FileEnvironment], list[str]]:
    """Return the environments of root/<folder>/<class>/<image> and the classes, numbered alphabetically.

    Files have the order of torchvision's ImageFolder. Files listed in root/leave_out.txt are left out.

    Args:
        root: the dataset's folder.
        folders: the environments' folders in it.
        augmented: for each environment, whether its images are augmented.

    Raises:
        UsageError: an environment has no images, a class seems to have different names in two environments, or a folder
            occurs twice because of a link.
    """
    leave_out = read_leave_out(root)
    known: dict[FileId, str] = {}
    trees = {folder: list_images(root, folder, known) for folder in folders}
    for folder, tree in trees.items():
        if not tree:
            raise UsageError(no_images_message(root / folder))
    if unmatched := sorted(leave_out.difference(*(files for tree in trees.values() for files in tree.values()))):
        warnings.warn(
            f"{len(unmatched)} lines of {root / LEAVE_OUT_FILE} match no image, e.g. {unmatched[0]!r}; "
            f"paths must be relative to {root}",
            stacklevel=2,
        )
    classes = merge_classes({folder: list(tree) for folder, tree in trees.items()})
    label_of = {name: i for i, name in enumerate(classes)}
    environments = []
    for (folder, tree), is_augmented in zip(trees.items(), augmented, strict=True):
        # Sorted by class, then by file.
        images = [(file, label_of[name]) for name, files in tree.items() for file in files if file not in leave_out]
        if not images:
            raise UsageError(f"{root / LEAVE_OUT_FILE} excludes all images of {folder}")
        files, labels = zip(*images, strict=True)
        environments.append(FileEnvironment(root, files, np.array(labels, dtype=np.int64), is_augmented))
    return environments, classes


def list_images(root: Path, folder: str, known: dict[FileId, str]) -> dict[str, list[str]]:
    """Return the image files of each class of root/folder, relative to root; classes without images are left out.

    Args:
        root: the dataset's folder.
        folder: an environment's folder in it.
        known: the folders listed before, and their paths relative to root; those of this environment are added.

    Raises:
        UsageError: as in `walk`.
    """
    classes = subfolders(root / folder)
    ancestors = {file_id(os.stat(path)): path for path in (root, root / folder)}
    tree = {}
    for name in classes:
        files = []
        for parent, names in sorted(walk(root, f"{folder}/{name}", known, ancestors)):
            files += [f"{parent}/{file}" for file in sorted(names)]
        if files:
            tree[name] = files
    return tree


def walk(
    root: Path, folder: str, known: dict[FileId, str], ancestors: Mapping[FileId, Path]
) -> Iterator[tuple[str, list[str]]]:
    """Yield root/folder and all folders in it, relative to root, and the names of the image files in each of them.

    Links to folders are followed, except those to a folder that contains the link, which would never end.

    Args:
        root, folder, known: as in `list_images`.
        ancestors: the folders that contain this one.

    Raises:
        UsageError: a folder cannot be listed, was listed before under another path, or has an image that is not a file.
    """
    remaining = [(folder, ancestors)]
    while remaining:
        folder, ancestors = remaining.pop()
        path = root / folder
        images = []
        try:
            identity = file_id(os.stat(path))
            if identity in ancestors:
                warnings.warn(f"ignoring the link {path} to {ancestors[identity]}, which contains it", stacklevel=2)
                continue
            if (other := known.setdefault(identity, folder)) != folder:
                raise UsageError(
                    f"{root / other} and {path} are the same folder, so its images would occur twice in the dataset; "
                    "delete the link"
                )
            ancestors = {**ancestors, identity: path}
            with os.scandir(path) as entries:
                for entry in entries:  # the kind of an entry is known without a system call, unless it is a link
                    if is_folder(entry):
                        remaining.append((f"{folder}/{entry.name}", ancestors))
                    elif is_image(entry.name):
                        check_is_file(entry)
                        images.append(entry.name)
        except OSError as error:
            raise UsageError(f"cannot list {path}: {error.strerror}") from error
        yield folder, images


def file_id(status: os.stat_result) -> FileId:
    """Return what identifies a file or folder, whichever path leads to it: its device and inode."""
    return status.st_dev, status.st_ino


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link in a circle is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def check_is_file(entry: os.DirEntry[str]) -> None:
    """Raise UsageError if an entry is a pipe, socket or device, or a link to one. Reading reports broken links."""
    try:
        is_file = entry.is_file() or not os.path.exists(entry)
    except OSError:
        return
    if not is_file:
        raise UsageError(f"{entry.path} is a pipe, socket or device, not an image; delete it")


def has_images(folder: Path) -> bool:
    """Return whether a folder has a class folder with an image; stops at the first one."""
    ancestors = {file_id(os.stat(folder)): folder}
    return any(images for name in subfolders(folder) for _, images in walk(folder, name, {}, ancestors))


def no_images_message(folder: Path) -> str:
    return f"{folder} has no class folders with images"


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image; hidden files such as macOS's `._1.jpg` are not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder`, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if is_folder(e) and not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror}") from error
    for name in names:
        # Records and tables contain the names of environments.
        if printable(name) != name or "\n" in name or "\t" in name:
            raise UsageError(f"{folder / name}: the folder's name has control characters or is not UTF-8; rename it")
    return names


def read_leave_out(root: Path) -> set[str]:
    """Return the files listed in root/leave_out.txt: one path per line, relative to root; `#` starts a comment line."""
    try:
        lines = read_regular(root / LEAVE_OUT_FILE, MAX_LEAVE_OUT_SIZE).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {root / LEAVE_OUT_FILE}: {getattr(error, 'strerror', error)}") from error
    paths = (line.strip().replace("\\", "/").removeprefix("./") for line in lines)
    return {path for path in paths if path and not path.startswith("#")}


def merge_classes(classes_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the sorted union of the environments' classes. An environment need not have all of them.

    Args:
        classes_of: environment -> its classes.

    Raises:
        UsageError: a class of one environment and a class of another seem to be the same, spelled differently, and no
            environment has both.
    """
    names_of = {env: set(classes) for env, classes in classes_of.items()}
    is_typo = functools.cache(is_likely_typo)

    def are_the_same(name: str, other: str) -> bool:
        return is_typo(name, other) and not any({name, other} <= names for names in names_of.values())

    for (env, names), (other_env, other_names) in itertools.combinations(names_of.items(), 2):
        only_other = sorted(other_names - names)
        for name in sorted(names - other_names):
            if similar := next((other for other in only_other if are_the_same(name, other)), None):
                raise UsageError(
                    f"class {name!r} of environment {env!r} and class {similar!r} of {other_env!r} seem to be the same "
                    "class; give their folders the same name"
                )
    return sorted(set().union(*classes_of.values()))


def is_likely_typo(name: str, other: str) -> bool:
    """Return whether two names differ only in case, in separators, or by a few letters."""
    a, b = normalize_name(name), normalize_name(other)
    if re.findall(r"\d+", a) != re.findall(r"\d+", b):
        return False  # "class 10" is not a misspelling of "class 11"
    return a == b or difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() > 0.84


def normalize_name(name: str) -> str:
    """Return a folder's name in lower case, without separators."""
    return re.sub(r"[\W_]+", "", name).casefold()
