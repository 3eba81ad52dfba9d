"""The tables in results/ follow from the archived records."""

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


def test_archives_exist():
    assert ARCHIVES


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.parent.name)
def test_archived_records_give_the_tables(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Compare every format that is stored next to the archive."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    text = (archive.parent / "results.txt").read_text()
    for path in sorted(archive.parent.glob("results.*")):
        main(["--input_dir", str(tmp_path), "--format", FORMATS[path.suffix]])
        printed = capsys.readouterr()
        assert printed.out == path.read_text(), path
        for warning in printed.err.splitlines():  # formats for other programs print notes to stderr
            assert warning.removeprefix("warning: ").split(": ", 1)[-1] in text, path


def test_colored_mnist_restarts_give_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(RESULTS.parent)
    colored_mnist.main(["--data_dir", "unused, as all restarts are finished", "--output_dir", "results/colored_mnist"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (RESULTS / "colored_mnist" / "results.md").read_text()
    table = printed.out.split("\n\n")[0]
    assert table in (RESULTS.parent / "domainbed" / "colored_mnist" / "README.md").read_text()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the archived sweep of the digits."""
    folder = tmp_path_factory.mktemp("digits")
    with tarfile.open(RESULTS / "digits" / "records.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["DANN", "Fishr"])
def test_archived_run_is_reproduced_from_its_arguments(algorithm: str, digits: Path, tmp_path: Path):
    """Compare the first record with a tolerance: processors and library versions differ."""
    for folder in sorted(path.parent for path in digits.glob("*/done")):
        archived, problems = read_job(folder)
        config = JobConfig.from_recorded_args({**archived[0]["args"], "output_dir": str(tmp_path / "retrained")})
        if config.algorithm == algorithm and config.hparams_seed > 0:
            break
    assert not problems
    assert config.name() == folder.name
    train(config)
    retrained, _ = read_job(tmp_path / "retrained")
    assert [record["step"] for record in retrained] == [record["step"] for record in archived]
    for name, value in archived[0].items():
        if name.endswith("_acc") or "loss" in name:
            assert retrained[0][name] == pytest.approx(value, abs=0.01)
    assert retrained[0]["hparams"].items() >= archived[0]["hparams"].items()  # later versions have more of them
