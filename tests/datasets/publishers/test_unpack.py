"""Tests of unpacking complete, damaged and malicious archives."""

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from domainbed.datasets.publishers.fetch import FetchError
from domainbed.datasets.publishers.unpack import unpack

MEMBERS = {"top/a/1.jpg": os.urandom(50_000), "top/b/2.jpg": os.urandom(50_000), "top/empty.txt": b""}


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], **attributes) -> Path:
    """Write a .tar.gz; `attributes` are set on its last member."""
    with tarfile.open(path, "w:gz") as t:
        for i, (name, data) in enumerate(members.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if i == len(members) - 1:
                for attribute, value in attributes.items():
                    setattr(member, attribute, value)
            t.addfile(member, io.BytesIO(data))
    return path


def make(path: Path, members: dict[str, bytes]) -> Path:
    return make_zip(path, members) if path.suffix == ".zip" else make_tar(path, members)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder two levels deep, so that tmp_path shows files written outside of it."""
    folder = tmp_path / "aside" / "unpacked"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_unpack(tmp_path: Path, folder: Path, name: str):
    unpack(make(tmp_path / name, MEMBERS), folder)
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files == MEMBERS


def test_other_files_are_copied(tmp_path: Path, folder: Path):
    (tmp_path / "leave_out.txt").write_text("a\n")
    unpack(tmp_path / "leave_out.txt", folder)
    assert (folder / "leave_out.txt").read_text() == "a\n"


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
@pytest.mark.parametrize("length", [0, 10, 0.5, -9, -1])
def test_truncated_archive(tmp_path: Path, folder: Path, name: str, length: float):
    archive = make(tmp_path / name, MEMBERS)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(length * len(data)) if length == 0.5 else int(length)])
    with pytest.raises(FetchError, match=f"{name} is damaged or incomplete"):
        unpack(archive, folder)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_corrupt_archive(tmp_path: Path, folder: Path, name: str):
    archive = make(tmp_path / name, MEMBERS)
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 1
    archive.write_bytes(data)
    with pytest.raises(FetchError, match=f"{name} is damaged or incomplete"):
        unpack(archive, folder)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_web_page_named_like_an_archive(tmp_path: Path, folder: Path, name: str):
    (tmp_path / name).write_text("<html>Sign in</html>")
    with pytest.raises(FetchError, match=f"{name} is damaged or incomplete"):
        unpack(tmp_path / name, folder)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
@pytest.mark.parametrize("path", ["../evil", "top/../../../evil", "/{outside}/evil", "..\\..\\evil", "C:\\evil"])
def test_paths_outside_the_folder_are_refused(tmp_path: Path, folder: Path, name: str, path: str):
    path = path.format(outside=str(tmp_path).strip("/"))
    archive = make(tmp_path / name, {"top/fine": b"x", path: b"x"})
    with pytest.raises(FetchError, match=f"{name} is not safe to unpack: .* is outside the destination"):
        unpack(archive, folder)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tar_are_refused(tmp_path: Path, folder: Path, kind: bytes):
    archive = make_tar(tmp_path / "x.tar.gz", {"top/link": b""}, type=kind, linkname=str(tmp_path))
    with pytest.raises(FetchError, match="'top/link' is not a regular file or folder"):
        unpack(archive, folder)
    assert not os.path.lexists(folder / "top" / "link")


def test_link_in_zip_is_refused(tmp_path: Path, folder: Path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.writestr(link, str(tmp_path))
        z.writestr("link/evil", b"x")
    with pytest.raises(FetchError, match="'link' is not a regular file or folder"):
        unpack(tmp_path / "x.zip", folder)
    assert not (tmp_path / "evil").exists()
