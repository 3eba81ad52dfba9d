"""The tables in results/ are those that their kept records give."""

import tarfile
from pathlib import Path

import pytest

from domainbed.scripts import colored_mnist
from domainbed.scripts.collect_results import main

RESULTS = Path(__file__).parents[1] / "results"
ARCHIVES = sorted(RESULTS.glob("*/records.tar.xz"))


def test_there_are_kept_records():
    assert ARCHIVES


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.parent.name)
def test_kept_records_give_the_kept_tables(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    main(["--input_dir", str(tmp_path)])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (archive.parent / "results.txt").read_text()


def test_the_colored_mnist_table_is_that_of_its_restarts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(RESULTS.parent)
    colored_mnist.main(["--data_dir", "not needed: all restarts are there", "--output_dir", "results/colored_mnist"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (RESULTS / "colored_mnist" / "results.md").read_text()
    table = printed.out.split("\n\n")[0]
    assert table in (RESULTS.parent / "README.md").read_text()
