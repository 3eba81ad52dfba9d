"""Tests of dataset installation from archives on a local server."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from domainbed.datasets import get_dataset_class
from domainbed.datasets.photos import PACS, SVIRO, DomainNet, TerraIncognita
from domainbed.datasets.publishers import fetch, install
from domainbed.datasets.publishers.checksums import CHECKSUMS_FILE, record_checksums
from domainbed.datasets.publishers.fetch import ChecksumError, FetchError
from domainbed.datasets.publishers.sources import SOURCES, Archive, Source, manual_instructions
from domainbed.errors import UsageError
from tests.datasets.publishers.test_unpack import make_tar, make_zip

IMAGES = {f"kfold/{folder}/dog/{i}.jpg": os.urandom(1000) for folder in PACS.ENVIRONMENT_FOLDERS for i in range(3)}
MACOS_FILES = {f"__MACOSX/kfold/{folder}/._dog": b"x" for folder in PACS.ENVIRONMENT_FOLDERS}


@pytest.fixture
def offer(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that offers archives (name -> members) as those of a dataset."""

    def offer(dataset: str, arrange=None, **archives: dict[str, bytes]) -> None:
        offered = []
        for name, members in archives.items():
            name = name.replace("__", ".")
            path = tmp_path / name
            if name == "leave_out.txt":
                path.write_bytes(members["leave_out.txt"])
            else:
                (make_zip if name.endswith(".zip") else make_tar)(path, members)
            server.offer(name, path.read_bytes())
            offered.append(Archive(name, server.url(name)))
        monkeypatch.setitem(SOURCES, dataset, Source("its page", tuple(offered), arrange, "some note"))

    return offer


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files in a folder, except for locks and checksums."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != CHECKSUMS_FILE)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def entries(data_dir: Path) -> list[str]:
    """Return the names in data_dir and in its download folder, except for locks and checksums."""
    temporary = data_dir / ".download"
    partial = [p.name for p in temporary.iterdir() if p.suffix != ".lock"] if temporary.exists() else []
    return sorted([p.name for p in data_dir.iterdir() if p not in (temporary, data_dir / CHECKSUMS_FILE)] + partial)


@pytest.mark.parametrize("archive", ["PACS__zip", "PACS__tar__gz"])
def test_install(offer, data_dir: Path, archive: str, capsys: pytest.CaptureFixture):
    offer("PACS", **{archive: MACOS_FILES | IMAGES})
    assert install.install(PACS, str(data_dir))
    assert files(data_dir) == {name.replace("kfold", "PACS"): data for name, data in IMAGES.items()}
    assert entries(data_dir) == ["PACS"]
    printed = capsys.readouterr().out
    assert "some note" in printed
    assert "SHA-256" in printed
    assert "(no known checksum to compare with)" in printed


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def delete(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "PACS")


def test_later_downloads_are_compared_with_the_first(server, offer, data_dir: Path, tmp_path: Path, capsys):
    offer("PACS", PACS__zip=IMAGES)
    install.install(PACS, str(data_dir))
    good = server.files["/PACS.zip"].data
    assert json.loads((data_dir / CHECKSUMS_FILE).read_text()) == {"PACS/PACS.zip": sha256(good)}
    delete(data_dir)
    install.install(PACS, str(data_dir))
    assert "(as recorded in checksums.json)" in capsys.readouterr().out

    # Another machine, with a copy of the file.
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(data_dir / CHECKSUMS_FILE, other)
    offer("PACS", PACS__zip=dict.fromkeys(IMAGES, b"something else"))
    with pytest.raises(ChecksumError) as error:
        install.install(PACS, str(other))
    bad = server.files["/PACS.zip"].data
    assert f"PACS.zip has SHA-256 {sha256(bad)}, expected {sha256(good)}; deleted the download" in str(error.value)
    assert "if the publisher has replaced the file, delete 'PACS/PACS.zip' from checksums.json" in str(error.value)
    assert entries(other) == []
    (other / CHECKSUMS_FILE).unlink()
    assert install.install(PACS, str(other))
    assert json.loads((other / CHECKSUMS_FILE).read_text()) == {"PACS/PACS.zip": sha256(bad)}


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_published_checksum(server, offer, data_dir: Path, monkeypatch, kind: str, capsys):
    offer("PACS", PACS__zip=IMAGES)
    data = server.files["/PACS.zip"].data

    def publish(checksum: str) -> None:
        archive = Archive("PACS.zip", server.url("PACS.zip"), **{kind: checksum})
        monkeypatch.setitem(SOURCES, "PACS", Source("its page", (archive,)))

    publish("0" * (64 if kind == "sha256" else 32))
    with pytest.raises(ChecksumError, match=r"PACS.zip has (SHA-256|MD5) \w+, expected 0+; deleted the download$"):
        install.install(PACS, str(data_dir))
    assert entries(data_dir) == []
    assert not (data_dir / CHECKSUMS_FILE).exists()
    publish(getattr(hashlib, kind)(data).hexdigest())
    assert install.install(PACS, str(data_dir))
    assert "(as published)" in capsys.readouterr().out


def test_second_address_is_used_if_the_first_one_fails(server, offer, data_dir: Path, monkeypatch, capsys):
    offer("PACS", PACS__zip=IMAGES)
    checksum = sha256(server.files["/PACS.zip"].data)
    archive = Archive("PACS.zip", server.url("dead"), checksum, fallback_url=server.url("PACS.zip"))
    monkeypatch.setitem(SOURCES, "PACS", Source("its page", (archive,)))
    assert install.install(PACS, str(data_dir))
    assert f"/dead: HTTP 404 Not Found\ndownloading {server.url('PACS.zip')} (its checksum" in capsys.readouterr().out


def test_second_address_is_not_used_if_the_checksum_is_wrong(server, offer, data_dir: Path, monkeypatch):
    offer("PACS", PACS__zip=IMAGES)
    server.offer("other.zip", b"x")
    archive = Archive("PACS.zip", server.url("other.zip"), "0" * 64, fallback_url=server.url("PACS.zip"))
    monkeypatch.setitem(SOURCES, "PACS", Source("its page", (archive,)))
    with pytest.raises(ChecksumError, match=r"other\.zip has SHA-256"):
        install.install(PACS, str(data_dir))
    assert server.files["/PACS.zip"].requests == []


@pytest.mark.parametrize("content", ["[1]", '{"PACS/PACS.zip": 1}', "{", "[" * 100_000])
def test_invalid_checksum_file_is_an_error(offer, server, data_dir: Path, content: str):
    offer("PACS", PACS__zip=IMAGES)
    (data_dir / CHECKSUMS_FILE).write_text(content)
    with pytest.raises(UsageError, match=r"checksums\.json.*; repair or delete it$"):
        install.install(PACS, str(data_dir))
    assert server.files["/PACS.zip"].requests == []


def test_checksums_of_concurrent_downloads_are_all_recorded(data_dir: Path):
    lock = data_dir / "lock"
    threads = [
        threading.Thread(target=record_checksums, args=(data_dir, {f"PACS/{i}.zip": "0"}, lock)) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads((data_dir / CHECKSUMS_FILE).read_text()) == {f"PACS/{i}.zip": "0" for i in range(8)}


def test_existing_folder_is_not_changed(server, offer, data_dir: Path):
    offer("PACS", PACS__zip=IMAGES)
    (data_dir / "PACS").mkdir()
    assert not install.install(PACS, str(data_dir))
    assert entries(data_dir) == ["PACS"]
    assert os.listdir(data_dir / "PACS") == []
    assert server.files["/PACS.zip"].requests == []


def test_leftovers_of_a_killed_run_do_not_take_up_the_space_for_the_next(offer, data_dir: Path, monkeypatch):
    offer("PACS", PACS__zip=IMAGES)
    sized = tuple(replace(archive, size=1000) for archive in SOURCES["PACS"].archives)
    monkeypatch.setitem(SOURCES, "PACS", replace(SOURCES["PACS"], archives=sized))
    left = data_dir / ".download" / "PACS" / "unpacked" / "kfold" / "part.jpg"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    monkeypatch.setattr(
        install.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(0 if left.exists() else 10**9)
    )
    install.install(PACS, str(data_dir))
    assert files(data_dir) == {name.replace("kfold", "PACS"): data for name, data in IMAGES.items()}


def test_several_archives_and_a_leave_out_file(offer, data_dir: Path):
    archives = {f"{env}__zip": {f"{env}/dog/1.jpg": b"x"} for env in DomainNet.ENVIRONMENT_FOLDERS}
    offer("DomainNet", leave_out__txt={"leave_out.txt": b"real/dog/1.jpg\n"}, **archives)
    install.install(DomainNet, str(data_dir))
    expected = {f"domain_net/{env}/dog/1.jpg": b"x" for env in DomainNet.ENVIRONMENT_FOLDERS}
    assert files(data_dir) == {"domain_net/leave_out.txt": b"real/dog/1.jpg\n"} | expected


def test_failed_archive_keeps_the_others(server, offer, data_dir: Path):
    offer("DomainNet", clipart__zip={"clipart/dog/1.jpg": b"x"}, real__zip={"real/dog/1.jpg": b"x"})
    dead = server.files.pop("/real.zip")
    with pytest.raises(FetchError, match=r"real.zip: HTTP 404"):
        install.install(DomainNet, str(data_dir))
    assert sorted(os.listdir(data_dir / ".download" / "DomainNet")) == ["clipart.zip"]
    server.files["/real.zip"] = dead
    with pytest.raises(
        FetchError, match=r"the download has no folder that contains clipart, .*, only \['clipart', 'real'\]"
    ):
        install.install(DomainNet, str(data_dir))
    assert server.files["/clipart.zip"].requests == [""]


def test_failed_download_leaves_no_files(server, offer, data_dir: Path):
    offer("PACS", PACS__zip=IMAGES)
    server.files.clear()
    with pytest.raises(FetchError, match="404"):
        install.install(PACS, str(data_dir))
    assert entries(data_dir) == []


@pytest.mark.parametrize("bad", [b"<html>", None])
def test_damaged_archive_is_deleted_and_downloaded_again(server, offer, data_dir: Path, bad: bytes | None):
    offer("PACS", PACS__zip=IMAGES)
    good = server.files["/PACS.zip"].data
    server.files["/PACS.zip"].data = bad or good[: len(good) // 2]
    with pytest.raises(
        FetchError, match=r"PACS.zip is damaged or incomplete .*; deleted it; run again to download it again"
    ):
        install.install(PACS, str(data_dir))
    assert entries(data_dir) == []
    assert not (data_dir / CHECKSUMS_FILE).exists(), "a damaged archive must not be expected again"
    server.files["/PACS.zip"].data = good
    assert install.install(PACS, str(data_dir))
    assert len(files(data_dir / "PACS")) == len(IMAGES)


def test_archive_with_paths_outside_the_folder(offer, data_dir: Path, tmp_path: Path):
    offer("PACS", PACS__tar__gz=IMAGES | {"../../../../evil": b"x"})
    with pytest.raises(FetchError, match=r"not safe to unpack.* outside the destination"):
        install.install(PACS, str(data_dir))
    assert entries(data_dir) == []
    assert not list(tmp_path.rglob("evil"))


def test_full_disk(offer, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def unpack(archive: Path, folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    offer("PACS", PACS__zip=IMAGES)
    with monkeypatch.context() as patch:
        patch.setattr(install, "unpack", unpack)
        with pytest.raises(
            UsageError,
            match=r"the disk of .* is full; partial downloads of PACS are kept; free some space and run again",
        ):
            install.install(PACS, str(data_dir))
    assert os.listdir(data_dir / ".download" / "PACS") == ["PACS.zip"]
    assert install.install(PACS, str(data_dir))
    assert entries(data_dir) == ["PACS"]


def test_dataset_without_automatic_download(data_dir: Path):
    with pytest.raises(FetchError, match="must be downloaded manually"):
        install.install(SVIRO, str(data_dir))
    assert entries(data_dir) == []


FETCH_PACS = """
import sys
from domainbed.datasets.publishers import install
from domainbed.datasets.photos import PACS
from domainbed.datasets.publishers.sources import SOURCES, Archive, Source
SOURCES["PACS"] = Source("its page", (Archive("PACS.zip", sys.argv[1]),))
print(install.install(PACS, sys.argv[2]))
"""


def start(server, data_dir: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH_PACS, server.url("PACS.zip"), str(data_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_second_process_waits_for_the_first(server, offer, data_dir: Path):
    offer("PACS", PACS__zip=IMAGES)
    (data_dir / ".download").mkdir()
    with FileLock(data_dir / ".download" / "PACS.lock"):
        process = start(server, data_dir)
        assert process.stdout is not None
        assert process.stdout.readline() == "another process is downloading PACS; waiting for it\n"
        (data_dir / "PACS").mkdir()  # installed by the first process
    assert process.communicate(timeout=60)[0] == "False\n"
    assert entries(data_dir) == ["PACS"]
    assert server.files["/PACS.zip"].requests == []


@pytest.mark.slow
def test_concurrent_installs(server, offer, data_dir: Path):
    offer("PACS", PACS__zip=IMAGES)
    processes = [start(server, data_dir) for _ in range(2)]
    ends = sorted(process.communicate(timeout=120)[0].splitlines()[-1] for process in processes)
    assert ends == ["False", "True"]
    assert entries(data_dir) == ["PACS"]
    assert server.files["/PACS.zip"].requests == [""]


@pytest.mark.slow
def test_resume_after_sigkill_while_downloading(server, offer, data_dir: Path):
    members = {name.replace("1.jpg", f"{i}.jpg"): os.urandom(300_000) for i, name in enumerate(IMAGES)}
    offer("PACS", PACS__zip=members)
    archive = server.files["/PACS.zip"]
    archive.slow = 0.1
    process = start(server, data_dir)
    part = data_dir / ".download" / "PACS" / "PACS.zip.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    archive.slow = 0
    size = part.stat().st_size
    assert 0 < size < len(archive.data)
    assert install.install(PACS, str(data_dir))
    assert archive.requests == ["", f"bytes={size}-"]
    assert entries(data_dir) == ["PACS"]


def test_leftovers_of_a_killed_process_are_removed(offer, data_dir: Path):
    """The process was killed while unpacking or while cleaning up."""
    offer("PACS", PACS__zip=IMAGES)
    half = data_dir / ".download" / "PACS" / "unpacked" / "kfold" / "photo" / "dog"
    half.mkdir(parents=True)
    (half / "old.jpg").write_bytes(b"x")
    assert install.install(PACS, str(data_dir))
    assert len(files(data_dir / "PACS")) == len(IMAGES)
    half.mkdir(parents=True)
    assert not install.install(PACS, str(data_dir))
    assert entries(data_dir) == ["PACS"]


def annotations(*images: tuple[str, int | str, list[str]]) -> bytes:
    """Return a COCO file of images (name, location, animals)."""
    animals = ["bird", "car", "coyote"]
    return json.dumps(
        {
            "categories": [{"id": 10 + i, "name": name} for i, name in enumerate(animals)],
            "images": [{"id": name, "file_name": f"{name}.jpg", "location": place} for name, place, _ in images],
            "annotations": [
                {"image_id": name, "category_id": 10 + animals.index(animal)}
                for name, _, shown in images
                for animal in shown
            ],
        }
    ).encode()


def test_terra_incognita_is_arranged_by_location_and_animal(offer, data_dir: Path):
    places = {f"in{n}": n for n in (38, 43, 46, 100)}
    members = {f"eccv_18_all_images_sm/{name}.jpg": name.encode() for name in [*places, "two", "car", "far", "none"]}
    train = annotations(*((name, place, ["bird", "bird"]) for name, place in places.items()), ("far", 7, ["bird"]))
    test = annotations(
        ("two", "38", ["coyote", "bird"]), ("car", 38, ["car"]), ("none", 38, []), ("in38", 38, ["bird"])
    )
    parts = {
        "eccv_18_annotation_files/train_annotations.json": train,
        "eccv_18_annotation_files/cis_test_annotations.json": test,
        "eccv_18_annotation_files/._train_annotations.json": b"written by macOS",
    }
    offer("TerraIncognita", SOURCES["TerraIncognita"].arrange, annotations__tar__gz=parts, images__tar__gz=members)
    assert install.install(TerraIncognita, str(data_dir))
    assert files(data_dir) == {
        **{f"terra_incognita/location_{n}/bird/in{n}.jpg": f"in{n}".encode() for n in places.values()},
        "terra_incognita/location_38/bird/two.jpg": b"two",
        "terra_incognita/location_38/coyote/two.jpg": b"two",
    }


def test_terra_incognita_with_missing_image(offer, data_dir: Path):
    parts = {"eccv_18_annotation_files/train_annotations.json": annotations(("gone", 38, ["bird"]))}
    images = {"eccv_18_all_images_sm/other.jpg": b"x"}
    offer("TerraIncognita", SOURCES["TerraIncognita"].arrange, annotations__tar__gz=parts, images__tar__gz=images)
    with pytest.raises(FetchError, match=r"annotations do not match its images .*gone.jpg"):
        install.install(TerraIncognita, str(data_dir))


def test_sources_are_well_formed():
    for name, source in SOURCES.items():
        assert "https://" in source.manual
        for archive in source.archives:
            assert archive.url.startswith("https://"), f"{name}: {archive.url}"
            assert archive.sha256 or archive.md5 or not archive.fallback_url, f"{name}: {archive.name} has no checksum"
            assert archive.sha256 is None or re.fullmatch("[0-9a-f]{64}", archive.sha256)
            assert archive.md5 is None or re.fullmatch("[0-9a-f]{32}", archive.md5)
            assert archive.name.endswith((".zip", ".tar.gz", ".txt"))


def test_manual_instructions():
    text = manual_instructions(TerraIncognita, "data")
    assert "https://lila.science/datasets/caltech-camera-traps" in text
    assert "data/terra_incognita/<environment>/<class>/<image>" in text
    assert "location_100 4,879, location_38 9,767, location_43 4,020, location_46 6,122" in text
    assert "10 classes; 24,788 or 24,330 images in total" in text
    assert "the current one has 24,330 images" in text
    assert "(7 classes)" in manual_instructions(SVIRO, "data")


def test_retry_delays_grow(offer, server, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(fetch, "RETRY_DELAY", 1.0)
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    offer("PACS", PACS__zip=IMAGES)
    server.files["/PACS.zip"].status = 503
    with pytest.raises(FetchError, match="503"):
        install.install(PACS, str(data_dir))
    assert slept == [2.0, 4.0, 8.0, 16.0]


def test_spawrious_is_downloaded_once_for_all(offer, data_dir: Path):
    easy, hard = (get_dataset_class(f"SpawriousO2O_{level}") for level in ("easy", "hard"))
    offer("Spawrious", spawrious224__tar__gz={f"spawrious224/{i}/snow/corgi/1.png": b"x" for i in "01"})
    assert install.install(easy, str(data_dir))
    assert not install.install(hard, str(data_dir))
    assert entries(data_dir) == ["spawrious224"]
    assert list(json.loads((data_dir / CHECKSUMS_FILE).read_text())) == ["Spawrious/spawrious224.tar.gz"]


def test_wilds_needs_room_for_twice_the_archive(server, offer, data_dir: Path, tmp_path: Path, monkeypatch):
    camelyon = get_dataset_class("WILDSCamelyon")
    offer("WILDSCamelyon", c__tar__gz={"metadata.csv": b"x", "patches/a.png": b"y"})
    (archive,) = SOURCES["WILDSCamelyon"].archives
    big = replace(archive, size=10**18)
    monkeypatch.setitem(SOURCES, "WILDSCamelyon", replace(SOURCES["WILDSCamelyon"], archives=(big,)))
    with pytest.raises(UsageError, match="WILDSCamelyon needs 2,000,000,000,000,000,000 more bytes"):
        install.install(camelyon, str(data_dir))
    assert server.files["/c.tar.gz"].requests == []
    monkeypatch.setitem(SOURCES, "WILDSCamelyon", replace(SOURCES["WILDSCamelyon"], archives=(archive,)))
    assert install.install(camelyon, str(data_dir))
    assert sorted(os.listdir(data_dir / "camelyon17_v1.0")) == ["metadata.csv", "patches"]
