"""Installation of a dataset from its publisher's archives; its folder appears complete or not at all."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from domainbed.datasets.image_folders import normalize_name, subfolders
from domainbed.datasets.photos import PublishedDataset
from domainbed.datasets.publishers.fetch import FetchError, fetch
from domainbed.datasets.publishers.sources import SOURCES, Source
from domainbed.datasets.publishers.unpack import unpack
from domainbed.errors import UsageError
from domainbed.files import file_lock

DOWNLOAD_FOLDER = ".download"


def install(dataset: type[PublishedDataset], data_dir: str) -> bool:
    """Download and unpack a dataset in data_dir/.download, then move it into place.

    Interrupted downloads are kept there and resumed by the next call. If two processes install the same dataset, the
    second waits for the first.

    Returns:
        False if the dataset's folder exists already; it is not changed.

    Raises:
        FetchError: the dataset cannot be downloaded automatically, or the download failed.
        UsageError: the disk is full.
    """
    name, target = dataset.__name__, Path(data_dir) / dataset.FOLDER
    temporary = Path(data_dir) / DOWNLOAD_FOLDER / name
    if os.path.lexists(target) and not temporary.exists():
        return False
    if not SOURCES[name].archives:
        raise FetchError("must be downloaded manually")
    temporary.parent.mkdir(exist_ok=True)
    # The lock file is never deleted, because another process may be waiting for it.
    with file_lock(temporary.with_name(f"{name}.lock"), f"another process is downloading {name}; waiting for it"):
        is_new = not os.path.lexists(target)
        if is_new:
            temporary.mkdir(exist_ok=True)
            try:
                os.rename(fetch_and_unpack(dataset, SOURCES[name], temporary), target)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise UsageError(
                    f"the disk of {data_dir} is full; partial downloads of {name} are kept; free some space and run "
                    "again"
                ) from error
            finally:
                with suppress(OSError):  # not empty: partial downloads for the next run
                    temporary.rmdir()
        shutil.rmtree(temporary, ignore_errors=True)
    return is_new


def fetch_and_unpack(dataset: type[PublishedDataset], source: Source, temporary: Path) -> Path:
    """Download and unpack the archives. Return the folder under `temporary` that contains the environments."""
    if source.note:
        print(f"note: {source.note}", flush=True)
    for archive in source.archives:
        print(f"downloading {archive.url}", flush=True)
        path = temporary / archive.name
        sha256 = fetch(archive.url, path, archive.sha256)
        check = "verified" if archive.sha256 else "no known checksum to compare with"
        print(f"{archive.name}: {path.stat().st_size:,} bytes, SHA-256 {sha256} ({check})", flush=True)
    unpacked = temporary / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # left by a killed run
    unpacked.mkdir()
    try:
        for archive in source.archives:
            try:
                unpack(temporary / archive.name, unpacked)
            except FetchError as error:
                (temporary / archive.name).unlink()
                raise FetchError(f"{archive.url}: {error}; deleted it; run again to download it again") from error
        if source.arrange:
            source.arrange(unpacked)
        return find_environments(dataset, unpacked)
    except BaseException:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise


def find_environments(dataset: type[PublishedDataset], unpacked: Path) -> Path:
    """Return the folder that contains the environments' folders, at any depth."""
    expected = {normalize_name(name) for name in dataset.ENVIRONMENT_FOLDERS}
    folders = [unpacked]
    for folder in folders:
        names = subfolders(folder)
        if expected <= {normalize_name(name) for name in names}:
            return folder
        folders += [folder / name for name in names]
    raise FetchError(
        f"the download has no folder that contains {', '.join(dataset.ENVIRONMENT_FOLDERS)}, "
        f"only {subfolders(unpacked)}"
    )
