"""Files in a sweep's folder that somebody else wrote: no command runs code that they name."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.engine.model import load_model
from domainbed.engine.tracking import TRACKERS
from domainbed.errors import UsageError
from domainbed.scripts import (
    collect_results,
    ensemble,
    landscape,
    list_top_hparams,
    plot,
    recompute,
    sweep,
    sweep_parser,
)
from domainbed.sweep.archive import has_known_hparams
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.log import launch_files, requested_jobs
from domainbed.sweep.status import JobState
from tests.images import write_tree
from tests.sweep.helpers import launch_words, main, states

# Registers one component of each kind, and leaves a file where it was imported.
MODULE = """
from pathlib import Path

import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.datasets.digits import ColoredDigits
from domainbed.engine.tracking import TRACKERS, Tracker
from domainbed.hparams import Hparam
from domainbed.sweep.launchers import LAUNCHERS
from tests.sweep.helpers import LauncherHere
from tests.sweep.misbehaving import Misbehaving

Path("EXECUTED").write_text(__name__)


@DATASETS.register("TheirDigits")
class TheirDigits(ColoredDigits):
    ENVIRONMENTS = ["red", "green", "blue"]
    N_STEPS = 3
    CHECKPOINT_FREQ = 2


@ALGORITHMS.register("Theirs")
class Theirs(Misbehaving):
    HPARAMS = {**Misbehaving.HPARAMS, "theirs": Hparam(1.5)}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer, self.classifier = torch.nn.Flatten(), self.linear

    def eval(self):
        super().eval()
        return "not the model"


@TRACKERS.register("their_tracker")
class TheirTracker(Tracker):
    PREFIX = "their_"

    def __init__(self, config, algorithm, splits, feed):
        pass

    def record(self):
        return {"their_number": 1.0}


LAUNCHERS.register("their_launcher")(LauncherHere)
"""
CELL = ["--dataset", "TheirDigits", "--algorithm", "Theirs", "--test_env", "red"]


def forget() -> None:
    """Make this process one that has not imported the module."""
    for registry, name in (
        (DATASETS, "TheirDigits"),
        (ALGORITHMS, "Theirs"),
        (TRACKERS, "their_tracker"),
        (LAUNCHERS, "their_launcher"),
    ):
        registry._registered.pop(name, None)
    sys.modules.pop("their_module", None)
    Path("EXECUTED").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six jobs whose dataset, algorithm, tracker and launcher are those of a module next to it."""
    folder = tmp_path_factory.mktemp("theirs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        (folder / "their_module.py").write_text(MODULE)
        words = launch_words(folder / "sweep", "--n_trials", 2, "--import", "their_module", launcher="their_launcher")
        words[words.index("--steps") : words.index("--steps") + 2] = []
        words += ["--datasets", "TheirDigits", "--algorithms", "Theirs", "--track", "their_tracker"]
        assert main(words) == 0
        assert Path("EXECUTED").read_text() == "their_module"
        forget()
    return folder


@pytest.fixture
def theirs(launched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of this sweep in the current folder, from which the module could be imported."""
    shutil.copytree(launched, tmp_path / "theirs")
    monkeypatch.chdir(tmp_path / "theirs")
    monkeypatch.syspath_prepend(str(tmp_path / "theirs"))
    yield tmp_path / "theirs" / "sweep"
    forget()


READERS: dict[str, Callable[[str], object]] = {
    "status": lambda folder: sweep.main(["status", "--failed", "--output_dir", folder]),
    "cancel": lambda folder: sweep.main(["cancel", "--output_dir", folder]),
    "delete_incomplete": lambda folder: sweep.main(["delete_incomplete", "--output_dir", folder]),
    "export": lambda folder: sweep.main(["export", "--output_dir", folder, "--archive", "archive.tar.xz"]),
    "collect_results": lambda folder: collect_results.main(["--input_dir", folder]),
    "collect_results html": lambda folder: collect_results.main(
        ["--input_dir", folder, "--format", "html", "--output", "report.html"]
    ),
    "list_top_hparams": lambda folder: list_top_hparams.main(["--input_dir", folder, *CELL]),
    "plot": lambda folder: plot.main(["--input_dir", folder, "--dpi", "10"]),
}


@pytest.mark.parametrize("reader", READERS)
def test_reader_imports_nothing(theirs: Path, reader: str, capsys: pytest.CaptureFixture):
    assert not READERS[reader](str(theirs))
    assert not Path("EXECUTED").exists()
    output = capsys.readouterr()
    assert "skipping the launch" not in output.out + output.err
    if reader == "status":
        assert "6 of 6 jobs done; 18 of 18 updates" in output.out
    if reader == "collect_results":
        assert "their_module" not in output.out
        row, *_ = [line for line in output.out.splitlines() if line.startswith("Theirs ")]
        assert row.count("+/-") == 4
    if reader == "export":
        assert "6 jobs written to archive.tar.xz" in output.out
        assert "hyperparameters are not verified: Theirs on TheirDigits\n" in output.err


def test_incomplete_jobs_of_unregistered_components_are_deleted(theirs: Path, capsys: pytest.CaptureFixture):
    first, second, *others = requested_jobs(theirs)
    for job in (first, second):
        (job.folder / "done").unlink()
    assert str(first) == "Theirs on TheirDigits, test red, hparams 0, trial 0"
    assert sweep.main(["delete_incomplete", "--output_dir", str(theirs), "--skip_confirmation"]) == 3
    assert states([first, second, *others]) == [JobState.NOT_LAUNCHED] * 2 + [JobState.DONE] * 4
    assert not Path("EXECUTED").exists()


def test_export_checks_records_of_unregistered_components(theirs: Path):
    job = requested_jobs(theirs)[0]
    assert not has_known_hparams(job)
    results = job.folder / "results.jsonl"
    lines = results.read_text().splitlines()
    for old, new in (('"theirs": 1.5', '"theirs": 2.5'), ('"batch_size": 4', '"batch_size": 8')):
        assert old in lines[-1]
        results.write_text("\n".join([*lines[:-1], lines[-1].replace(old, new)]))
        with pytest.raises(UsageError, match=r"the record of step \d has (theirs|batch_size)"):
            READERS["export"](str(theirs))
    assert not Path("archive.tar.xz").exists()


def test_log_of_an_earlier_version(theirs: Path, capsys: pytest.CaptureFixture):
    """It does not say which environments a dataset has. A registered dataset suffices."""
    (log,) = launch_files(theirs)
    arguments = json.loads(log.read_text())
    del arguments["specs"]
    log.write_text(json.dumps(arguments))
    expected = [job.folder for job in requested_jobs_with_import(theirs)]
    forget()
    assert collect_results.main(["--input_dir", str(theirs)]) is None
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "skipping the launch" in line]
    assert "unknown dataset 'TheirDigits'" in line
    assert "the launch imported 'their_module'; if" in line
    assert "pass --import" in line
    with pytest.raises(UsageError, match="none of the launches"):
        sweep.main(["status", "--output_dir", str(theirs)])
    assert not Path("EXECUTED").exists()
    for command in ("status", "cancel", "delete_incomplete"):
        assert sweep.main([command, "--output_dir", str(theirs), "--import", "their_module"]) == 0
    forget()
    log.write_text(json.dumps(arguments | {"datasets": ["ColoredDigits"]}))
    assert [job.kind for job in requested_jobs(theirs)] == [("ColoredDigits", "Theirs")] * 6
    assert {folder.parent for folder in expected} == {theirs}


def requested_jobs_with_import(folder: Path) -> list:
    assert sweep.main(["status", "--output_dir", str(folder), "--import", "their_module"]) == 0
    return requested_jobs(folder)


def test_logged_jobs_have_the_same_folders(theirs: Path, tmp_path: Path):
    """As those that were launched, even of a dataset whose environments are in a folder that no longer exists."""
    done = {path.parent for path in theirs.glob("*/done")}
    assert {job.folder for job in requested_jobs(theirs)} == done
    write_tree(tmp_path / "photos", {env: {"cat": 4, "dog": 4} for env in "abc"})
    words = ["launch", "--output_dir", str(tmp_path / "mine"), "--n_hparams", "2", "--n_trials", "1", "--leave_one_out"]
    words += ["--data_dir", str(tmp_path / "photos"), "--algorithms", "ERM", "Fishr", "--datasets", "Folder", "VLCS"]
    grid = sweep_parser.grid_of(sweep_parser.parse_args(words))
    launched = grid.jobs(tmp_path / "mine")
    sweep.log_launch(tmp_path / "mine", grid)
    shutil.rmtree(tmp_path / "photos")
    logged = requested_jobs(tmp_path / "mine")
    assert logged == launched
    assert len(logged) == 2 * 2 * (6 + 10)
    assert list(map(str, logged[:1])) == ["ERM on Folder, test a, hparams 0, trial 0"]


def test_classes_of_a_file_are_imported_only_if_trusted(theirs: Path, capsys: pytest.CaptureFixture):
    job = requested_jobs(theirs)[0].folder
    needs = (
        r"requires the (algorithm|dataset) '.*', which is not registered; the job imported .*'their_module', but imp"
    )
    model = str(job / "model.pkl")
    with pytest.raises(UsageError, match=needs):
        load_model(model)
    recomputing = ["--input_dir", str(theirs), "--output_dir", "again", *CELL, "--workers", "1"]
    for command, words in (
        (landscape, ["--run", model]),
        (landscape, ["--input_dir", str(theirs)]),
        (recompute, recomputing),
        (ensemble, ["--input_dir", str(theirs), "--method", "ensemble"]),
    ):
        with pytest.raises(UsageError, match=needs):
            command.main(words)
    assert not Path("EXECUTED").exists()
    assert (
        type(load_model(model, trust_imports=True).algorithm).__name__ == "Theirs"
    )  # although its eval returns something else
    forget()
    landscape.main(["--run", model, "--import", "their_module", "--no_slices", "--images", "9"])
    forget()
    landscape.main(["--run", model, "--trust_imports", "--no_slices", "--images", "9"])
    assert Path("EXECUTED").exists()


def test_new_jobs_import_only_what_is_trusted(theirs: Path):
    """Recomputed runs do not import the modules in records, even if their classes are registered by another."""
    from domainbed.reporting.load import load_sweep
    from domainbed.reporting.recomputed import jobs_of_cell
    from domainbed.scripts.cell import find_cell

    load_model(requested_jobs(theirs)[0].folder / "model.pkl", trust_imports=True)
    cell = find_cell(load_sweep(str(theirs)), "TheirDigits", "Theirs", "red", "training-domain")
    for trust, expected in ((False, ("mine",)), (True, ("their_module", "mine"))):
        jobs = jobs_of_cell(load_sweep(str(theirs)), cell, Path("again"), imports=["mine"], trust_imports=trust)
        assert {job.config.imports for job in jobs.values()} == {expected}


def test_model_that_is_not_a_module_is_reported(theirs: Path):
    model = requested_jobs(theirs)[0].folder / "model.pkl"
    with (
        ALGORITHMS.temporarily("Theirs", lambda *args: "not a model"),  # type: ignore[arg-type]
        pytest.raises(UsageError, match=r"model.pkl: Theirs is not an nn\.Module with predict"),
    ):
        load_model(model)
    with (
        ALGORITHMS.temporarily("Theirs", lambda *args: torch.nn.Linear(1, 1)),  # type: ignore[arg-type]
        pytest.raises(UsageError, match=r"model.pkl: Theirs is not an nn\.Module with predict"),
    ):
        load_model(model)


def test_links_are_not_followed(theirs: Path, tmp_path: Path):
    """They could lead to any file that this user can read or write."""
    secret = tmp_path / "secret"
    secret.write_text("{}")
    folder = launch_files(theirs)[0].parent
    (folder / "link.json").symlink_to(secret)
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    assert len(launch_files(theirs)) == 1
    READERS["export"](str(theirs))  # does not wait for the pipe
    job = requested_jobs(theirs)[0].folder
    (job / "done").unlink()
    (job / "done").symlink_to(secret)
    with pytest.raises(UsageError, match="done is a symbolic link"):
        READERS["export"](str(theirs))
