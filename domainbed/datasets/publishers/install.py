"""Installation of a dataset from its publisher's archives; its folder appears complete or not at all."""

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from domainbed.datasets.image_folders import normalize_name, subfolders
from domainbed.datasets.photos import PublishedDataset
from domainbed.datasets.publishers.checksums import CHECKSUMS_FILE, read_checksums, record_checksums
from domainbed.datasets.publishers.fetch import ChecksumError, FetchError, fetch
from domainbed.datasets.publishers.sources import SOURCES, Archive, Source
from domainbed.datasets.publishers.unpack import unpack
from domainbed.errors import UsageError
from domainbed.files import file_lock

DOWNLOAD_FOLDER = ".download"
UNPACKED_FOLDER = "unpacked"  # in the folder of a download


def install(dataset: type[PublishedDataset], data_dir: str) -> bool:
    """Download and unpack a dataset in data_dir/.download, then move it into place.

    Interrupted downloads are kept there and resumed by the next call. If two processes install the same dataset, the
    second waits for the first. The archives' checksums are recorded in data_dir/checksums.json.

    Returns:
        False if the dataset's folder exists already; it is not changed.

    Raises:
        FetchError: the dataset cannot be downloaded automatically, or the download failed.
        UsageError: the disk is full.
    """
    name, target = dataset.source_name(), Path(data_dir) / dataset.FOLDER
    temporary = Path(data_dir) / DOWNLOAD_FOLDER / name
    if os.path.lexists(target) and not temporary.exists():
        return False
    with suppress(UsageError):  # it does not exist
        if dataset.dataset_folder(data_dir) != target:
            return False  # data_dir is the dataset's folder itself
    if name not in SOURCES:
        raise UsageError(f"no source of {name} is known; move its images to {target}")
    if not SOURCES[name].archives:
        raise FetchError("must be downloaded manually")
    temporary.parent.mkdir(exist_ok=True)
    # The lock file is never deleted, because another process may be waiting for it.
    with file_lock(temporary.with_name(f"{name}.lock"), f"another process is downloading {name}; waiting for it"):
        is_new = not os.path.lexists(target)
        if is_new:
            temporary.mkdir(exist_ok=True)
            shutil.rmtree(temporary / UNPACKED_FOLDER, ignore_errors=True)  # left by a killed run
            try:
                check_space(SOURCES[name], temporary)
                checksums = fetch_all(SOURCES[name], temporary, read_checksums(Path(data_dir)))
                os.rename(unpack_all(dataset, SOURCES[name], temporary), target)
                # Only now, because an archive that cannot be unpacked should not be expected again.
                record_checksums(Path(data_dir), checksums, temporary.with_name(f"{CHECKSUMS_FILE}.lock"))
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


def check_space(source: Source, temporary: Path) -> None:
    """Raise UsageError if the disk has no room for the archives of known size and for their contents."""
    n_downloaded = sum(
        path.stat().st_size
        for archive in source.archives
        if archive.size
        for path in (temporary / archive.name, temporary / f"{archive.name}.part")
        if path.exists()
    )
    needed = 2 * sum(archive.size for archive in source.archives) - n_downloaded
    if needed > (free := shutil.disk_usage(temporary).free):
        raise UsageError(
            f"{temporary.name} needs {needed:,} more bytes in {temporary.parent.parent} to be downloaded and unpacked, "
            f"which has {free:,} free"
        )


def fetch_all(source: Source, temporary: Path, recorded: Mapping[str, str]) -> dict[str, str]:
    """Download the archives to `temporary`. Return the SHA-256 of each of them, by dataset/archive.

    Args:
        source: the archives.
        temporary: the folder to download to, which has the dataset's name.
        recorded: the SHA-256 of archives that were downloaded before.
    """
    if source.note:
        print(f"note: {source.note}", flush=True)
    checksums = {}
    for archive in source.archives:
        key = f"{temporary.name}/{archive.name}"
        expected = archive.sha256 or recorded.get(key)
        try:
            checksums[key] = fetch_archive(archive, temporary / archive.name, expected)
        except ChecksumError as error:
            if archive.sha256 or not expected:
                raise
            raise ChecksumError(
                f"{error}; if the publisher has replaced the file, delete {key!r} from {CHECKSUMS_FILE}"
            ) from error
        if archive.sha256 or archive.md5:
            check = "as published"
        else:
            check = f"as recorded in {CHECKSUMS_FILE}" if expected else "no known checksum to compare with"
        size = (temporary / archive.name).stat().st_size
        print(f"{archive.name}: {size:,} bytes, SHA-256 {checksums[key]} ({check})", flush=True)
    return checksums


def fetch_archive(archive: Archive, path: Path, sha256: str | None) -> str:
    """Download an archive and return its SHA-256. Use its second address if the first one fails."""
    print(f"downloading {archive.url}", flush=True)
    try:
        return fetch(archive.url, path, sha256, archive.md5)
    except ChecksumError:
        raise
    except FetchError as error:
        if not archive.fallback_url:
            raise
        print(f"{error}\ndownloading {archive.fallback_url} (its checksum is known)", flush=True)
        return fetch(archive.fallback_url, path, sha256, archive.md5)


def unpack_all(dataset: type[PublishedDataset], source: Source, temporary: Path) -> Path:
    """Unpack the archives. Return the folder under `temporary` that contains the dataset."""
    unpacked = temporary / UNPACKED_FOLDER
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
        return find_dataset(dataset, unpacked)
    except BaseException:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise


def find_dataset(dataset: type[PublishedDataset], unpacked: Path) -> Path:
    """Return the folder that contains the dataset's folders and files, at any depth."""
    expected = {normalize_name(name) for name in dataset.CONTENTS}
    folders = [unpacked]
    for folder in folders:
        names = subfolders(folder)
        if expected <= {normalize_name(name) for name in os.listdir(folder)}:
            return folder
        folders += [folder / name for name in names]
    raise FetchError(
        f"the download has no folder that contains {', '.join(dataset.CONTENTS)}, only {subfolders(unpacked)}"
    )
