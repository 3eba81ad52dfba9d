"""Every format of a small sweep with gaps, compared with golden files and the slow reference; LaTeX compiles."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from domainbed.algorithms import ALGORITHMS as REGISTERED
from domainbed.datasets import BENCHMARK, DATASETS
from domainbed.errors import UsageError
from domainbed.model_selection import SELECTION_METHODS
from domainbed.reporting.cells import AVERAGE, AVERAGES, RELATIVE
from domainbed.reporting.formats.latex import DOCUMENT, escape
from domainbed.reporting.formats.render import render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.notes import algorithm_notes
from domainbed.reporting.published import find_published
from domainbed.reporting.report import Report, make_report
from domainbed.reporting.statistics import bootstrap_interval
from domainbed.reporting.titles import Titles
from domainbed.scripts import sweep_parser
from domainbed.scripts.collect_results import main
from domainbed.sweep.log import log_launch
from domainbed.sweep.status import JobState
from tests.conftest import make_record, write_sweep
from tests.reference import dataset_table
from tests.reporting.sweeps import (
    ALGORITHMS,
    FILES,
    GOLDEN,
    formatted,
    golden_records,
    golden_report,
    write_golden_sweep,
)

ENVIRONMENTS = {"ColoredMNIST": ["+90%", "+80%", "-90%"], "PACS": ["A", "C", "P", "S"]}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return golden_report(write_golden_sweep(tmp_path / "a_sweep"))


def test_formats_equal_golden_files(tmp_path: Path):
    """`python -m tests.reporting.sweeps` rewrites them."""
    report = golden_report(write_golden_sweep(tmp_path / "a_sweep"), ("training-domain", "leave-one-domain-out"))
    for name, file in FILES.items():
        assert formatted(report, name) == (GOLDEN / file).read_text(), name
    tables = render(report, "latex-fragment", Path())
    assert render(report, "latex", Path()) == DOCUMENT.format(tables=tables, bibliography="", print_bibliography="")


def test_json_equals_csv_and_report(report: Report):
    content = json.loads(render(report, "json", Path()))
    assert list(content) == [
        *("input_dir", "progress", "cells", "best", "versus", "power", "significance", "ranks"),
        *("on_the_line", "no_table", "notes", "problems"),
    ]
    assert (content["input_dir"], content["progress"]) == (str(report.sweep.folder), report.progress)
    assert (content["notes"], content["problems"]) == (report.notes, report.sweep.problems)
    assert content["no_table"] == {}
    rows = list(csv.DictReader(io.StringIO(render(report, "csv", Path()))))
    assert rows == [{k: "" if v is None else str(v) for k, v in cell.items()} for cell in content["cells"]]
    best = pd.concat([section.best.assign(selection=section.selection) for section in report.sections])
    assert content["best"] == best.to_dict("records")
    comparisons = [c._asdict() | {"selection": s.selection} for s in report.sections for c in s.versus]
    assert len(comparisons) == 3 * (2 + 1)
    assert [list(c) for c in content["versus"]] == [list(c) for c in comparisons]
    assert pd.DataFrame(content["versus"]).fillna(-1).to_dict("records") == (
        pd.DataFrame(comparisons).fillna(-1).to_dict("records")
    )


def test_json_equals_tables(report: Report):
    tables = [table for section in report.sections for table in section.tables]
    cells = [cell for table in tables for cell in table.cells]
    fields = ("selection", "table", "algorithm", "column", "mean", "standard_error", "low", "high", "trials")
    for row, cell in zip(json.loads(render(report, "json", Path()))["cells"], cells, strict=True):
        for name in (
            *fields,
            "trials_requested",
            "runs_requested",
            "runs_unusable",
            "unfinished_selected",
            "difference",
        ):
            value = getattr(cell, name)
            assert row[name] == (None if value != value else value)  # JSON has null for NaN
        assert {state: row[f"runs_{state.name.lower()}"] for state in JobState if cell.runs[state]} == +cell.runs
        reference = tuple(row[name] for name in ("published", "published_error", "source"))
        assert reference == (tuple(cell.reference) if cell.reference else (None, None, None))


def test_every_number_equals_slow_reference(tmp_path: Path):
    records = golden_records()
    report = make_report(load_sweep(str(write_sweep(tmp_path, records))), ReportOptions())
    cells = pd.read_csv(io.StringIO(render(report, "csv", Path())), dtype={"column": str})
    cells = cells.set_index(["selection", "table", "algorithm", "column"])
    compared = 0
    for method, (dataset, names), algorithm in itertools.product(SELECTION_METHODS, ENVIRONMENTS.items(), ALGORITHMS):
        group = [r for r in records if (r["args"]["dataset"], r["args"]["algorithm"]) == (dataset, algorithm)]
        reference = dataset_table(method, group, dataset, algorithm, len(names))
        for column, expected in reference.items():
            name = "Avg" if column == "Avg" else names[column]
            if (method, dataset, algorithm, name) not in cells.index:
                assert method == "leave-one-domain-out"
                continue
            cell = cells.loc[(method, dataset, algorithm, name)]
            if expected is None:
                assert np.isnan(cell["mean"])
            else:
                assert (cell["mean"], cell["standard_error"]) == pytest.approx(expected, abs=1e-9)
                compared += 1
    assert compared == 2 * 2 * (4 + 5) + 2 * 4  # two methods on both, leave-one-domain-out on ColoredMNIST


def test_rank_is_mean_over_datasets(tmp_path: Path):
    """Ties share their mean rank. An algorithm that lacks a dataset has no rank and does not affect other ranks."""
    accuracies = {"ERM": (0.5, 0.9), "CORAL": (0.5, 0.8), "IRM": (0.4, 0.7), "Half": (0.6, None)}
    records = [
        make_record(dataset, algorithm, (env,), in_acc=(accuracy,) * 3)
        for algorithm, pair in accuracies.items()
        for dataset, accuracy in zip(("ColoredMNIST", "ColoredDigits"), pair, strict=True)
        for env in range(3 if accuracy is not None else 0)
    ]
    report = make_report(load_sweep(str(write_sweep(tmp_path, records))), ReportOptions(["training-domain"]))
    (averages,) = [table for table in report.sections[0].tables if table.name == AVERAGES]
    assert averages.columns[-2:] == ["Avg", "Rank"]
    ranks = {algorithm: cells[-1].mean for algorithm, cells in averages.rows.items()}
    assert ranks.pop("Half") != ranks["ERM"]  # NaN
    assert ranks == {"ERM": (1.5 + 1) / 2, "CORAL": (1.5 + 2) / 2, "IRM": 3.0}
    assert [cells[-1].place for cells in averages.rows.values()] == [1, 2, 0, 0], "the lowest rank is the best"


def test_equal_printed_numbers_share_a_place(tmp_path: Path):
    accuracies = {"A": 0.70001, "B": 0.70004, "C": 0.69, "D": 0.68}
    records = [
        make_record("ColoredDigits", a, (env,), in_acc=(x,) * 3) for a, x in accuracies.items() for env in range(3)
    ]
    sweep = load_sweep(str(write_sweep(tmp_path, records)))

    def places(decimals: int) -> list[int]:
        table = make_report(sweep, ReportOptions(["training-domain"], decimals=decimals)).sections[0].tables[0]
        return [cells[0].place for cells in table.rows.values()]

    assert places(1) == [1, 1, 2, 0]
    assert places(3) == [2, 1, 0, 0]
    assert places(0) == [1, 1, 2, 0]


def test_published_results_of_cells(report: Report):
    (table,) = [t for t in report.sections[0].tables if t.name == "PACS"]
    photo = table.rows["ERM"][2]
    assert (photo.column, photo.reference) == ("P", find_published("training-domain", "PACS", "P", "ERM"))
    assert photo.reference == (97.2, 0.3, "DomainBed 7df6f06 (2020)")
    assert photo.difference == pytest.approx(photo.mean - 97.2)
    assert [cell.reference is None for cell in table.rows["Fishr"]] == [True] * 4 + [False], (
        "the Fishr paper has only averages"
    )
    assert find_published("test-domain", "PACS", "Avg", "Fish").source == "Fishr talk slides (ICML 2022)"
    assert np.isnan(find_published("test-domain", "PACS", "Avg", "Fish").standard_error)
    rotated = [find_published("training-domain", "RotatedMNIST", str(angle), "ERM") for angle in range(0, 90, 15)]
    assert all(rotated), "names of environments that look like numbers"


def test_published_average_requires_the_whole_benchmark(tmp_path: Path):
    datasets = {"ColoredMNIST": 3, "RotatedMNIST": 6, "VLCS": 4, "PACS": 4, "OfficeHome": 4, "TerraIncognita": 4}
    datasets["DomainNet"] = 6
    for n in (7, 6):
        records = [
            make_record(dataset, "ERM", (env,), in_acc=(0.5,) * n_envs, out_acc=(0.5,) * n_envs)
            for dataset, n_envs in list(datasets.items())[:n]
            for env in range(n_envs)
        ]
        folder = write_sweep(tmp_path / str(n), records)
        report = make_report(load_sweep(str(folder)), ReportOptions(["training-domain"], compare="published"))
        average = report.sections[0].tables[-1].rows["ERM"][-2]
        assert average.column == "Avg"
        assert (average.reference is not None) == (n == 7)
    assert find_published("training-domain", "Avg", "Avg", "ERM").accuracy == 66.6


@pytest.mark.parametrize("selection", ["training-domain", "leave-one-domain-out", "test-domain"])
def test_published_averages_are_those_of_their_cells(selection: str):
    """Transcription errors would show: the average of a dataset is that of its test environments, which are rounded."""
    n_checked = 0
    for dataset in BENCHMARK:
        columns = [str(name) for name in DATASETS[dataset].ENVIRONMENTS]
        for algorithm in REGISTERED.builtin_names:
            cells = [find_published(selection, dataset, column, algorithm) for column in columns]
            average = find_published(selection, dataset, "Avg", algorithm)
            if all(cells):
                assert len({cell.source for cell in cells}) == 1
                assert average is not None
                mean = np.mean([cell.accuracy for cell in cells])
                assert average.accuracy == pytest.approx(mean, abs=0.15), (dataset, algorithm)
                n_checked += 1
    assert n_checked == 14 * len(BENCHMARK)


def test_algorithms_whose_code_has_changed_are_named():
    assert algorithm_notes(["ERM", "Fishr"], Titles()) == []
    (note,) = algorithm_notes(["ERM", "DANN", "Mixup"], Titles({"DANN": "adversarial"}))
    assert note.endswith(
        "follows: adversarial (its gradient penalty had no effect), Mixup (mixup_alpha was 0.1 in all draws)."
    )


SETTINGS = "hparams None, holdout_fraction 0.2, task domain_generalization"
ROTATION = (
    "RotatedMNIST: the published tables used bicubic rotation; this package rotates bilinearly, as DomainBed does now."
)


@pytest.mark.parametrize(
    ("args", "difference"),
    [
        ({}, ""),
        ({"precision": "fp32"}, ""),
        ({"precision": "bf16"}, f"{SETTINGS}, precision bf16"),
        ({"checkpoint_freq": 100}, ""),
        ({"checkpoint_freq": 40}, "40 steps between evaluations (published: 100)"),
        ({"checkpoint_freq": 40, "averaging": "swad"}, ""),  # its paper's own
        ({"protocol": "2021"}, ""),
        ({"protocol": "head"}, f"{SETTINGS}, protocol head"),
        ({"clean_evaluation": True, "precision": "fp32"}, f"{SETTINGS}, clean_evaluation, precision fp32"),
        ({"task": None}, SETTINGS.replace("domain_generalization", "None")),
        ({"task": ...}, ""),  # DomainBed's records of 2020 have no task
    ],
    ids=str,
)
def test_differences_from_published_protocol(tmp_path: Path, args: dict, difference: str):
    records = [
        make_record("RotatedMNIST", "ERM", (env,), trial, draw, in_acc=(0.5,) * 6, out_acc=(0.5,) * 6)
        for env, trial, draw in itertools.product(range(6), range(3), range(20))
    ]
    for record in records:
        record["args"] = {name: v for name, v in {**record["args"], **args}.items() if v is not ...}
        record["args"]["steps"] = 5001
    notes = make_report(load_sweep(str(write_sweep(tmp_path, records))), ReportOptions(compare="published")).notes
    expected = [f"RotatedMNIST is not comparable with the published results: {difference}."] if difference else []
    assert [note for note in notes if note.startswith("RotatedMNIST")] == [*expected, ROTATION]


def test_bootstrap_intervals_of_cells_and_averages(tmp_path: Path):
    rng = np.random.RandomState(1)
    accuracies = rng.rand(2, 3, 4)  # [datasets, environments, trials]
    records = [
        make_record(dataset, "ERM", (env,), trial, in_acc=(accuracies[d, env, trial],) * 3)
        for d, dataset in enumerate(("ColoredMNIST", "ColoredDigits"))
        for env, trial in itertools.product(range(3), range(4))
    ]
    report = make_report(
        load_sweep(str(write_sweep(tmp_path, records))), ReportOptions(["training-domain"], interval="bootstrap")
    )
    digits, mnist, averages = report.sections[0].tables
    assert (digits.name, mnist.name) == ("ColoredDigits", "ColoredMNIST")
    first, average = mnist.rows["ERM"][0], mnist.rows["ERM"][-1]
    assert (first.low, first.high) == pytest.approx(bootstrap_interval(100 * accuracies[0, :1].T))
    assert (average.low, average.high) == pytest.approx(bootstrap_interval(100 * accuracies[0].T))
    overall = averages.rows["ERM"][-2]
    scores = 100 * np.concatenate([accuracies[1], accuracies[0]]).T
    assert (overall.low, overall.high) == pytest.approx(bootstrap_interval(scores))
    assert mnist.format_result(first) == f"{first.mean:.1f} [{first.low:.1f}, {first.high:.1f}]"


def test_counts_of_requested_runs(report: Report):
    cells = json.loads(render(report, "json", Path()))["cells"]
    missing = [cell for cell in cells if (cell["algorithm"], cell["column"]) == ("50%_off & more", "A")]
    assert [(cell["mean"], cell["runs_requested"]) for cell in missing] == [(None, 0)] * 3
    key = ("training-domain", "ColoredMNIST", "Fishr", "+80%")
    (fishr,) = [c for c in cells if (c["selection"], c["table"], c["algorithm"], c["column"]) == key]
    assert (fishr["runs_requested"], fishr["runs_done"], fishr["runs_incomplete"]) == (4, 3, 1)
    best = report.sections[0].best
    best = best[(best["dataset"] == "ColoredMNIST") & (best["algorithm"] == "Fishr") & (best["test_env"] == 1)]
    assert 100 * best["test_acc"].mean() == pytest.approx(fishr["mean"])
    assert len(report.sweep.problems) == 4


def relative_report(folder: Path, rename: tuple[str, ...] = (), cite: bool = False) -> Report:
    write_golden_sweep(folder)
    options = ReportOptions(("training-domain",), relative_to="ERM", rename=rename, cite=cite)
    return make_report(load_sweep(str(folder)), options)


def test_relative_column_is_the_difference_of_the_averages(tmp_path: Path, report: Report):
    relative = relative_report(tmp_path / "relative")
    for table, plain in zip(relative.sections[0].tables, report.sections[0].tables, strict=True):
        at = table.columns.index(RELATIVE)
        assert table.columns[at - 1] == AVERAGE
        assert table.headers[at] == "vs. ERM"
        reference = table.rows["ERM"][at - 1].mean
        for algorithm, cells in table.rows.items():
            difference = cells[at].mean
            np.testing.assert_equal(difference, cells[at - 1].mean - reference)
            texts = [table.format_result(cell) for cell in cells]
            if algorithm == "ERM" or np.isnan(difference):
                assert texts[at] == ("-" if algorithm == "ERM" else "X")
            else:
                assert texts[at] == f"{difference:+.1f}"
            assert cells[at].place == 0
            # All else is as without the option.
            del texts[at]
            assert texts == [plain.format_result(cell) for cell in plain.rows[algorithm]]
            places = [cell.place for cell in cells if cell.column != RELATIVE]
            assert places == [cell.place for cell in plain.rows[algorithm]]
        (note,) = [note for note in table.notes if note.startswith("vs. ERM")]
        assert note == "vs. ERM: Avg minus that of ERM, in percentage points, computed before rounding"


def test_single_trial_has_no_error(tmp_path: Path):
    """Its standard error in CSV and JSON stays 0."""
    records = [make_record(test_envs=(e,), trial_seed=t) for e, t in ((0, 0), (0, 1), (1, 0), (2, 0))]
    sweep = load_sweep(str(write_sweep(tmp_path, records)))
    for interval, two in (("standard-error", "50.0 +/- 0.0"), ("bootstrap", "50.0 [50.0, 50.0]")):
        report = make_report(sweep, ReportOptions(("training-domain",), interval=interval))
        table = report.sections[0].tables[0]
        assert [table.format_result(cell) for cell in table.rows["ERM"]] == [two, *["50.0 (n = 1)"] * 3]
        assert report.sections[0].tables[-1].format_result(report.sections[0].tables[-1].rows["ERM"][1]) == "50.0"
        assert len([note for note in table.notes if note.startswith("n = 1: a single trial, which has no ")]) == 1
        assert {cell["standard_error"] for cell in json.loads(render(report, "json", Path()))["cells"]} == {0.0, None}
        assert r"50.0 ($n = 1$)$^{*}$" in render(report, "latex", Path())


def test_difference_from_an_incomplete_algorithm_is_marked(tmp_path: Path):
    runs = [("ERM", 0), ("Fishr", 0), ("Fishr", 1)]
    write_sweep(
        tmp_path, [make_record("ColoredDigits", name, (env,), trial) for name, trial in runs for env in range(3)]
    )
    report = make_report(load_sweep(str(tmp_path)), ReportOptions(("training-domain",), relative_to="ERM"))
    for table in report.sections[0].tables:
        marks = {cell.column: cell.mark for cell in table.rows["Fishr"]}
        assert marks["vs."] == "*"
        assert marks[AVERAGE] == ""


def test_runs_of_environments_that_cannot_be_tested_on_are_in_no_table(tmp_path: Path):
    """DomainBed launches them."""
    runs = itertools.product(("ERM", "Fishr"), range(3), range(2), range(2))
    write_sweep(tmp_path, [make_record("SpawriousO2O_easy", name, (env,), t, draw) for name, env, t, draw in runs])
    report = make_report(load_sweep(str(tmp_path)), ReportOptions(significance=True, on_the_line=True))
    for format_name in ("text", "markdown", "latex", "csv", "json", "html"):
        assert render(report, format_name, Path())
    assert {cell.column for cell in report.sections[0].tables[0].cells} == {"Test", "Avg"}


def test_first_cells_of_all_latex_tables_are_protected(tmp_path: Path):
    """A row that begins with [ or * would be the argument of the row break before it."""
    runs = itertools.product(("ERM", "Fishr"), range(3), range(2), range(2))
    write_sweep(tmp_path, [make_record("ColoredDigits", name, (env,), t, draw) for name, env, t, draw in runs])
    rename = ("ERM=[base]", "Fishr=*ours")
    options = ReportOptions(versus=("Fishr", "ERM"), significance=True, on_the_line=True, power=True, rename=rename)
    tex = render(make_report(load_sweep(str(tmp_path)), options), "latex-fragment", Path())
    assert tex.count("{}[base]") >= 3
    assert not re.search(r"^\s*[\[*]", tex, re.MULTILINE)


# --- Printed names


RENAME = ("Fishr=Fishr (ours)", "ColoredMNIST=CMNIST", "PACS/A=Art", "-90%=anti", "50%_off & more=a=b", "Avg=Mean")


def test_renamed_tables_have_the_same_numbers(tmp_path: Path, report: Report):
    renamed = relative_report(tmp_path / "renamed", RENAME)
    text = render(renamed, "text", Path())
    assert re.search(r"^CMNIST\nAlgorithm +\+90% +\+80% +anti +Mean +vs\. ERM\n", text, re.MULTILINE)
    assert re.search(r"^PACS\nAlgorithm +Art +C +P +S +Mean +vs\. ERM\n", text, re.MULTILINE)
    assert re.search(r"^Algorithm +CMNIST +PACS +Mean +vs\. ERM +Rank\n", text, re.MULTILINE)
    assert "(Fishr (ours) on +80%, anti: 2 of 2 trials" in text
    assert not re.search(r"Fishr(?! \(ours)|ColoredMNIST|50%|-90%", text[: text.index("Warnings")])
    rows = list(csv.DictReader(io.StringIO(render(renamed, "csv", Path()))))
    plain = [
        r for r in csv.DictReader(io.StringIO(render(report, "csv", Path()))) if r["selection"] == "training-domain"
    ]
    numbers = [[v for k, v in r.items() if k in ("mean", "standard_error", "trials", "runs_done")] for r in rows]
    assert [n for n, r in zip(numbers, rows, strict=True) if r["column"] != "vs. ERM"] == [
        [v for k, v in r.items() if k in ("mean", "standard_error", "trials", "runs_done")] for r in plain
    ]
    assert {row["algorithm"] for row in rows} == {"ERM", "Fishr (ours)", "a=b"}
    assert {row["table"] for row in rows} == {"CMNIST", "PACS", AVERAGES}
    best = json.loads(render(renamed, "json", Path()))["best"]
    assert {(run["dataset"], run["algorithm"]) for run in best} == {
        *itertools.product(("CMNIST", "PACS"), ("ERM", "Fishr (ours)")),
        ("CMNIST", "a=b"),
    }


# --- LaTeX


@pytest.mark.parametrize("name", ["latex", "latex-fragment", "cite"])
def test_tex_compiles_tables(report: Report, tmp_path: Path, name: str):
    if shutil.which("pdflatex") is None:
        assert not os.environ.get("DOMAINBED_TEST_TEX"), "DOMAINBED_TEST_TEX is set, but pdflatex is not installed"
        pytest.skip("pdflatex is not installed")
    if name == "cite":
        report = relative_report(tmp_path / "relative", RENAME, cite=True)
    document = render(report, "latex" if name == "cite" else name, Path())
    if name == "latex-fragment":
        (tmp_path / "tables.tex").write_text(document)
        document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{tables}\end{document}"
    (tmp_path / "report.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=200)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert "Missing character" not in finished.stdout
    assert "Overfull" not in finished.stdout
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_best_is_bold_and_second_best_underlined(report: Report):
    (table,) = [table for table in report.sections[0].tables if table.name == "PACS"]
    tex = render(report, "latex-fragment", Path())
    rows = tex[tex.index(r"\label{tab:training-domain-PACS}") :].split("\n")
    rows = {
        line.split(" & ")[0]: line.removesuffix(r" \\").split(" & ")[1:] for line in rows[: rows.index(r"\end{table}")]
    }
    for i, column in enumerate(table.columns):
        means = sorted({round(table.rows[a][i].mean, 1) for a in ALGORITHMS}, reverse=True)
        for algorithm in ALGORITHMS:
            is_best = round(table.rows[algorithm][i].mean, 1) == means[0]
            command = r"\textbf{" if is_best else r"\underline{"
            assert rows[algorithm][i].startswith(command), (column, algorithm)


def test_caption_says_what_the_numbers_are(tmp_path: Path):
    write_golden_sweep(tmp_path)
    options = {"standard-error": r"Mean $\pm$ standard error", "bootstrap": r"Mean and 95\% bootstrap interval"}
    for interval, spread in options.items():
        report = make_report(load_sweep(str(tmp_path)), ReportOptions(("training-domain",), interval=interval))
        assert (
            rf"\caption{{PACS: test accuracy in percent, training-domain selection. {spread} over 2 trials with 2 "
            r"hyperparameter draws each. \textbf{Bold}: best of each column; \underline{underlined}: second best.}"
        ) in render(report, "latex-fragment", Path())


def test_caption_counts_trials_and_draws_of_each_algorithm(tmp_path: Path):
    records = [make_record(algorithm="ERM", test_envs=(e,)) for e in range(3)]
    sweep = load_sweep(str(write_sweep(tmp_path, records)))
    tex = render(make_report(sweep, ReportOptions()), "latex-fragment", Path())
    assert "standard error over 1 trial with 1 hyperparameter draw.}" in tex
    assert "Bold" not in tex, "a single algorithm is neither best nor second best"
    words = ["launch", "--datasets", "ColoredMNIST", "--algorithms", "CORAL", "--n_trials", "3", "--n_hparams", "2"]
    words += ["--output_dir", str(tmp_path), "--data_dir", str(tmp_path)]
    log_launch(tmp_path, sweep_parser.grid_of(sweep_parser.parser().parse_args(words)))
    sweep = load_sweep(str(write_sweep(tmp_path, [make_record("ColoredMNIST", test_envs=(e,)) for e in range(3)])))
    tex = render(make_report(sweep, ReportOptions()), "latex-fragment", Path())
    assert "standard error over 1 to 3 trials with 1 to 2 hyperparameter draws each." in tex


def test_citations(tmp_path: Path):
    report = relative_report(tmp_path, ("Fishr=Fishr (ours)",), cite=True)
    tex = render(report, "latex-fragment", Path())
    assert r"Fishr (ours)~\cite{rame2022fishr} & " in tex
    assert r"50\%\_off \& more & " in tex
    assert "% No known reference: 50%_off & more" in tex
    assert r"\caption{PACS~\cite{li2017deeper}: test accuracy in percent, training-domain selection~\cite{gulra" in tex
    cited = {key for keys in re.findall(r"\\cite\{([^}]*)\}", tex) for key in keys.split(",")}
    entries = render(report, "bibtex", Path())
    assert set(re.findall(r"^@\w+\{(\w+),$", entries, re.MULTILINE)) == cited
    document = render(report, "latex", Path())
    assert entries.strip() in document
    assert r"\bibliography{domainbed}" in document


def test_minus_signs():
    assert escape("-90%, [-19.5, -1.3] +2") == r"$-$90\%, [$-$19.5, $-$1.3] +2"
    assert escape("2015-2016 ERM-2 a-b - training-domain \N{MINUS SIGN}3") == (
        "2015-2016 ERM-2 a-b - training-domain $-$3"
    )


def test_latex_escapes_names():
    assert escape(r"a_b%c&d#e$f{g}h~i^j\k<l>m|n") == (
        r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k\textless{}l\textgreater{}m"
        r"\textbar{}n"
    )


# --- Command line


def test_options_filter_and_order_tables(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_sweep(tmp_path, golden_records())
    words = ["--input_dir", str(tmp_path), "--datasets", "PACS", "ColoredMNIST", "--algorithms", "Fishr", "ERM"]
    main([*words, "--selection", "OracleSelectionMethod", "--decimals", "3"])
    out = capsys.readouterr().out
    assert re.findall(r"==== Model selection: (.*) ====", out) == ["test-domain"]
    assert out.index("\nPACS\n") < out.index("\nColoredMNIST\n") < out.index("\nAverages\n")
    assert re.findall(r"^(Fishr|ERM|50)", out, flags=re.MULTILINE) == ["Fishr", "ERM"] * 3
    assert re.search(r"\d\.\d{3} \+/- \d\.\d{3}", out)
    main([*words, "--selection", "training-domain", "IIDAccuracySelectionMethod", "--versus", "Fishr", "ERM"])
    assert capsys.readouterr().out.count("Fishr vs. ERM") == 1
    tables = []
    for given in (["--datasets", "all"], []):
        main([*words[:2], *given])
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


def test_mean_ranks_are_not_rounded_to_integers(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Averages 50, 50 and 60 on one dataset have the ranks 2.5, 2.5 and 1."""
    accuracies = {"ERM": 0.5, "Fishr": 0.5, "IRM": 0.6}
    records = [
        make_record("ColoredMNIST", name, (env,), in_acc=(acc,) * 3, out_acc=(acc,) * 3)
        for name, acc in accuracies.items()
        for env in range(3)
    ]
    main(["--input_dir", str(write_sweep(tmp_path, records)), "--selection", "training-domain", "--decimals", "0"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(accuracies))]
    assert [row[-1] for row in rows[-3:]] == ["2.5", "1.0", "2.5"]


def test_output_is_written_atomically(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    sweep, output = write_sweep(tmp_path / "sweep", golden_records()), tmp_path / "report.md"
    words = ["--input_dir", str(sweep), "--format", "markdown", "--output", str(output)]
    main(words)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(f"written to {output}\n")
    content = output.read_text()
    assert "| Fishr" in content

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        main([*words, "--decimals", "3"])
    assert output.read_text() == content
    assert [path.name for path in tmp_path.iterdir() if path != sweep] == ["report.md"]


def test_output_to_pipes_and_links(tmp_path: Path):
    sweep = write_sweep(tmp_path / "sweep", golden_records())
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    main(["--input_dir", str(sweep), "--output", str(pipe)])
    assert "==== Model selection" in reader.communicate(timeout=60)[0]
    assert pipe.is_fifo()
    target.write_text("before")
    link.symlink_to(target)
    main(["--input_dir", str(sweep), "--output", str(link)])
    assert link.is_symlink()
    assert "==== Model selection" in target.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--versus", "ERM", "ERM"], "--versus requires two different algorithms, not ERM ERM"),
        (["--versus", "ERM"], "--versus requires two different algorithms, not ERM"),
        (["--versus", "ERM", "VREx"], "--versus VREx: this sweep has no such runs"),
        (["--versus", "ERM", "Fishr", "--algorithms", "ERM"], "--versus Fishr: not among --algorithms"),
        (["--versus", "ERM", "Fishr", "--format", "csv"], "--format csv does not support --versus; use --format json"),
        (["--datasets", "PCAS"], "--datasets PCAS: this sweep has no such runs; did you mean PACS?"),
        (["--algorithms", "Fisher"], "--algorithms Fisher: this sweep has no such runs; did you mean Fishr?"),
        (["--selection", "all", "bogus"], "unknown selection method 'bogus'"),
        (["--relative_to", "VREx"], "--relative_to VREx: this sweep has no such runs"),
        (["--relative_to", "Fishr", "--algorithms", "ERM"], "--relative_to Fishr: not among --algorithms"),
        (["--pictures"], "--format text does not support --pictures; use --format html, or the command plot"),
        (["--cite"], "--format text does not support --cite; use --format latex or latex-fragment"),
        (["--rename", "Fishr"], "--rename 'Fishr': expected OLD=NEW, such as"),
        (["--rename", "Fisher=F"], "--rename Fisher: no such algorithm, dataset or environment; did you mean Fishr"),
    ],
)
def test_invalid_options_are_reported(tmp_path: Path, words: list[str], message: str):
    write_sweep(tmp_path, golden_records())
    with pytest.raises(UsageError, match=re.escape(message)):
        main(["--input_dir", str(tmp_path), *words])


def test_dataset_without_records_has_a_table(tmp_path: Path):
    """The environments of Folder are then known only by number; intervals and comparisons omit the dataset."""
    args = sweep_parser.parser().parse_args(
        ["launch", "--datasets", "Folder", "--data_dir", str(tmp_path / "tree"), "--algorithms", "ERM", "Fishr",
         "--n_trials", "1", "--n_hparams", "1", "--output_dir", str(tmp_path / "sweep")]
    )  # fmt: skip
    for environment in ("a", "b"):
        (tmp_path / "tree" / environment / "dog").mkdir(parents=True)
        (tmp_path / "tree" / environment / "dog" / "1.png").write_bytes(b"")
    log_launch(write_sweep(tmp_path / "sweep", golden_records()), sweep_parser.grid_of(args))
    options = ReportOptions(["training-domain"], interval="bootstrap", versus=("Fishr", "ERM"))
    report = make_report(load_sweep(str(tmp_path / "sweep")), options)
    (folder,) = [table for table in report.sections[0].tables if table.name == "Folder"]
    assert folder.columns == ["env0", "env1", "Avg"]
    assert all(cell.is_missing for cell in folder.cells)
    assert folder.rows["ERM"][0].counts == "0 of 1 trials, 0 of 1 runs done (1 not launched)"
