"""The landscape command: output, files and error messages."""

import errno
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from domainbed.engine.config import JobConfig
from domainbed.errors import AlgorithmError, UsageError
from domainbed.landscape import command
from domainbed.landscape.domain import DomainStatistics
from domainbed.landscape.measure import Landscape
from domainbed.reporting.load import load_sweep
from domainbed.scripts import sweep
from domainbed.scripts.landscape import main, parser
from tests.conftest import make_record, write_sweep
from tests.processes import start_quickly


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep of two algorithms and trials, with the models of every evaluation."""
    folder = tmp_path_factory.mktemp("trained") / "sweep"
    args = ["launch", "--datasets", "ColoredDigits", "--algorithms", "ERM", "Fishr", "--n_hparams", "1"]
    args += ["--n_trials", "2", "--steps", "3", "--output_dir", str(folder), "--skip_confirmation"]
    with start_quickly():
        assert sweep.main([*args, "--track", "landscape", "--save_model_every_checkpoint", "--workers", "2"]) == 0
    return folder


@pytest.fixture
def sweep_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


def finished_jobs(sweep_dir: Path) -> list[Path]:
    return [path.parent for path in sorted(sweep_dir.glob("*/done"))]


def run_without_plots(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domainbed.landscape.plots.landscape_figures", lambda landscapes, title: ())
    main([*args, "--no_slices"])


@pytest.mark.slow
def test_measures_a_run(sweep_dir: Path, capsys: pytest.CaptureFixture):
    job = finished_jobs(sweep_dir)[0]
    main(["--run", str(job), "--images", "60"])
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    assert f": {job / 'model.pkl'}\n" in printed.out
    assert "Inconsistency, ε = 0.1" in printed.out
    content = json.loads((job / "landscape" / "landscape.json").read_text())
    assert content["images"] == [60] * 3
    for name in ("lines", "planes", "distances"):
        with Image.open(job / "landscape" / f"landscape-{name}.png") as image:
            assert image.width > 700
        assert (job / "landscape" / f"landscape-{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_compares_the_algorithms_of_a_sweep(
    sweep_dir: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    main(["--input_dir", str(sweep_dir), "--test_env", "-90%", "--images", "60"])
    printed = capsys.readouterr()
    assert "warning" not in printed.err
    assert "ColoredDigits, test -90%, runs selected by training-domain; in splits" in printed.out
    assert printed.out.splitlines()[2].split() == ["ERM", "Fishr"]
    (file,) = (sweep_dir / "landscape").glob("*.json")
    content = json.loads(file.read_text())
    assert [len(content["runs"][name]) for name in ("ERM", "Fishr")] == [2, 2]
    assert ["slices" in run for run in content["runs"]["ERM"]] == [True, False]
    # The folder is not mistaken for a job, and `plot` includes the tracked distances.
    assert not load_sweep(str(sweep_dir)).problems
    from domainbed.reporting.plots import draw_plots

    stems = [
        plot.stem for plot in draw_plots(load_sweep(str(sweep_dir)), "training-domain", ["ColoredDigits"], ["ERM"])
    ]
    assert "landscape-ColoredDigits-training-domain" in stems


@pytest.mark.slow
def test_uses_the_model_of_the_selected_step_or_the_last_one_with_a_warning(
    sweep_dir: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    args = ["--input_dir", str(sweep_dir), "--selection", "OracleSelectionMethod"]
    args += ["--test_env", "0", "--algorithms", "ERM"]
    run_without_plots(args, monkeypatch)
    assert "warning" not in capsys.readouterr().err
    (file,) = (sweep_dir / "landscape").glob("*.json")
    models = [run["model"] for run in json.loads(file.read_text())["runs"]["ERM"]]
    assert all(Path(model).name == "model_step2.pkl" for model in models)  # the oracle chooses the last step
    for model in sweep_dir.glob("*/model_step*.pkl"):
        model.unlink()
    for job in finished_jobs(sweep_dir):  # training-domain now chooses the first step
        records = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
        for record in records:
            record |= {f"env{i}_out_acc": 1.0 if record["step"] == 0 else 0.0 for i in range(3)}
        (job / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run_without_plots(["--input_dir", str(sweep_dir), "--test_env", "0", "--algorithms", "ERM"], monkeypatch)
    error = capsys.readouterr().err
    assert error.count("using the weights of the last step, 2; those of the selected step, 0, were not saved") == 2
    assert error.count("warning: test +90%, ERM, trial ") == 2
    for model in sweep_dir.glob("*/model.pkl"):
        model.unlink()
    with pytest.raises(UsageError, match="none of the selected runs has a model that can be measured"):
        main(["--input_dir", str(sweep_dir), "--test_env", "0"])


@pytest.mark.slow
def test_terminal_without_epsilon_and_overflowing_score(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch):
    job = finished_jobs(sweep_dir)[0]
    terminal = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding="latin-1", write_through=True))
    run_without_plots(["--run", str(job), "--images", "20", "--epsilon", "1e308"], monkeypatch)
    assert b"Inconsistency, ? = 1e+308" in terminal.getvalue()
    content = json.loads((job / "landscape" / "landscape.json").read_text())
    assert None in [score["score"] for score in content["inconsistency"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_files_are_written_before_the_output_is_printed(sweep_dir: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    class ClosedPipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    of_sweep = ["--input_dir", str(sweep_dir), "--test_env", "0"]
    args = ["--run", str(finished_jobs(sweep_dir)[0])] if kind == "run" else of_sweep
    monkeypatch.setattr("sys.stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        main([*args, "--images", "20", "--no_slices"])
    folder = Path(args[1]) / "landscape"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".png", ".pdf"}


@pytest.fixture
def fake_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a sweep of two algorithms and trials with empty models, which are not measured really."""
    records = [
        make_record("Mine", algorithm, (env,), trial) | {"environments": ["a b", "a_b", "c"]}
        for env in range(3)
        for algorithm in ("ERM", "Fishr")
        for trial in range(2)
    ]
    folder = write_sweep(tmp_path / "fake", records)
    for done in folder.glob("*/done"):
        done.with_name("model.pkl").touch()
    monkeypatch.setattr(command, "measure", lambda options, model, with_slices: make_landscape(model))
    monkeypatch.setattr("domainbed.landscape.plots.landscape_figures", lambda landscapes, title: ())
    return folder


def make_landscape(model: Path) -> Landscape:
    vectors = torch.eye(3, dtype=torch.float64)
    statistics = [DomainStatistics(0.1 * i, 0.5, v, v, v, "Hessian") for i, v in enumerate(vectors)]
    config = JobConfig("ColoredDigits", "ERM", (2,))
    return Landscape(model, config, "classifier", 3, "in", ["x", "y", "z"], [9] * 3, 2, statistics, {}, 0.1, None)


def models_in(file: Path) -> dict[str, list[str]]:
    """Return the names of the folders of the measured models, by algorithm."""
    runs = json.loads(file.read_text())["runs"]
    return {name: [Path(run["model"]).parent.name for run in measured] for name, measured in runs.items()}


def test_environments_with_the_same_name_in_files_have_files_of_their_own(fake_sweep: Path):
    expected = {"landscape-Mine-a_b": 0, "landscape-Mine-a_b-2": 1, "landscape-Mine-c": 2}
    for args in ([], ["--test_env", "1"]):  # the same names whichever environments are measured
        main(["--input_dir", str(fake_sweep), *args])
        files = {path.stem: path for path in (fake_sweep / "landscape").iterdir()}
        assert files.keys() == expected.keys()
        for stem, env in expected.items():
            assert models_in(files[stem])["ERM"] == [f"Mine-ERM-{env}-0-0", f"Mine-ERM-{env}-1-0"]


@pytest.mark.parametrize("error", [UsageError("it diverged"), AlgorithmError("it diverged", "report")])
def test_models_that_cannot_be_measured_are_skipped(
    error: Exception, fake_sweep: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    slices = []

    def measure(options: command.LandscapeOptions, model: Path, with_slices: bool) -> Landscape:
        if model.parent.name in ("Mine-ERM-0-0-0", "Mine-Fishr-1-0-0", "Mine-Fishr-1-1-0"):
            raise error
        slices.append((model.parent.name, with_slices))
        return make_landscape(model)

    monkeypatch.setattr(command, "measure", measure)
    main(["--input_dir", str(fake_sweep)])
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "warning: test a b, ERM, trial 0: it diverged; skipped",
        "warning: test a_b, Fishr, trial 0: it diverged; skipped",
        "warning: test a_b, Fishr, trial 1: it diverged; skipped",
    ]
    assert "warning" not in printed.out
    assert printed.out.count("runs selected by training-domain") == 3
    first, second = (fake_sweep / "landscape" / f"landscape-Mine-{name}.json" for name in ("a_b", "a_b-2"))
    assert models_in(first) == {"ERM": ["Mine-ERM-0-1-0"], "Fishr": ["Mine-Fishr-0-0-0", "Mine-Fishr-0-1-0"]}
    assert list(models_in(second)) == ["ERM"]
    assert ("Mine-ERM-0-1-0", True) in slices  # drawn for the first trial that was measured


def test_sweep_without_any_usable_model_fails(
    fake_sweep: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def measure(options: command.LandscapeOptions, model: Path, with_slices: bool) -> Landscape:
        raise UsageError("it diverged")

    monkeypatch.setattr(command, "measure", measure)
    with pytest.raises(UsageError, match="none of the selected runs has a model that can be measured"):
        main(["--input_dir", str(fake_sweep), "--test_env", "c"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("it diverged; skipped") == 4


def test_classes_are_checked_before_the_first_model_is_measured(fake_sweep: Path, monkeypatch: pytest.MonkeyPatch):
    results = fake_sweep / "Mine-Fishr-2-1-0" / "results.jsonl"
    record = json.loads(results.read_text())
    record["args"]["imports"] = ["their_module"]
    results.write_text(json.dumps(record) + "\n")
    monkeypatch.setattr(command, "measure", lambda *args, **kwargs: pytest.fail("measured"))
    with pytest.raises(UsageError, match="requires the dataset 'Mine', which is not registered"):
        main(["--input_dir", str(fake_sweep)])
    assert not (fake_sweep / "landscape").exists()


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_output_folder_is_checked_before_measuring(
    fake_sweep: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def denied(dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    monkeypatch.setattr(command, "measure", lambda *args, **kwargs: pytest.fail("measured"))
    args = ["--input_dir", str(fake_sweep)] if kind == "sweep" else ["--run", str(fake_sweep / "Mine-ERM-0-0-0")]
    with pytest.raises(UsageError, match=r"--output_dir .*there: Permission denied"):
        main([*args, "--output_dir", str(tmp_path / "there")])


def test_run_with_only_the_best_model(fake_sweep: Path):
    job = fake_sweep / "Mine-ERM-0-0-0"
    best = (job / "model.pkl").rename(job / "model_best.pkl")
    with pytest.raises(UsageError, match=rf"no model\.pkl in this folder; pass --run {best}$"):
        main(["--run", str(job)])
    main(["--run", str(best)])
    assert (job / "landscape" / "landscape-model_best.json").exists()


def test_help_names_output_files_and_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "500")  # avoid line breaks
    help_text = " ".join(parser().format_help().split())
    assert "landscape.json and landscape-* for --run, landscape-DATASET-ENV.json" in help_text
    assert "(default: the folder landscape next to the model or in the sweep)" in help_text
    assert "selection method for the sweep's runs (default: training-domain)" in help_text


@pytest.mark.slow
def test_invalid_options_raise(sweep_dir: Path, tmp_path: Path):
    job = finished_jobs(sweep_dir)[0]
    (job / "model.pkl").unlink()
    for args, message in (
        (["--run", str(job)], "no model.pkl in this folder"),
        (["--run", str(tmp_path / "none")], "no such file or folder"),
        (["--run", str(job), "--dataset", "PACS"], "require --input_dir"),
        (["--run", str(job), "--selection", "test-domain"], "require --input_dir"),
        (["--input_dir", str(sweep_dir), "--dataset", "PACS"], "--dataset PACS: this sweep has no such runs"),
        (["--input_dir", str(sweep_dir), "--algorithms", "Fisher"], "did you mean Fishr"),
        (["--input_dir", str(sweep_dir), "--test_env", "-9%"], "unknown --test_env '-9%'"),
        (["--input_dir", str(sweep_dir), "--selection", "best"], "unknown selection method 'best'"),
        (["--input_dir", str(sweep_dir), "--selection", "leave-one-domain-out"], "cannot choose any run"),
        (["--run", str(job), "--layers", "some"], "invalid --layers 'some'"),
        (["--run", str(job), "--split", "uda"], "--split 'uda'"),
        (["--run", str(job), "--images", "-1"], "--images must be at least 0"),
        (["--run", str(job), "--epsilon", "nan"], "--epsilon must be at least 0"),
    ):
        with pytest.raises(UsageError, match=None) as raised:
            main(args)
        assert message in str(raised.value)
    assert not (job / "landscape").exists()
    assert not (sweep_dir / "landscape").exists()
