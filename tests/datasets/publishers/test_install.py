"""From archives on a server of this machine to data_dir/PACS, or to nothing at all; TerraIncognita's sorting."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from domainbed.datasets.photos import PACS, SVIRO, DomainNet, TerraIncognita
from domainbed.datasets.publishers import fetch, install
from domainbed.datasets.publishers.fetch import FetchError
from domainbed.datasets.publishers.sources import SOURCES, Archive, Source, by_hand
from domainbed.errors import UsageError
from tests.datasets.publishers.test_unpack import make_tar, make_zip

IMAGES = {f"kfold/{folder}/dog/{i}.jpg": os.urandom(1000) for folder in PACS.ENVIRONMENT_FOLDERS for i in range(3)}
LEAVINGS = {f"__MACOSX/kfold/{folder}/._dog": b"x" for folder in PACS.ENVIRONMENT_FOLDERS}


@pytest.fixture
def offer(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Let the server offer archives (name -> members) as those of a dataset."""

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
        monkeypatch.setitem(SOURCES, dataset, Source("its page", tuple(offered), arrange, "mind this"))

    return offer


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def files(folder: Path) -> dict[str, bytes]:
    """All files in a folder, but for locks."""
    there = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in there}


def entries(data_dir: Path) -> list[str]:
    """What lies in data_dir and what is under way there, but for locks."""
    aside = data_dir / ".download"
    under_way = [p.name for p in aside.iterdir() if p.suffix != ".lock"] if aside.exists() else []
    return sorted([p.name for p in data_dir.iterdir() if p != aside] + under_way)


@pytest.mark.parametrize("archive", ["PACS__zip", "PACS__tar__gz"])
def test_fetched_unpacked_and_moved(offer, data_dir: Path, archive: str, capsys: pytest.CaptureFixture):
    offer("PACS", **{archive: LEAVINGS | IMAGES})
    assert install.install(PACS, str(data_dir))
    assert files(data_dir) == {name.replace("kfold", "PACS"): data for name, data in IMAGES.items()}
    assert entries(data_dir) == ["PACS"]
    printed = capsys.readouterr().out
    assert "mind this" in printed
    assert "sha256" in printed
    assert "(none is known to compare it with)" in printed


def test_what_is_there_is_not_touched(server, offer, data_dir: Path):
    offer("PACS", PACS__zip=IMAGES)
    (data_dir / "PACS").mkdir()
    assert not install.install(PACS, str(data_dir))
    assert entries(data_dir) == ["PACS"]
    assert os.listdir(data_dir / "PACS") == []
    assert server.files["/PACS.zip"].requests == []


def test_several_archives_and_a_list(offer, data_dir: Path):
    archives = {f"{env}__zip": {f"{env}/dog/1.jpg": b"x"} for env in DomainNet.ENVIRONMENT_FOLDERS}
    offer("DomainNet", leave_out__txt={"leave_out.txt": b"real/dog/1.jpg\n"}, **archives)
    install.install(DomainNet, str(data_dir))
    expected = {f"domain_net/{env}/dog/1.jpg": b"x" for env in DomainNet.ENVIRONMENT_FOLDERS}
    assert files(data_dir) == {"domain_net/leave_out.txt": b"real/dog/1.jpg\n"} | expected


def test_one_dead_address_keeps_what_came(server, offer, data_dir: Path):
    offer("DomainNet", clipart__zip={"clipart/dog/1.jpg": b"x"}, real__zip={"real/dog/1.jpg": b"x"})
    dead = server.files.pop("/real.zip")
    with pytest.raises(FetchError, match=r"real.zip: the server answers 404"):
        install.install(DomainNet, str(data_dir))
    assert sorted(os.listdir(data_dir / ".download" / "DomainNet")) == ["clipart.zip"]
    server.files["/real.zip"] = dead
    with pytest.raises(FetchError, match=r"what came has no folder with clipart, .* in it, but \['clipart', 'real'\]"):
        install.install(DomainNet, str(data_dir))
    assert server.files["/clipart.zip"].requests == [""]


def test_nothing_came_nothing_stays(server, offer, data_dir: Path):
    offer("PACS", PACS__zip=IMAGES)
    server.files.clear()
    with pytest.raises(FetchError, match="404"):
        install.install(PACS, str(data_dir))
    assert entries(data_dir) == []


@pytest.mark.parametrize("bad", [b"<html>", None])
def test_bad_archive_is_deleted_and_fetched_again(server, offer, data_dir: Path, bad: bytes | None):
    offer("PACS", PACS__zip=IMAGES)
    good = server.files["/PACS.zip"].data
    server.files["/PACS.zip"].data = bad or good[: len(good) // 2]
    with pytest.raises(
        FetchError, match=r"PACS.zip is no whole archive .*; it is deleted, a second run fetches it again"
    ):
        install.install(PACS, str(data_dir))
    assert entries(data_dir) == []
    server.files["/PACS.zip"].data = good
    assert install.install(PACS, str(data_dir))
    assert len(files(data_dir / "PACS")) == len(IMAGES)


def test_climbing_archive(offer, data_dir: Path, tmp_path: Path):
    offer("PACS", PACS__tar__gz=IMAGES | {"../../../../evil": b"x"})
    with pytest.raises(FetchError, match="leads out of its folder"):
        install.install(PACS, str(data_dir))
    assert entries(data_dir) == []
    assert not list(tmp_path.rglob("evil"))


def test_full_disk(offer, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def full(archive: Path, folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    offer("PACS", PACS__zip=IMAGES)
    with monkeypatch.context() as patch:
        patch.setattr(install, "unpack", full)
        with pytest.raises(UsageError, match=r"the disk of .* is full; what came of PACS is kept, run again"):
            install.install(PACS, str(data_dir))
    assert os.listdir(data_dir / ".download" / "PACS") == ["PACS.zip"]
    assert install.install(PACS, str(data_dir))
    assert entries(data_dir) == ["PACS"]


def test_by_hand_only(data_dir: Path):
    with pytest.raises(FetchError, match="only be had by hand"):
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
        assert process.stdout.readline() == "another process is fetching PACS; waiting for it\n"
        (data_dir / "PACS").mkdir()  # the first one's
    assert process.communicate(timeout=60)[0] == "False\n"
    assert entries(data_dir) == ["PACS"]
    assert server.files["/PACS.zip"].requests == []


@pytest.mark.slow
def test_two_at_once(server, offer, data_dir: Path):
    offer("PACS", PACS__zip=IMAGES)
    processes = [start(server, data_dir) for _ in range(2)]
    ends = sorted(process.communicate(timeout=120)[0].splitlines()[-1] for process in processes)
    assert ends == ["False", "True"]
    assert entries(data_dir) == ["PACS"]
    assert server.files["/PACS.zip"].requests == [""]


@pytest.mark.slow
def test_killed_while_fetching(server, offer, data_dir: Path):
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
    there = part.stat().st_size
    assert 0 < there < len(archive.data)
    assert install.install(PACS, str(data_dir))
    assert archive.requests == ["", f"bytes={there}-"]
    assert entries(data_dir) == ["PACS"]


def test_killed_while_unpacking_or_cleaning_up(offer, data_dir: Path):
    """What such a run leaves does no harm and goes."""
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
    """A COCO file of images (name, place, animals)."""
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


def test_terra_incognita(offer, data_dir: Path):
    places = {f"in{n}": n for n in (38, 43, 46, 100)}
    members = {f"eccv_18_all_images_sm/{name}.jpg": name.encode() for name in [*places, "two", "car", "far", "none"]}
    train = annotations(*((name, place, ["bird", "bird"]) for name, place in places.items()), ("far", 7, ["bird"]))
    test = annotations(
        ("two", "38", ["coyote", "bird"]), ("car", 38, ["car"]), ("none", 38, []), ("in38", 38, ["bird"])
    )
    parts = {
        "eccv_18_annotation_files/train_annotations.json": train,
        "eccv_18_annotation_files/cis_test_annotations.json": test,
        "eccv_18_annotation_files/._train_annotations.json": b"what macOS leaves",
    }
    offer("TerraIncognita", SOURCES["TerraIncognita"].arrange, annotations__tar__gz=parts, images__tar__gz=members)
    assert install.install(TerraIncognita, str(data_dir))
    assert files(data_dir) == {
        **{f"terra_incognita/location_{n}/bird/in{n}.jpg": f"in{n}".encode() for n in places.values()},
        "terra_incognita/location_38/bird/two.jpg": b"two",
        "terra_incognita/location_38/coyote/two.jpg": b"two",
    }


def test_terra_incognita_that_does_not_fit(offer, data_dir: Path):
    parts = {"eccv_18_annotation_files/train_annotations.json": annotations(("gone", 38, ["bird"]))}
    images = {"eccv_18_all_images_sm/other.jpg": b"x"}
    offer("TerraIncognita", SOURCES["TerraIncognita"].arrange, annotations__tar__gz=parts, images__tar__gz=images)
    with pytest.raises(FetchError, match=r"annotations don't fit its images .*gone.jpg"):
        install.install(TerraIncognita, str(data_dir))


def test_sources_are_well_formed():
    for name, source in SOURCES.items():
        assert "https://" in source.by_hand
        for archive in source.archives:
            assert archive.url.startswith(("https://", "http://")), name
            assert archive.sha256 or archive.url.startswith("https://"), f"{name}: nothing vouches for {archive.url}"
            assert archive.sha256 is None or len(archive.sha256) == 64
            assert archive.name.endswith((".zip", ".tar.gz", ".txt"))


def test_how_to_get_it_by_hand():
    text = by_hand(TerraIncognita, "data")
    assert "https://lila.science/datasets/caltech-camera-traps" in text
    assert "data/terra_incognita/<environment>/<class>/<image>" in text
    assert "location_100 4,879, location_38 9,767, location_43 4,020, location_46 6,122" in text
    assert "10 classes; in all 24,788 or 24,330" in text
    assert "today's yields 24,330 images, not their 24,788" in text
    assert "(7 classes)" in by_hand(SVIRO, "data")


def test_tries_are_few_and_pauses_grow(offer, server, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(fetch, "PAUSE", 1.0)
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    offer("PACS", PACS__zip=IMAGES)
    server.files["/PACS.zip"].status = 503
    with pytest.raises(FetchError, match="503"):
        install.install(PACS, str(data_dir))
    assert slept == [2.0, 4.0, 8.0, 16.0]
