"""The command line that fetches and verifies: what it prints, and its status."""

import os
from pathlib import Path

import pytest

from domainbed.datasets.photos import PACS
from domainbed.datasets.publishers import fetch
from domainbed.datasets.publishers.sources import SOURCES, Archive, Source
from domainbed.errors import UsageError
from domainbed.scripts import download
from tests.datasets.publishers.test_unpack import make_zip
from tests.datasets.test_verify import draw
from tests.web_server import running

MISTAKES = [
    (["--data_dir", "."], "the following arguments are required: --dataset"),
    (["--dataset", "PACS"], "the following arguments are required: --data_dir"),
    (["--data_dir", ".", "--dataset", "PACS", "OficeHome"], "unknown dataset 'OficeHome'; did you mean OfficeHome"),
    (["--data_dir", "no/such", "--dataset", "PACS"], "--data_dir 'no/such' is not a folder; make it first"),
    (["--data_dir", "", "--dataset", "PACS"], "--data_dir '' is not a folder"),
    (["--data_dir", ".", "--dataset", "PACS", "--write_leave_out"], "--write_leave_out needs --verify"),
    (["--data_dir", ".", "--dataset", "PACS", "--verify"], "PACS is not there: PACS is not a folder. How to get it"),
    (["--data_dir", ".", "--dataset", "Folder"], "Folder: it is a tree of your own, there is nothing to fetch"),
    (["--data_dir", ".", "--dataset", "SVIRO"], "SVIRO: it can only be had by hand"),
]


@pytest.mark.parametrize(("args", "message"), MISTAKES, ids=str)
def test_mistake(run_module, tmp_path: Path, args: list[str], message: str):
    finished = run_module("download", *args)
    assert finished.returncode == 2, finished.stderr
    assert message in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert list((tmp_path / "cwd").iterdir()) == []


def test_by_hand(run_module, tmp_path: Path):
    finished = run_module("download", "--data_dir", tmp_path, "--dataset", "SVIRO")
    assert "get     sviro_grayscale_rectangle_classification.zip" in finished.stdout
    assert "https://sviro.kl.dfki.de" in finished.stdout
    assert f"{tmp_path}/sviro/<environment>/<class>/<image>" in finished.stdout


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """PACS, one image an environment, and a VLCS whose address is dead. Yields data_dir."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0)
    for folder in PACS.ENVIRONMENT_FOLDERS:
        draw(tmp_path / "kfold" / folder / "dog" / "1.jpg")
    members = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.jpg")}
    with running() as server:
        server.offer("PACS.zip", make_zip(tmp_path / "PACS.zip", members).read_bytes())
        monkeypatch.setitem(SOURCES, "PACS", Source("its page", (Archive("PACS.zip", server.url("PACS.zip")),)))
        monkeypatch.setitem(SOURCES, "VLCS", Source("its page", (Archive("VLCS.tar.gz", server.url("dead")),)))
        (tmp_path / "data").mkdir()
        yield str(tmp_path / "data")


def test_one_that_fails_does_not_keep_the_others(offered: str, capsys: pytest.CaptureFixture):
    args = ["--data_dir", offered, "--dataset", "VLCS", "PACS", "ColoredDigits"]
    with pytest.raises(UsageError, match=r"^VLCS: http://127.0.0.1:\d+/dead: the server answers 404 Not Found$"):
        download.main(args)
    printed = capsys.readouterr().out
    assert "How to get VLCS by hand:\n  get     its page\n" in printed
    assert "Caltech101 1,415, LabelMe 2,656, SUN09 3,282, VOC2007 3,376\n" in printed
    assert f"PACS: fetched into {offered}/PACS; --verify checks it\n" in printed
    assert "ColoredDigits: ready\n" in printed
    assert sorted(os.listdir(offered)) == [".download", "PACS"]

    assert download.main(["--data_dir", offered, "--dataset", "PACS"]) == 0
    assert f"PACS: {offered}/PACS is there already and stays as it is" in capsys.readouterr().out


def test_verify_leaves_out_what_is_broken(offered: str, capsys: pytest.CaptureFixture):
    download.main(["--data_dir", offered, "--dataset", "PACS"])
    Path(offered, "PACS/photo/dog/1.jpg").write_bytes(b"")
    draw(Path(offered, "PACS/photo/dog/2.jpg"))
    verify = ["--data_dir", offered, "--dataset", "PACS", "--verify"]

    assert download.main(verify) == 1
    printed = capsys.readouterr().out
    assert "PACS: NOT as it should be\n" in printed
    assert "art_painting: 1 of 2,048 images\n" in printed
    assert "photo/dog/1.jpg is a broken image (" in printed
    assert not Path(offered, "PACS/leave_out.txt").exists()

    assert download.main([*verify, "--write_leave_out"]) == 1
    assert f"{offered}/PACS/leave_out.txt now names the broken images, which are left out\n" in capsys.readouterr().out
    assert Path(offered, "PACS/leave_out.txt").read_text() == "photo/dog/1.jpg\n"

    assert download.main([*verify, "--write_leave_out"]) == 1
    assert "all 4 images decode\n" in capsys.readouterr().out
    assert Path(offered, "PACS/leave_out.txt").read_text() == "photo/dog/1.jpg\n"


def test_status_of_verifying(mnist_dir: str, small_mnist_dir: str):
    args = ["--dataset", "RotatedMNIST", "ColoredDigits", "--verify"]
    assert download.main(["--data_dir", mnist_dir, *args]) == 0
    assert download.main(["--data_dir", small_mnist_dir, *args]) == 1
