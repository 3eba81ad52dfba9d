"""Names with control characters and lone surrogates, and numbers near the limits, in the records of others."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from domainbed.errors import printable
from domainbed.reporting.formats.page import as_html
from domainbed.reporting.formats.render import FORMATS, render
from domainbed.reporting.frames import to_csv
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import Sweep, load_sweep
from domainbed.reporting.plots import draw_plots, save_figure
from domainbed.reporting.report import Report, make_report
from domainbed.scripts.collect_results import main as collect_results
from domainbed.scripts.list_top_hparams import main as list_top_hparams
from tests.conftest import make_record, write_sweep

STRANGE = "\ud800\x1b]0;owned\x07\u202e"


def write_strange_sweep(folder: Path) -> Path:
    """Write 12 jobs; the records of one have strange names and huge numbers."""
    records = []
    for trial in range(2):
        for draw in range(2):
            for env in range(3):
                for step in (0, 100):
                    record = make_record("Mine", test_envs=(env,), trial_seed=trial, hparams_seed=draw, step=step)
                    record["environments"] = ["+90%", f"=HYPERLINK({STRANGE})", "-90%"]
                    if (trial, draw, env) == (0, 0, 0):
                        record["loss"] = 1.7e308 if step else 5e-324
                        record |= {f"penalty{STRANGE}": -1.7e308 if step else 1.0, "huge": 10**18}
                        record["hparams"] |= {f"name{STRANGE}": f"value{STRANGE}", "lr": 1.7e308, "batch_size": 10**400}
                    else:
                        record["hparams"] |= {"lr": 10.0**-draw}
                    records.append(record)
    return write_sweep(folder, records)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return load_sweep(str(write_strange_sweep(tmp_path_factory.mktemp("sweep"))))


@pytest.fixture(scope="module")
def report(sweep: Sweep) -> Report:
    return make_report(sweep, ReportOptions())


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "bibtex"])  # which has no names of records
def test_text_formats(report: Report, name: str):
    text = render(report, name, Path())
    assert printable(text) == text
    assert "owned" in text


def test_page(report: Report, tmp_path: Path):
    html = as_html(make_report(report.sweep, ReportOptions(pictures=True)), tmp_path)
    assert printable(html) == html
    assert "above 1e+300" in html


def test_plots(sweep: Sweep, tmp_path: Path):
    plots = list(draw_plots(sweep, "training-domain", ["Mine"], ["ERM"]))
    assert [plot.stem.partition("-")[0] for plot in plots] == [
        "bars",
        "in_out",
        "line",
        "metrics",
        "curves",
        "hparams",
    ]
    for stem, caption, figure, _ in plots:
        for path in save_figure(figure, tmp_path, stem, caption, dpi=20):
            assert path.stat().st_size


def test_commands_print_no_control_characters(sweep: Sweep, capsys: pytest.CaptureFixture):
    collect_results(["--input_dir", str(sweep.folder)])
    list_top_hparams(["--input_dir", str(sweep.folder), "--dataset", "Mine", "--algorithm", "ERM", "--test_env", "0"])
    out, err = capsys.readouterr()
    assert printable(out + err) == out + err
    assert r"name\ud800\x1b]0;owned\x07\u202e" in out


def test_csv_cells_are_no_formulas(report: Report, sweep: Sweep, capsys: pytest.CaptureFixture):
    rows = list(csv.DictReader(io.StringIO(render(report, "csv", Path()))))
    columns = {row["column"] for row in rows}
    assert {"+90%", "-90%"} < columns
    assert any(column.startswith("'=HYPERLINK(") for column in columns)
    assert not any(value[:1] in "=@" for row in rows for value in row.values() if value)
    assert any(cell["column"].startswith("=HYPER") for cell in json.loads(render(report, "json", Path()))["cells"])


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1"])
def test_formulas_are_quoted(text: str):
    (header, row) = csv.reader(io.StringIO(to_csv(pd.DataFrame({text: [text], "x": [-1.5]})), newline=""))
    assert header == [f"'{text}", "x"]
    assert row == [f"'{text}", "-1.5"]
