"""Verification of a dataset on disk: environments, classes, number of images, copies, and whether all images decode."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed

from domainbed.datasets.base import FileEnvironment, MultipleDomainDataset
from domainbed.datasets.image_folders import LEAVE_OUT_FILE, read_leave_out
from domainbed.datasets.mnist import MNIST, NUM_IMAGES, missing_files, raw_folder
from domainbed.datasets.photos import PhotoDataset, PublishedDataset
from domainbed.datasets.table import Table
from domainbed.errors import UsageError, printable, suggest
from domainbed.files import atomic_write
from domainbed.hparams import SHARED
from domainbed.loading.decode import BadImageError, decode, read_file
from domainbed.terminal import ProgressBar

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass
class Verification:
    """The result of a verification.

    Attributes:
        lines: messages for the user.
        is_valid: whether everything is as expected and every image decodes.
        broken: the images that do not decode, as paths relative to the dataset's folder.
    """

    lines: list[str] = field(default_factory=list)
    is_valid: bool = True
    broken: list[str] = field(default_factory=list)

    def add_problem(self, line: str) -> None:
        self.lines.append(line)
        self.is_valid = False


def verify(dataset: type[MultipleDomainDataset], data_dir: str) -> Verification:
    """Verify all files of a dataset in data_dir.

    Raises:
        UsageError: the dataset does not exist there.
    """
    if issubclass(dataset, PhotoDataset):
        return verify_photos(dataset, data_dir)
    if issubclass(dataset, MNIST):
        return verify_mnist(data_dir)
    if issubclass(dataset, Table):
        return verify_table(dataset, data_dir)
    return verify_files(dataset, data_dir)


def verify_photos(dataset: type[PhotoDataset], data_dir: str) -> Verification:
    """Verify a photo dataset: compare it with known counts and classes, and decode every image."""
    result, root = Verification(), dataset.dataset_folder(data_dir)
    try:
        titles = dataset.environment_titles(data_dir)
        environments, classes = dataset.read_environments(data_dir, [False] * len(titles))
    except UsageError as error:
        result.add_problem(str(error))
        return result
    counts = [len(environment) for environment in environments]
    if issubclass(dataset, PublishedDataset):
        compare_counts(result, titles, counts, dataset.IMAGES, (root / LEAVE_OUT_FILE).exists())
        compare_classes(result, classes, dataset)
    else:
        result.lines += [f"{folder}: {n:,} images" for folder, n in zip(titles, counts, strict=True)]
        result.lines.append(f"{sum(counts):,} images in {len(classes)} classes: {', '.join(classes)}")
    for path in sorted(read_leave_out(root)):
        if not (root / path).is_file():
            result.lines.append(f"{root / LEAVE_OUT_FILE} lists {path}, which does not exist")
    files = [file for environment in environments for file in environment.files]
    groups = [(env, label) for env, environment in enumerate(environments) for label in environment.labels.tolist()]
    decode_all(result, root, files, groups)
    return result


def verify_table(dataset: type[Table], data_dir: str) -> Verification:
    """Verify a table: check its rows, and decode every image."""
    result = Verification()
    try:
        dataset.prepare(data_dir)
        rows = dataset.rows(data_dir)
    except UsageError as error:
        result.add_problem(str(error))
        return result
    result.lines += dataset.describe(data_dir)
    groups = list(zip(rows.environments.tolist(), rows.labels.tolist(), strict=True))
    decode_all(result, rows.folder, rows.paths.to_pylist(), groups)
    return result


def verify_files(dataset: type[MultipleDomainDataset], data_dir: str) -> Verification:
    """Verify a dataset that lists its files itself, such as a user's: decode every image."""
    result = Verification()
    try:
        dataset.prepare(data_dir)
        made = dataset(data_dir, (), {name: hparam.default for name, hparam in SHARED.items()})
    except UsageError as error:
        result.add_problem(str(error))
        return result
    environments = [(i, e) for i, e in enumerate(made) if isinstance(e, FileEnvironment)]
    if not environments:
        return Verification(["no files needed"])
    folders = [os.path.abspath(environment.folder) for _, environment in environments]
    root = os.path.commonpath(folders)
    files, groups = [], []
    for (i, environment), folder in zip(environments, folders, strict=True):
        files += [os.path.normpath(os.path.join(os.path.relpath(folder, root), file)) for file in environment.files]
        groups += [(i, label) for label in environment.labels.tolist()]
    decode_all(result, Path(root), files, groups)
    return result


def compare_counts(
    result: Verification,
    folders: Sequence[str],
    counts: Sequence[int],
    known: Sequence[Sequence[int]],
    has_leave_out: bool,
) -> None:
    """Compare the number of images per environment with the closest of the known ones; the first was published."""
    total = f"{sum(counts):,} images"
    if not known:
        result.lines += [f"{folder}: {n:,} images" for folder, n in zip(folders, counts, strict=True)]
        result.lines.append(f"{total}; no published count to compare with")
        return
    closest = min(known, key=lambda candidate: np.abs(np.subtract(candidate, counts)).sum())
    for folder, n, expected in zip(folders, counts, closest, strict=True):
        excess = f", {n - expected:,} too many" if n > expected else ""
        result.lines.append(f"{folder}: {n:,} of {expected:,} images{excess}")
    if tuple(counts) == tuple(closest):
        is_published = closest is known[0]
        origin = "as published" if is_published else f"a known count; the published tables used {sum(known[0]):,}"
        result.lines.append(f"{total}, {origin}")
    elif all(n <= expected for n, expected in zip(counts, closest, strict=True)):
        result.add_problem(f"{total}, only part of the {sum(closest):,} published")
    else:
        hint = "" if has_leave_out else f"; does the dataset need a {LEAVE_OUT_FILE}?"
        result.add_problem(f"{total}, not the {sum(closest):,} published{hint}")


def compare_classes(result: Verification, classes: Sequence[str], dataset: type[PublishedDataset]) -> None:
    """Compare the classes with the published ones."""
    if len(classes) != dataset.NUM_CLASSES:
        result.add_problem(f"{len(classes)} classes, not {dataset.NUM_CLASSES}")
    else:
        result.lines.append(f"{len(classes)} classes")
    if dataset.CLASSES:
        for name in sorted(set(classes).difference(dataset.CLASSES)):
            result.add_problem(f"{name!r} is not a class of {dataset.__name__}; {suggest(name, dataset.CLASSES)}")
        for name in sorted(set(dataset.CLASSES).difference(classes)):
            result.add_problem(f"class {name!r} is missing")


class ImageCheck(NamedTuple):
    """The result of reading an image: the SHA-256 of its file, b"" if it cannot be read, and the error, if any."""

    sha256: bytes
    error: UsageError | None


def decode_all(result: Verification, root: Path, files: Sequence[str], groups: Sequence[tuple[int, int]]) -> None:
    """Decode every image, with one process per CPU core (threads took more than twice as long).

    Args:
        result: where to add problems and a summary.
        root: the folder that `files` are relative to.
        files: the images.
        groups: the environment and the label of each image.
    """
    checks = Parallel(n_jobs=-1, return_as="generator")(delayed(check_image)(root, file) for file in files)
    n_bad, checksums = 0, []
    for file, check in zip(files, ProgressBar(checks, "verifying", len(files), unit=" images"), strict=True):
        checksums.append(check.sha256)
        if check.error is not None:
            n_bad += 1
            result.add_problem(str(check.error))
        if isinstance(check.error, BadImageError):
            result.broken.append(file)
    result.lines.append(f"{n_bad:,} of {len(files):,} images broken" if n_bad else f"all {len(files):,} images decode")
    report_copies(result, files, groups, checksums)
    if all(checksums):
        content = hashlib.sha256()
        for file, checksum in zip(files, checksums, strict=True):
            content.update(f"{checksum.hex()}  {file}\n".encode(errors="surrogateescape"))
        result.lines.append(f"SHA-256 of all names and images, to compare with other machines: {content.hexdigest()}")


def check_image(root: Path, file: str) -> ImageCheck:
    checksum = b""
    try:
        data = read_file(root / file)
        checksum = hashlib.sha256(data).digest()
        decode(data, file)
    except UsageError as error:
        return ImageCheck(checksum, error)
    return ImageCheck(checksum, None)


def report_copies(
    result: Verification, files: Sequence[str], groups: Sequence[tuple[int, int]], checksums: Sequence[bytes]
) -> None:
    """Report images that occur more than once, as copies or links: they may be in both splits or have two labels."""
    first: dict[bytes, int] = {}
    pairs = [
        (first[checksum], i) for i, checksum in enumerate(checksums) if checksum and first.setdefault(checksum, i) != i
    ]
    across = [(original, copy) for original, copy in pairs if groups[original] != groups[copy]]
    if pairs:
        original, copy = (files[i] for i in (across or pairs)[0])
        result.lines.append(
            f"warning: {len(pairs):,} images are copies of others or links to them, {len(across):,} of them in another "
            f"environment or class, e.g. {copy} of {original}"
        )


def verify_mnist(data_dir: str) -> Verification:
    """Compare the checksums of MNIST's four files with the known ones."""
    if missing := missing_files(data_dir):
        raise UsageError(f"MNIST not found: {raw_folder(data_dir)} lacks {', '.join(missing)}")
    result = Verification()
    for name, expected in MNIST_MD5.items():
        path = raw_folder(data_dir) / name
        actual = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if actual != expected:
            result.add_problem(f"{path} has MD5 {actual}, expected {expected}")
    if result.is_valid:
        result.lines.append(f"{NUM_IMAGES:,} images, as published")
    return result


def write_leave_out(root: Path, files: Sequence[str]) -> Path:
    """Append files, as paths relative to root, to root/leave_out.txt and return its path.

    Raises:
        UsageError: the format cannot represent a file's name.
    """
    path = root / LEAVE_OUT_FILE
    if unlisted := [name for name in files if printable(name) != name]:
        raise UsageError(f"{path} cannot contain these names; delete or rename {', '.join(unlisted)}")
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    new_line = "\n" if old and not old.endswith("\n") else ""
    with atomic_write(path) as file:
        file.write((old + new_line + "".join(f"{name}\n" for name in files)).encode())
    if unlisted := sorted(set(files) - read_leave_out(root)):
        raise UsageError(f"{path} cannot contain these names; delete or rename {', '.join(unlisted)}")
    return path
