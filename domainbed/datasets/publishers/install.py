"""From a publisher's archives to the folder that the reader expects, which is there whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from domainbed.datasets.image_folders import plain, subfolders
from domainbed.datasets.photos import PublishedDataset
from domainbed.datasets.publishers.fetch import FetchError, fetch
from domainbed.datasets.publishers.sources import SOURCES, Source
from domainbed.datasets.publishers.unpack import unpack
from domainbed.errors import UsageError
from domainbed.files import file_lock

ASIDE = ".download"


def install(dataset: type[PublishedDataset], data_dir: str) -> bool:
    """Fetch and unpack a dataset in data_dir/.download, then move it into place; tells what it does.

    An interrupted download stays in data_dir/.download, for the next call to go on. Of two processes that want the same
    dataset, the second waits for the first.

    Returns:
        False where its folder is there already, which is left as it is.

    Raises:
        FetchError: its publisher does not offer it, or not in a way that works.
        UsageError: the disk is full.
    """
    name, target = dataset.__name__, Path(data_dir) / dataset.FOLDER
    aside = Path(data_dir) / ASIDE / name
    if os.path.lexists(target) and not aside.exists():
        return False
    if not SOURCES[name].archives:
        raise FetchError("it can only be had by hand")
    with alone(aside):
        is_new = not os.path.lexists(target)
        if is_new:
            aside.mkdir(exist_ok=True)
            try:
                os.rename(build(dataset, SOURCES[name], aside), target)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise UsageError(f"the disk of {data_dir} is full; what came of {name} is kept, run again") from error
        shutil.rmtree(aside, ignore_errors=True)
    return is_new


@contextmanager
def alone(aside: Path) -> Iterator[None]:
    """Hold a dataset's folder in ASIDE, which goes when it is empty. The lock's file stays: others may wait for it."""
    aside.parent.mkdir(exist_ok=True)
    waiting = f"another process is fetching {aside.name}; waiting for it"
    with file_lock(aside.with_name(f"{aside.name}.lock"), waiting):
        try:
            yield
        finally:
            with suppress(OSError):  # something came that a second run can use
                aside.rmdir()


def build(dataset: type[PublishedDataset], source: Source, aside: Path) -> Path:
    """Fetch and unpack the archives. Returns the folder, in `aside`, that holds the environments."""
    if source.note:
        print(f"note: {source.note}", flush=True)
    for archive in source.archives:
        print(f"fetching {archive.url}", flush=True)
        sha256 = fetch(archive.url, aside / archive.name, archive.sha256)
        checked = "as known" if archive.sha256 else "none is known to compare it with"
        print(
            f"{archive.name}: {(aside / archive.name).stat().st_size:,} bytes, sha256 {sha256} ({checked})", flush=True
        )
    unpacked = aside / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    unpacked.mkdir()
    try:
        for archive in source.archives:
            try:
                unpack(aside / archive.name, unpacked)
            except FetchError as error:
                (aside / archive.name).unlink()
                raise FetchError(f"{archive.url}: {error}; it is deleted, a second run fetches it again") from error
        if source.arrange:
            source.arrange(unpacked)
        return find(dataset, unpacked)
    except BaseException:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise


def find(dataset: type[PublishedDataset], unpacked: Path) -> Path:
    """The folder that holds the environments, in whatever folders the publisher packed it."""
    wanted = {plain(name) for name in dataset.ENVIRONMENT_FOLDERS}
    folders = [unpacked]
    for folder in folders:
        names = subfolders(folder)
        if wanted <= {plain(name) for name in names}:
            return folder
        folders += [folder / name for name in names]
    raise FetchError(
        f"what came has no folder with {', '.join(dataset.ENVIRONMENT_FOLDERS)} in it, but {subfolders(unpacked)}"
    )
