"""A dataset's folder beside what is known of it: environments, classes, counts, and whether every image decodes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.image_folders import LEAVE_OUT_FILE, read_leave_out, read_tree
from domainbed.datasets.mnist import COMPLETE, FILES, MNIST, missing_files, raw_folder
from domainbed.datasets.photos import Photographs, PublishedDataset
from domainbed.errors import UsageError, suggest
from domainbed.files import atomic_write
from domainbed.loading.decode import BadImageError, decode, read_file

MNIST_MD5 = dict(
    zip(
        FILES,
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        strict=True,
    )
)


@dataclass
class Verdict:
    """What was found.

    Attributes:
        lines: for people.
        sound: whether everything is as known, and every image whole.
        broken: the images that do not decode, as paths relative to the dataset's folder.
    """

    lines: list[str] = field(default_factory=list)
    sound: bool = True
    broken: list[str] = field(default_factory=list)

    def differs(self, line: str) -> None:
        self.lines.append(line)
        self.sound = False


def verify(dataset: type[MultipleDomainDataset], data_dir: str) -> Verdict:
    """Look at all that a dataset has in data_dir.

    Raises:
        UsageError: it is not there.
    """
    if issubclass(dataset, Photographs):
        return verify_photographs(dataset, data_dir)
    if issubclass(dataset, MNIST):
        return verify_mnist(data_dir)
    return Verdict(["needs no files"])


def verify_photographs(dataset: type[Photographs], data_dir: str) -> Verdict:
    verdict, root = Verdict(), dataset.dataset_folder(data_dir)
    try:
        folders = dataset.environment_folders(data_dir)
        environments, classes = read_tree(root, folders, [False] * len(folders))
    except UsageError as error:
        verdict.differs(str(error))
        return verdict
    counts = [len(environment) for environment in environments]
    if issubclass(dataset, PublishedDataset):
        compare_counts(verdict, folders, counts, dataset.IMAGES, (root / LEAVE_OUT_FILE).exists())
        compare_classes(verdict, classes, dataset)
    else:
        verdict.lines += [f"{folder}: {n:,} images" for folder, n in zip(folders, counts, strict=True)]
        verdict.lines.append(f"{sum(counts):,} images of {len(classes)} classes: {', '.join(classes)}")
    for path in sorted(read_leave_out(root)):
        if not (root / path).is_file():
            verdict.lines.append(f"{root / LEAVE_OUT_FILE} names {path}, which is not there")
    decode_all(verdict, root, [file for environment in environments for file in environment.files])
    return verdict


def compare_counts(
    verdict: Verdict, folders: Sequence[str], counts: Sequence[int], known: Sequence[Sequence[int]], leaves_out: bool
) -> None:
    """Tell the images of each environment beside those of the nearest known count."""
    total = f"{sum(counts):,} images"
    if not known:
        verdict.lines += [f"{folder}: {n:,} images" for folder, n in zip(folders, counts, strict=True)]
        verdict.lines.append(f"{total}; no published count to compare them with")
        return
    nearest = min(known, key=lambda published: np.abs(np.subtract(published, counts)).sum())
    for folder, n, published in zip(folders, counts, nearest, strict=True):
        more = f", {n - published:,} too many" if n > published else ""
        verdict.lines.append(f"{folder}: {n:,} of {published:,} images{more}")
    if tuple(counts) == tuple(nearest):
        as_known = (
            "as published" if nearest is known[0] else f"as known, but the published tables had {sum(known[0]):,}"
        )
        verdict.lines.append(f"{total}, {as_known}")
    elif all(n <= published for n, published in zip(counts, nearest, strict=True)):
        verdict.differs(f"{total}, a part only of the {sum(nearest):,} published")
    else:
        hint = "" if leaves_out else f"; is there a {LEAVE_OUT_FILE} to be had?"
        verdict.differs(f"{total}, not the {sum(nearest):,} published{hint}")


def compare_classes(verdict: Verdict, classes: Sequence[str], dataset: type[PublishedDataset]) -> None:
    if len(classes) != dataset.NUM_CLASSES:
        verdict.differs(f"{len(classes)} classes, not {dataset.NUM_CLASSES}")
    else:
        verdict.lines.append(f"{len(classes)} classes")
    if dataset.CLASSES:
        for name in sorted(set(classes).difference(dataset.CLASSES)):
            verdict.differs(f"class {name!r} is none of {dataset.__name__}'s; {suggest(name, dataset.CLASSES)}")
        for name in sorted(set(dataset.CLASSES).difference(classes)):
            verdict.differs(f"class {name!r} is missing")


def decode_all(verdict: Verdict, root: Path, files: Sequence[str]) -> None:
    """Decode every image, in a process a CPU core: with threads, it took more than twice as long."""
    results = Parallel(n_jobs=-1, return_as="generator")(delayed(trouble)(root, file) for file in files)
    unreadable = 0
    for file, found in zip(files, tqdm(results, total=len(files), unit=" images", disable=None), strict=True):
        if isinstance(found, BadImageError):
            verdict.broken.append(file)
        elif found:
            unreadable += 1
        if found:
            verdict.differs(str(found))
    n_bad = len(verdict.broken) + unreadable
    verdict.lines.append(f"{n_bad:,} of {len(files):,} images broken" if n_bad else f"all {len(files):,} images decode")


def trouble(root: Path, file: str) -> UsageError | None:
    """What is wrong with an image, if something is."""
    try:
        decode(read_file(root / file), file)
    except UsageError as error:
        return error
    return None


def verify_mnist(data_dir: str) -> Verdict:
    """Compare MNIST's four files with those that are known."""
    if missing := missing_files(data_dir):
        raise UsageError(f"MNIST is not there: {raw_folder(data_dir)} lacks {', '.join(missing)}")
    verdict = Verdict()
    for name, known in MNIST_MD5.items():
        came = hashlib.md5((raw_folder(data_dir) / name).read_bytes(), usedforsecurity=False).hexdigest()
        if came != known:
            verdict.differs(f"{raw_folder(data_dir) / name} has the md5 {came}, not {known}")
    if verdict.sound:
        verdict.lines.append(f"{COMPLETE:,} images, as published")
    return verdict


def write_leave_out(root: Path, files: Sequence[str]) -> Path:
    """Add files, as paths relative to root, to root/leave_out.txt, and return its path. What stands there stays.

    Raises:
        UsageError: a name can't be written there.
    """
    path = root / LEAVE_OUT_FILE
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    new_line = "\n" if before and not before.endswith("\n") else ""
    with atomic_write(path) as whole:
        whole.write((before + new_line + "".join(f"{file}\n" for file in files)).encode())
    if unlisted := sorted(set(files) - read_leave_out(root)):
        raise UsageError(f"{path} can't hold such names; delete or rename {', '.join(unlisted)}")
    return path
