"""Tests of the download command: its output and exit status."""

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

ERRORS = [
    (["--dataset", "PACS"], "the following arguments are required: --data_dir"),
    (["--data_dir", ".", "--dataset", "PACS", "OficeHome"], "unknown dataset 'OficeHome'; did you mean OfficeHome"),
    (["--data_dir", "no/such", "--dataset", "PACS", "--verify"], "--data_dir 'no/such' is not a folder"),
    (["--data_dir", "", "--dataset", "PACS"], "--data_dir is empty; specify a path"),
    (["--data_dir", ".", "--dataset", "PACS", "--write_leave_out"], "--write_leave_out requires --verify"),
    (
        ["--data_dir", "t.csv", "--dataset", "Table", "--verify", "--write_leave_out"],
        "--write_leave_out: Table reads no leave_out.txt; delete the rows",
    ),
    (["--data_dir", ".", "--dataset", "PACS", "--verify"], "PACS not found: PACS is not a folder; to get it, run"),
    (["--data_dir", ".", "--dataset", "Folder"], "Folder: nothing to download for your own images"),
    (["--data_dir", ".", "--dataset", "SVIRO"], "SVIRO: must be downloaded manually"),
]


@pytest.mark.parametrize(("args", "message"), ERRORS, ids=str)
def test_invalid_usage_is_a_one_line_error(run_module, tmp_path: Path, args: list[str], message: str):
    finished = run_module("download", *args)
    assert finished.returncode == 2, finished.stderr
    assert message in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert list((tmp_path / "cwd").iterdir()) == []


def test_manual_instructions(run_module, tmp_path: Path):
    finished = run_module("download", "--data_dir", tmp_path, "--dataset", "SVIRO")
    assert "download  sviro_grayscale_rectangle_classification.zip" in finished.stdout
    assert "https://sviro.kl.dfki.de" in finished.stdout
    assert f"{tmp_path}/sviro/<environment>/<class>/<image>" in finished.stdout


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Serve PACS with one image per environment and a VLCS with a dead link. Yields data_dir."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "RETRY_DELAY", 0)
    for folder in PACS.ENVIRONMENT_FOLDERS:
        draw(tmp_path / "kfold" / folder / "dog" / "1.jpg")
    members = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*.jpg")}
    with running() as server:
        server.offer("PACS.zip", make_zip(tmp_path / "PACS.zip", members).read_bytes())
        monkeypatch.setitem(SOURCES, "PACS", Source("its page", (Archive("PACS.zip", server.url("PACS.zip")),)))
        monkeypatch.setitem(SOURCES, "VLCS", Source("its page", (Archive("VLCS.tar.gz", server.url("dead")),)))
        (tmp_path / "data").mkdir()
        yield str(tmp_path / "data")


def test_failed_download_does_not_stop_the_others(offered: str, capsys: pytest.CaptureFixture):
    args = ["--data_dir", offered, "--dataset", "VLCS", "PACS", "ColoredDigits"]
    with pytest.raises(UsageError, match=r"^VLCS: http://127.0.0.1:\d+/dead: HTTP 404 Not Found$"):
        download.main(args)
    printed = capsys.readouterr().out
    assert "To get VLCS manually:\n  download  its page\n" in printed
    assert "Caltech101 1,415, LabelMe 2,656, SUN09 3,282, VOC2007 3,376\n" in printed
    assert f"PACS: downloaded to {offered}/PACS; check it with --verify\n" in printed
    assert "ColoredDigits: ready\n" in printed
    assert sorted(os.listdir(offered)) == [".download", "PACS", "checksums.json"]

    assert download.main(["--data_dir", offered, "--dataset", "PACS"]) == 0
    assert f"PACS: {offered}/PACS already exists, skipping" in capsys.readouterr().out


def test_verify_can_leave_out_broken_images(offered: str, capsys: pytest.CaptureFixture):
    download.main(["--data_dir", offered, "--dataset", "PACS"])
    Path(offered, "PACS/photo/dog/1.jpg").write_bytes(b"")
    draw(Path(offered, "PACS/photo/dog/2.jpg"))
    verify = ["--data_dir", offered, "--dataset", "PACS", "--verify"]

    assert download.main(verify) == 1
    printed = capsys.readouterr().out
    assert "PACS: NOT OK\n" in printed
    assert "art_painting: 1 of 2,048 images\n" in printed
    assert "photo/dog/1.jpg is a broken image (" in printed
    assert not Path(offered, "PACS/leave_out.txt").exists()

    assert download.main([*verify, "--write_leave_out"]) == 1
    assert (
        f"Added the broken images to {offered}/PACS/leave_out.txt; they are excluded from now on\n"
        in capsys.readouterr().out
    )
    assert Path(offered, "PACS/leave_out.txt").read_text() == "photo/dog/1.jpg\n"

    assert download.main([*verify, "--write_leave_out"]) == 1
    assert "all 4 images decode\n" in capsys.readouterr().out
    assert Path(offered, "PACS/leave_out.txt").read_text() == "photo/dog/1.jpg\n"


def test_exit_status_of_verify(mnist_dir: str, small_mnist_dir: str):
    args = ["--dataset", "RotatedMNIST", "ColoredDigits", "--verify"]
    assert download.main(["--data_dir", mnist_dir, *args]) == 0
    assert download.main(["--data_dir", small_mnist_dir, *args]) == 1
