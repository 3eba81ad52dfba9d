"""Trees of the form environment/class/image: their files, in the order that the published splits were drawn from."""

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
    """The environments root/<folder>/<class>/<image>, and their classes, which are numbered by the alphabet.

    Files are ordered as torchvision's ImageFolder orders them. Those that root/leave_out.txt names are left out.

    Args:
        root: the dataset's folder.
        folders: the environments' folders in it.
        augmented: for each of them, whether its images are augmented.

    Raises:
        UsageError: a folder has no classes, a class no images, or two environments' classes seem to mean the same.
    """
    leave_out = read_leave_out(root)
    trees = {folder: list_images(root, folder) for folder in folders}
    for folder, tree in trees.items():
        if not tree:
            raise UsageError(f"{root / folder} holds no folder per class with images in it")
    if idle := sorted(leave_out.difference(*(files for tree in trees.values() for files in tree.values()))):
        warnings.warn(
            f"{len(idle)} lines of {root / LEAVE_OUT_FILE} name no image, such as {idle[0]!r}; they must be paths "
            f"relative to {root}",
            stacklevel=2,
        )
    classes = common_classes({folder: list(tree) for folder, tree in trees.items()})
    number = {name: i for i, name in enumerate(classes)}
    environments = []
    for (folder, tree), is_augmented in zip(trees.items(), augmented, strict=True):
        # Sorted by class, then file.
        kept = [(file, number[name]) for name, files in tree.items() for file in files if file not in leave_out]
        if not kept:
            raise UsageError(f"{root / LEAVE_OUT_FILE} leaves no image of {folder}")
        files, labels = zip(*kept, strict=True)
        environments.append(FileEnvironment(root, files, np.array(labels, dtype=np.int64), is_augmented))
    return environments, classes


def list_images(root: Path, folder: str) -> dict[str, list[str]]:
    """The image files of each class of root/folder, as paths relative to root; classes without images are left out."""
    tree = {}
    for name in subfolders(root / folder):
        files = []
        for where, _, names in sorted(os.walk(root / folder / name, followlinks=True)):
            relative = Path(where).relative_to(root).as_posix()
            files += [f"{relative}/{file}" for file in sorted(names) if is_image(file)]
        if files:
            tree[name] = files
    return tree


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image (and not of what other systems hide beside it)."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted; hidden ones are left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise UsageError(f"can't look into {folder}: {error.strerror}") from error


def read_leave_out(root: Path) -> set[str]:
    """The files that root/leave_out.txt names: a path relative to root a line, or a comment that begins with #."""
    try:
        lines = (root / LEAVE_OUT_FILE).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {root / LEAVE_OUT_FILE}: {error}") from error
    paths = (line.strip().replace("\\", "/").removeprefix("./") for line in lines)
    return {path for path in paths if path and not path.startswith("#")}


def common_classes(of_each: Mapping[str, Sequence[str]]) -> list[str]:
    """The classes of all environments together. An environment may lack some of them.

    Args:
        of_each: environment -> its classes.

    Raises:
        UsageError: what one environment has and another has not looks like the same class, spelt otherwise.
    """
    for (one, classes), (other, others) in itertools.combinations(of_each.items(), 2):
        lacking = [name for name in others if name not in classes]
        for name in classes:
            if name not in others and (twin := next((c for c in lacking if look_alike(name, c)), None)):
                raise UsageError(
                    f"class {name!r} of environment {one!r} and class {twin!r} of {other!r} look like the same class; "
                    "give their folders the same name"
                )
    return sorted(set().union(*of_each.values()))


def look_alike(name: str, other: str) -> bool:
    """Whether two names differ as a slip would: in case, in what stands between words, or in a letter of many."""
    a, b = plain(name), plain(other)
    if re.findall(r"\d+", a) != re.findall(r"\d+", b):
        return False  # class 10 is not a misspelt class 11
    return a == b or difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() > 0.84


def plain(name: str) -> str:
    """A folder's name without case and without what stands between words."""
    return re.sub(r"[\W_]+", "", name).casefold()
