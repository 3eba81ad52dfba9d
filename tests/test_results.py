"""The tables in results/ are those that their kept records give."""

import tarfile
from pathlib import Path

import pytest

from domainbed.engine.config import JobConfig
from domainbed.engine.train import train
from domainbed.records import read_job
from domainbed.scripts import colored_mnist
from domainbed.scripts.collect_results import main

RESULTS = Path(__file__).parents[1] / "results"
ARCHIVES = sorted(RESULTS.glob("*/records.tar.xz"))
FORMATS = {".txt": "text", ".md": "markdown", ".csv": "csv", ".tex": "latex"}


def test_there_are_kept_records():
    assert ARCHIVES


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.parent.name)
def test_kept_records_give_the_kept_tables(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """In every format that is kept beside them."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    kept = sorted(archive.parent.glob("results.*"))
    text = (archive.parent / "results.txt").read_text()
    for path in kept:
        main(["--input_dir", str(tmp_path), "--format", FORMATS[path.suffix]])
        printed = capsys.readouterr()
        assert printed.out == path.read_text(), path
        for warning in printed.err.splitlines():  # of formats for other programs
            assert warning.removeprefix("warning: ").split(": ", 1)[-1] in text, path


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


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["DANN", "Fishr"])
def test_a_kept_run_trains_again_from_its_arguments(algorithm: str, tmp_path: Path):
    """Bit for bit where it was made; on another processor or with other versions, alike at its beginning."""
    with tarfile.open(RESULTS / "digits" / "records.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    for folder in sorted(path.parent for path in tmp_path.glob("*/done")):
        kept, problems = read_job(folder)
        config = JobConfig.of_args({**kept[0]["args"], "output_dir": str(tmp_path / "again")})
        if config.algorithm == algorithm and config.hparams_seed > 0:
            break
    assert not problems
    assert config.name() == folder.name
    train(config)
    again, _ = read_job(tmp_path / "again")
    assert [record["step"] for record in again] == [record["step"] for record in kept]
    for name, value in kept[0].items():
        if name.endswith("_acc") or "loss" in name:
            assert again[0][name] == pytest.approx(value, abs=0.01)
    assert again[0]["hparams"] == kept[0]["hparams"]
