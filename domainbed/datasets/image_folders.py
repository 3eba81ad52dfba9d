"""Image trees environment/class/image, with files in the order from which the published splits were drawn."""

import difflib
import itertools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from domainbed.datasets.base import FileEnvironment
from domainbed.errors import UsageError
from domainbed.loading.decode import EXTENSIONS

LEAVE_OUT_FILE = "leave_out.txt"


def read_tree(root: Path, folders: Sequence[str], augmented: Sequence[bool]) -> tuple[list[FileEnvironment], list[str]]:
    """Return the environments of root/<folder>/<class>/<image> and the classes, numbered alphabetically.

    Files have the order of torchvision's ImageFolder. Files listed in root/leave_out.txt are left out.

    Args:
        root: the dataset's folder.
        folders: the environments' folders in it.
        augmented: for each environment, whether its images are augmented.

    Raises:
        UsageError: an environment has no images, or a class seems to have different names in two environments.
    """
    leave_out = read_leave_out(root)
    trees = {folder: list_images(root, folder) for folder in folders}
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


def list_images(root: Path, folder: str) -> dict[str, list[str]]:
    """Return the image files of each class of root/folder, relative to root; classes without images are left out."""
    tree = {}
    for name in subfolders(root / folder):
        files = []
        for parent, _, names in sorted(os.walk(root / folder / name, followlinks=True)):
            relative = Path(parent).relative_to(root).as_posix()
            files += [f"{relative}/{file}" for file in sorted(names) if is_image(file)]
        if files:
            tree[name] = files
    return tree


def has_images(folder: Path) -> bool:
    """Return whether a folder has a class folder with an image; stops at the first one."""
    trees = (os.walk(folder / name, followlinks=True) for name in subfolders(folder))
    return any(is_image(file) for _, _, files in itertools.chain.from_iterable(trees) for file in files)


def no_images_message(folder: Path) -> str:
    return f"{folder} has no class folders with images"


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image; hidden files such as macOS's `._1.jpg` are not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder`, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror}") from error


def read_leave_out(root: Path) -> set[str]:
    """Return the files listed in root/leave_out.txt: one path per line, relative to root; `#` starts a comment line."""
    try:
        lines = (root / LEAVE_OUT_FILE).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {root / LEAVE_OUT_FILE}: {error}") from error
    paths = (line.strip().replace("\\", "/").removeprefix("./") for line in lines)
    return {path for path in paths if path and not path.startswith("#")}


def merge_classes(classes_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the sorted union of the environments' classes. An environment need not have all of them.

    Args:
        classes_of: environment -> its classes.

    Raises:
        UsageError: a class of one environment and a class of another seem to be the same, spelled differently.
    """
    for (env, classes), (other_env, other_classes) in itertools.combinations(classes_of.items(), 2):
        only_other = [name for name in other_classes if name not in classes]
        for name in classes:
            if name in other_classes:
                continue
            if similar := next((other for other in only_other if is_likely_typo(name, other)), None):
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
