"""The command `plot`: its files, its output, and its errors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from domainbed.errors import UsageError
from domainbed.reporting.load import load_sweep
from domainbed.reporting.plots import style
from domainbed.scripts.plot import main
from tests.conftest import make_record, write_sweep


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    """Two algorithms, three test environments, two draws, two records each."""
    r = np.random.RandomState(0)
    records = []
    for algorithm, env, seed, step in itertools.product(("ERM", "Fishr"), range(3), range(2), (0, 100)):
        in_acc, out_acc = tuple(r.uniform(size=3)), tuple(r.uniform(size=3))
        record = make_record("ColoredDigits", algorithm, (env,), 0, seed, step, in_acc, out_acc)
        record["hparams"]["lr"] = 10.0 ** -(3 + seed)
        records.append(record)
    return write_sweep(tmp_path / "sweep", records)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_all_plots_as_png_and_pdf(sweep_dir: Path, capsys: pytest.CaptureFixture):
    main(["--input_dir", str(sweep_dir), "--dpi", "50"])
    out, err = capsys.readouterr()
    assert err == ""
    written = files(sweep_dir / "plots")
    stems = ["bars-training-domain", "in_out-ColoredDigits", "line-ColoredDigits"]
    stems.append("metrics-ColoredDigits-training-domain")
    for algorithm in ("ERM", "Fishr"):
        stems += [f"{kind}-ColoredDigits-{algorithm}-training-domain" for kind in ("curves", "hparams")]
    assert set(written) == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf", "csv")}
    for name, content in written.items():
        assert str(sweep_dir / "plots" / name) in out
        if name.endswith(".pdf"):
            assert content.startswith(b"%PDF")
            assert content.rstrip().endswith(b"%%EOF")
        elif name.endswith(".csv"):
            assert content.count(b"\n") > 2
        else:
            with Image.open(sweep_dir / "plots" / name) as image:
                image.load()
                assert image.width == 275
                assert image.info["Title"].endswith(".")
    assert out.endswith(f"8 plots in {sweep_dir / 'plots'}, as PNG, PDF and CSV\n")


def test_kinds_and_formats(sweep_dir: Path, capsys: pytest.CaptureFixture):
    options = ["--kind", "line", "curves", "--style", "slides", "--format", "svg", "png", "svg"]
    main(["--input_dir", str(sweep_dir), "--algorithms", "ERM", *options])
    written = files(sweep_dir / "plots")
    stems = ("curves-ColoredDigits-ERM-training-domain", "line-ColoredDigits")
    assert list(written) == [f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "png", "svg")]
    assert b"Accuracies of the runs of ERM" in written[f"{stems[0]}.svg"]
    with Image.open(sweep_dir / "plots" / f"{stems[0]}.png") as image:
        assert image.width == 4.5 * 300
    assert capsys.readouterr().out.endswith(f"2 plots in {sweep_dir / 'plots'}, as SVG, PNG and CSV\n")
    assert style.current_look() == style.LOOKS["paper"]  # as before
    main(["--input_dir", str(sweep_dir), "--algorithms", "ERM", *options])
    assert files(sweep_dir / "plots") == written  # bit for bit, SVG files too


def test_requested_kind_that_cannot_be_drawn(sweep_dir: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(UsageError, match="has nothing to plot"):
        main(["--input_dir", str(sweep_dir), "--kind", "ranks"])
    assert "no mean ranks: Friedman's test requires 3 algorithms" in capsys.readouterr().err


def test_plots_are_reproducible_and_do_not_affect_the_sweep(sweep_dir: Path, tmp_path: Path):
    before = load_sweep(str(sweep_dir))
    for folder in ("one", "two/deep"):
        main(["--input_dir", str(sweep_dir), "--algorithms", "Fishr", "--output_dir", str(tmp_path / folder)])
    assert files(tmp_path / "one") == files(tmp_path / "two" / "deep")
    main(["--input_dir", str(sweep_dir), "--algorithms", "Fishr"])
    after = load_sweep(str(sweep_dir))  # with a folder `plots` next to the jobs
    assert after.problems == before.problems
    assert len(after.records) == len(before.records)


def test_one_algorithm_by_domainbeds_method_name(sweep_dir: Path):
    main(["--input_dir", str(sweep_dir), "--selection", "OracleSelectionMethod", "--algorithms", "Fishr", "Fishr"])
    assert {path.stem for path in (sweep_dir / "plots").iterdir()} == {
        "bars-test-domain",
        "in_out-ColoredDigits",
        "line-ColoredDigits",
        "metrics-ColoredDigits-test-domain",
        "curves-ColoredDigits-Fishr-test-domain",
        "hparams-ColoredDigits-Fishr-test-domain",
    }


def test_plots_that_cannot_be_drawn_are_reported(sweep_dir: Path, capsys: pytest.CaptureFixture):
    main(["--input_dir", str(sweep_dir), "--selection", "leave-one-domain-out"])
    out, err = capsys.readouterr()
    assert {path.stem for path in (sweep_dir / "plots").iterdir()} == {"in_out-ColoredDigits", "line-ColoredDigits"}
    assert "2 plots in" in out
    assert all(line.startswith("no ") and "--leave_one_out" in line for line in err.splitlines())
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--datasets", "ColoredDigit"], "--datasets ColoredDigit: this sweep has no such runs; did you mean ColoredD"),
        (["--algorithms", "ERM", "Fishy"], "--algorithms Fishy: this sweep has no such runs; did you mean Fishr"),
        (["--selection", "test_domain"], "unknown selection method 'test_domain'; did you mean test-domain"),
        (["--rename", "Fisher=F"], "--rename Fisher: no such algorithm, dataset or environment; did you mean Fishr"),
        (["--baseline", "Fisher"], "--baseline Fisher: this sweep has no such runs; did you mean Fishr"),
        (["--kind", "rank"], "--kind rank: no such plot; did you mean ranks"),
        (
            ["--kind", "pie", "bars"],
            "--kind pie: no such plot; choose from bars, ranks, in_out, line, metr",
        ),
        (["--format", "jpg"], "--format jpg: no such format; choose from png, pdf, svg"),
        (["--style", "poster"], "invalid --style 'poster'; choose from paper, slides"),
        (["--dpi", "0"], "--dpi must be at least 10 and at most 2,400, not 0"),
    ],
)
def test_mistakes(sweep_dir: Path, args: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        main(["--input_dir", str(sweep_dir), *args])
    assert not (sweep_dir / "plots").exists()


def test_nothing_to_plot(tmp_path: Path):
    write_sweep(tmp_path, [make_record(test_envs=(0, 1))])
    with pytest.raises(UsageError, match="has nothing to plot"):
        main(["--input_dir", str(tmp_path)])
    assert not (tmp_path / "plots").exists()


def test_failed_write_keeps_previous_file(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch):
    main(["--input_dir", str(sweep_dir), "--dpi", "40"])
    before = files(sweep_dir / "plots")

    def write_partially(figure, file, format, dpi, caption):
        file.write(b"incomplete")
        raise OSError("No space left on device")

    monkeypatch.setattr(style, "write_figure", write_partially)
    with pytest.raises(OSError, match="No space left"):
        main(["--input_dir", str(sweep_dir), "--dpi", "80"])
    assert files(sweep_dir / "plots") == before


def test_as_a_process_without_display(sweep_dir: Path, run_module):
    finished = run_module(
        "plot", "--input_dir", sweep_dir, env={"MPLBACKEND": "TkAgg", "PATH": "", "HOME": str(sweep_dir)}
    )
    assert finished.returncode == 0, finished.stderr
    assert len(list((sweep_dir / "plots").iterdir())) == 24
