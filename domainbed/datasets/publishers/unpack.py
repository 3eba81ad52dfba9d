"""Unpacking of untrusted archives: no file is written outside the folder, and damage is detected."""

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from domainbed.datasets.publishers.fetch import FetchError
from domainbed.terminal import ProgressBar


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar.gz into a folder; copy any other file there.

    Only regular files and folders are unpacked; datasets need no links.

    Raises:
        FetchError: the archive is damaged or truncated, or has a member outside the folder or of another kind.
    """
    if archive.name.endswith(".zip"):
        with explain_damage(archive):
            unpack_zip(archive, folder)
    elif archive.name.endswith(".tar.gz"):
        with explain_damage(archive):
            unpack_tar(archive, folder)
    else:
        shutil.copyfile(archive, folder / archive.name)


@contextmanager
def explain_damage(archive: Path) -> Iterator[None]:
    """Turn the errors that damaged archives raise into FetchError."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FetchError(f"{archive.name} is damaged or incomplete ({error})") from error


def unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as z:
        for member in ProgressBar(z.infolist(), archive.name, unit=" files"):
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if packed on a system without Unix file types
            path = check_member(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if not member.is_dir():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with z.open(member) as data, open(target, "wb") as file:
                    shutil.copyfileobj(data, file, 1 << 20)


def unpack_tar(archive: Path, folder: Path) -> None:
    with gzip.open(archive) as unzipped:
        with tarfile.open(fileobj=unzipped, mode="r|") as tar:
            for member in ProgressBar(tar, archive.name, unit=" files"):
                check_member(archive, member.name, member.isreg() or member.isdir())
                tar.extract(member, folder, filter="data")
        while unzipped.read(1 << 20):  # gzip verifies its checksum only at the end of the stream
            pass


def check_member(archive: Path, name: str, is_plain: bool) -> PurePosixPath:
    """Return a member's relative path. Raises FetchError if it is outside the destination or not a plain file."""
    path = PurePosixPath(name.replace("\\", "/"))  # some Windows tools write backslashes
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise FetchError(f"{archive.name} is not safe to unpack: {name!r} is outside the destination")
    if not is_plain:
        raise FetchError(f"{archive.name} is not safe to unpack: {name!r} is not a regular file or folder")
    return path
