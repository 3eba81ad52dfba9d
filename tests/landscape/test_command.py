"""The command that looks at landscapes: what it prints and writes, and when it refuses."""

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from domainbed.errors import UsageError
from domainbed.reporting.load import load_sweep
from domainbed.scripts import sweep
from domainbed.scripts.landscape import main, parser


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two algorithms and trials, with the models of every evaluation."""
    folder = tmp_path_factory.mktemp("trained") / "sweep"
    words = ["launch", "--datasets", "ColoredDigits", "--algorithms", "ERM", "Fishr", "--n_hparams", "1"]
    words += ["--n_trials", "2", "--steps", "3", "--output_dir", str(folder), "--skip_confirmation"]
    assert sweep.main([*words, "--track", "landscape", "--save_model_every_checkpoint", "--workers", "2"]) == 0
    return folder


@pytest.fixture
def sweep_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "sweep"))


def jobs(sweep_dir: Path) -> list[Path]:
    return [path.parent for path in sorted(sweep_dir.glob("*/done"))]


def without_pictures(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domainbed.landscape.plots.landscape_figures", lambda landscapes: ())
    main([*words, "--no_slices"])


@pytest.mark.slow
def test_a_run(sweep_dir: Path, capsys: pytest.CaptureFixture):
    job = jobs(sweep_dir)[0]
    main(["--run", str(job), "--images", "60"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f": {job / 'model.pkl'}\n" in printed.out
    assert "Inconsistency, ε = 0.1" in printed.out
    told = json.loads((job / "landscape" / "landscape.json").read_text())
    assert told["images"] == [60] * 3
    for name in ("lines", "planes", "distances"):
        with Image.open(job / "landscape" / f"landscape-{name}.png") as image:
            assert image.width > 700
        assert (job / "landscape" / f"landscape-{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_a_sweep_side_by_side(sweep_dir: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    main(["--sweep", str(sweep_dir), "--test_env", "-90%", "--images", "60"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "ColoredDigits, test -90%, runs that training-domain chose; in splits" in printed.out
    assert printed.out.splitlines()[2].split() == ["ERM", "Fishr"]
    (file,) = (sweep_dir / "landscape").glob("*.json")
    told = json.loads(file.read_text())
    assert [len(told["runs"][name]) for name in ("ERM", "Fishr")] == [2, 2]
    assert ["slices" in run for run in told["runs"]["ERM"]] == [True, False]
    # Nothing else takes the folder for a job's, and the sweep is drawn with what was tracked.
    assert not load_sweep(str(sweep_dir)).problems
    from domainbed.reporting.plots import all_figures

    stems = [
        stem for stem, _, _ in all_figures(load_sweep(str(sweep_dir)), "training-domain", ["ColoredDigits"], ["ERM"])
    ]
    assert "landscape-ColoredDigits-training-domain" in stems


@pytest.mark.slow
def test_the_chosen_steps_model_or_the_last_which_is_told(
    sweep_dir: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    words = ["--sweep", str(sweep_dir), "--select", "OracleSelectionMethod", "--test_env", "0", "--algorithms", "ERM"]
    without_pictures(words, monkeypatch)
    assert "were not kept" not in capsys.readouterr().out
    (file,) = (sweep_dir / "landscape").glob("*.json")
    of_chosen = [run["model"] for run in json.loads(file.read_text())["runs"]["ERM"]]
    assert all(Path(model).name == "model_step2.pkl" for model in of_chosen)  # the oracle's is the last
    for model in sweep_dir.glob("*/model_step*.pkl"):
        model.unlink()
    for job in jobs(sweep_dir):  # a selection that chooses the first step: the others validate worse
        lines = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
        for record in lines:
            record |= {f"env{i}_out_acc": 1.0 if record["step"] == 0 else 0.0 for i in range(3)}
        (job / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    without_pictures(["--sweep", str(sweep_dir), "--test_env", "0", "--algorithms", "ERM"], monkeypatch)
    out = capsys.readouterr().out
    assert out.count("the weights of the last step, 2, for those of the chosen one, 0, were not kept") == 2
    for model in sweep_dir.glob("*/model.pkl"):
        model.unlink()
    with pytest.raises(UsageError, match="holds no models of these runs"):
        main(["--sweep", str(sweep_dir), "--test_env", "0"])


@pytest.mark.slow
def test_a_terminal_without_greek_loses_nothing_nor_does_a_score_too_large(
    sweep_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    job = jobs(sweep_dir)[0]
    terminal = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding="latin-1", write_through=True))
    without_pictures(["--run", str(job), "--images", "20", "--epsilon", "1e308"], monkeypatch)
    assert b"Inconsistency, ? = 1e+308" in terminal.getvalue()
    told = json.loads((job / "landscape" / "landscape.json").read_text())
    assert None in [score["score"] for score in told["inconsistency"]]


@pytest.mark.slow
@pytest.mark.parametrize("of", ["run", "sweep"])
def test_all_is_written_before_it_is_printed(sweep_dir: Path, of: str, monkeypatch: pytest.MonkeyPatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    words = ["--run", str(jobs(sweep_dir)[0])] if of == "run" else ["--sweep", str(sweep_dir), "--test_env", "0"]
    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(BrokenPipeError):
        main([*words, "--images", "20", "--no_slices"])
    folder = Path(words[1]) / "landscape"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".png", ".pdf"}


def test_help_tells_where_files_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "500")  # no line is broken
    told = " ".join(parser().format_help().split())
    assert "of a --run landscape.json and landscape-*, of a --sweep landscape-DATASET-ENV.json" in told
    assert "(default: the folder landscape beside the model, or in the sweep)" in told
    assert "how runs are chosen (default: training-domain)" in told


@pytest.mark.slow
def test_mistakes_are_named(sweep_dir: Path, tmp_path: Path):
    job = jobs(sweep_dir)[0]
    (job / "model.pkl").unlink()
    for words, told in (
        (["--run", str(job)], "holds no model.pkl"),
        (["--run", str(tmp_path / "none")], "there is no such file or folder"),
        (["--run", str(job), "--dataset", "PACS"], "choose from a --sweep"),
        (["--run", str(job), "--select", "test-domain"], "choose from a --sweep"),
        (["--sweep", str(sweep_dir), "--dataset", "PACS"], "--dataset PACS: this sweep has no such runs"),
        (["--sweep", str(sweep_dir), "--algorithms", "Fisher"], "did you mean Fishr"),
        (["--sweep", str(sweep_dir), "--test_env", "-9%"], "unknown --test_env '-9%'"),
        (["--sweep", str(sweep_dir), "--select", "best"], "unknown selection method 'best'"),
        (["--sweep", str(sweep_dir), "--select", "leave-one-domain-out"], "can choose no run"),
        (["--run", str(job), "--layers", "some"], "unknown --layers 'some'"),
        (["--run", str(job), "--split", "uda"], "unknown --split 'uda'"),
        (["--run", str(job), "--images", "-1"], "--images must be at least 0"),
        (["--run", str(job), "--epsilon", "nan"], "--epsilon must be at least 0"),
    ):
        with pytest.raises(UsageError, match=None) as raised:
            main(words)
        assert told in str(raised.value)
    assert not (job / "landscape").exists()
    assert not (sweep_dir / "landscape").exists()
