"""Archives from elsewhere: unpacked into a folder that no member can leave, and whole."""

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from tqdm import tqdm

from domainbed.datasets.publishers.fetch import FetchError


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar.gz into a folder; another file is copied there as it is.

    Only files and folders are made, with this user's permissions: datasets need no links.

    Raises:
        FetchError: it is damaged, cut short, or has a member that leads out of the folder or is no file.
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
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FetchError(f"{archive.name} is no whole archive ({error})") from error


def unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as z:
        for member in tqdm(z.infolist(), desc=archive.name, unit=" files", disable=None):
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was packed on another system
            target = inside(folder, member.filename, archive, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if not member.is_dir():
                with z.open(member) as data:
                    write(data, target)


def unpack_tar(archive: Path, folder: Path) -> None:
    with gzip.open(archive) as unzipped:
        with tarfile.open(fileobj=unzipped, mode="r|") as t:
            for member in tqdm(t, desc=archive.name, unit=" files", disable=None):
                target = inside(folder, member.name, archive, member.isreg() or member.isdir())
                if data := t.extractfile(member):
                    with data:
                        write(data, target)
        while unzipped.read(1 << 20):  # what follows the last member: only there gzip compares its checksum
            pass


def inside(folder: Path, name: str, archive: Path, plain: bool) -> Path:
    """Where a member goes. Raises FetchError where that is not within the folder, or it is no plain file or folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise FetchError(f"{archive.name} is not to be trusted: its member {name!r} leads out of its folder")
    if not plain:
        raise FetchError(f"{archive.name} is not to be trusted: its member {name!r} is neither file nor folder")
    return folder / path


def write(data: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(data, file, 1 << 20)
