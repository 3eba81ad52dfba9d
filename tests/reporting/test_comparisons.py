"""Comparisons of a sweep's algorithms with a baseline and by rank: sentences, gaps, and every format."""

import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from scipy import stats

from domainbed.reporting import plots
from domainbed.reporting.formats.render import render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report
from domainbed.reporting.text_tables import section_findings
from tests.conftest import make_record, write_sweep
from tests.reporting.test_page import by_id, parsed, text_of

SELECTION = "training-domain"


def write(
    folder: Path,
    effects: dict[str, float],
    trials: int = 3,
    datasets: tuple[str, ...] = ("ColoredDigits",),
    noise: float = 0.01,
    skip: tuple[tuple[str, int, int], ...] = (),
) -> Path:
    """Write a sweep in which algorithms differ from each other by `effects`; skip (algorithm, environment, trial)s."""
    rng = np.random.RandomState(0)
    records = []
    for dataset, (name, effect), env, trial in itertools.product(datasets, effects.items(), range(3), range(trials)):
        accuracy = 0.5 + 0.05 * env + 0.03 * trial + effect + noise * rng.randn()
        if (name, env, trial) not in skip:
            records.append(make_record(dataset, name, (env,), trial, 0, 0, (accuracy,) * 3, (0.5,) * 3))
    return write_sweep(folder, records)


def report_of(folder: Path, **options) -> Report:
    return make_report(load_sweep(str(folder)), ReportOptions(selection=(SELECTION,), significance=True, **options))


def sentences(report: Report) -> list[str]:
    (section,) = report.sections
    return [line for findings in section_findings(section, report).values() for line in findings.sentences]


def test_differences_are_reported_in_plain_sentences(tmp_path: Path):
    report = report_of(write(tmp_path, {"ERM": 0, "CORAL": 0.2, "IRM": -0.2, "Fish": 0, "Fishr": 0.001}))
    below, above, rest, friedman, *ranks = sentences(report)  # by p-value
    assert above.startswith("With 3 trials, CORAL is above ERM on ColoredDigits (difference +19.8")
    assert below.startswith("With 3 trials, IRM is below ERM on ColoredDigits (difference -")
    assert below.endswith("corrected p < 0.001).")
    assert rest.startswith("With 3 trials, Fish")
    assert " and Fish" in rest
    assert " do not differ significantly from ERM on ColoredDigits (differences from " in rest
    assert friedman.startswith("Over 3 test environments of 1 dataset, the ranks of 5 algorithms differ (Friedman's")
    assert ranks == [
        "Over 3 test environments of 1 dataset, no algorithm's mean rank differs significantly from that of ERM "
        f"({report.sections[0].significance.ranks.ranks['ERM']:.1f}; critical difference 3.5)."
    ]


def test_two_algorithms_are_compared_by_the_paired_t_test_of_trial_averages(tmp_path: Path):
    report = report_of(write(tmp_path, {"ERM": 0, "CORAL": 0.004}))
    best = report.sections[0].best
    means = 100 * best.groupby(["trial_seed", "algorithm"])["test_acc"].mean().unstack()
    (comparison,) = report.sections[0].significance.datasets[0].comparisons
    reference = stats.ttest_rel(means["CORAL"], means["ERM"])
    assert comparison.difference == pytest.approx((means["CORAL"] - means["ERM"]).mean())
    assert comparison.p_value == comparison.corrected_p_value == pytest.approx(reference.pvalue)
    wide = best.pivot(index=["trial_seed", "test_env"], columns="algorithm", values="test_acc")
    assert comparison.pairs_won == (wide["CORAL"] > wide["ERM"]).sum()
    assert comparison.pairs == 9
    first, second = sentences(report)
    p = f"{reference.pvalue:.2f}"
    assert first == (
        f"With 3 trials, CORAL does not differ significantly from ERM on ColoredDigits (difference "
        f"{comparison.difference:+.1f}, "
        f"corrected p = {p})."
    )
    assert second == (
        "Ranks are not compared: Friedman's test requires at least 3 algorithms with results in every test environment "
        "and at least 2 of these; there are 2 and 3."
    )


def test_a_single_trial_is_said_to_separate_nothing(tmp_path: Path):
    report = report_of(write(tmp_path, {"ERM": 0, "CORAL": 0.3, "Fishr": -0.1}, trials=1))
    lines = sentences(report)
    assert lines[0].startswith(
        "One trial is not enough to compare CORAL and Fishr with ERM on ColoredDigits (differences"
    )
    for name in ("text", "markdown", "json", "csv", "latex"):
        assert "nan" not in render(report, name, Path()).lower().replace("nancy", "")


def test_algorithms_with_gaps_are_excluded_and_named(tmp_path: Path):
    gaps = (("IRM", 2, 1), *(("Fish", 0, trial) for trial in range(3)))
    report = report_of(write(tmp_path, {"ERM": 0, "CORAL": 0.2, "IRM": 0.1, "Fish": 0, "Fishr": 0}, skip=gaps))
    dataset = report.sections[0].significance.datasets[0]
    assert [c.algorithm for c in dataset.comparisons] == ["CORAL", "Fishr"]
    assert {c.compared for c in dataset.comparisons} == {2}
    lines = sentences(report)
    assert "Not compared on ColoredDigits (no result in some trials of ERM): IRM and Fish." in lines
    assert "Not ranked (no result in some test environments): Fish." in lines  # IRM has two trials there
    complete = report_of(write(tmp_path / "complete", {"ERM": 0, "CORAL": 0.2, "Fishr": 0}))
    assert len(complete.sections[0].significance.datasets[0].excluded) == 0


def test_trials_without_the_baseline_are_ignored(tmp_path: Path):
    report = report_of(write(tmp_path, {"ERM": 0, "CORAL": 0.2}, skip=(("ERM", 0, 2),)))
    (comparison,) = report.sections[0].significance.datasets[0].comparisons
    assert comparison.trials == 2
    assert comparison.pairs == 6
    nothing = report_of(
        write(tmp_path / "none", {"ERM": 0, "CORAL": 0.2}, skip=tuple(("ERM", 0, trial) for trial in range(3)))
    )
    assert sentences(nothing)[0] == (
        "No comparison on ColoredDigits: ERM has no trial with a result in every test environment."
    )


def test_datasets_are_ranked_if_there_are_five(tmp_path: Path):
    names = ("MyA", "MyB", "MyC", "MyD", "MyE")
    effects = {"ERM": 0.0, "CORAL": 0.1, "IRM": -0.1, "Fish": 0.05}
    few, many = (report_of(write(tmp_path / str(n), effects, datasets=names[:n])) for n in (4, 5))
    assert few.sections[0].significance.ranks.unit == "test environment"
    assert few.sections[0].significance.ranks.blocks == 12
    ranks = many.sections[0].significance.ranks
    assert (ranks.unit, ranks.blocks) == ("dataset", 5)
    assert ranks.ranks == {"CORAL": 1, "Fish": 2, "ERM": 3, "IRM": 4}
    # Nemenyi's critical difference of four algorithms on five datasets is 2.569 * sqrt(4 * 5 / (6 * 5)) = 2.098 ranks.
    assert ranks.groups == [["CORAL", "Fish", "ERM"], ["Fish", "ERM", "IRM"]]
    assert ranks.separates("CORAL", "IRM")
    lines = sentences(many)
    assert any(line.startswith("With 3 trials, CORAL is above ERM on average over 5 datasets") for line in lines)
    assert any(line.startswith("Over 5 datasets, the ranks of 4 algorithms differ") for line in lines)
    twelve = sentences(few)
    assert any("Over 12 test environments of 4 datasets, CORAL (1.0) ranks above ERM (3.0" in line for line in twelve)


def test_many_algorithms_are_counted_instead_of_named(tmp_path: Path):
    names = ["ERM", *(f"My{i}" for i in range(10))]
    first = sentences(report_of(write(tmp_path, dict.fromkeys(names, 0.0), noise=0.05)))[0]
    assert first.startswith("With 3 trials, the 10 algorithms do not differ significantly from ERM on ColoredDigits (d")


def test_formats_contain_the_same_comparisons(tmp_path: Path):
    folder = write(tmp_path, {"ERM": 0, "CORAL": 0.2, "Fishr": 0.001}, datasets=("MyA", "MyB"))
    report = report_of(folder, baseline="Fishr", rename=("CORAL=C_L (ours)", "Fishr=Fi|shr"))
    text, markdown, latex = (render(report, name, Path()) for name in ("text", "markdown", "latex-fragment"))
    comparisons = [c for d in report.sections[0].significance.datasets for c in d.comparisons]
    assert [(c.dataset, c.algorithm) for c in comparisons] == [
        *itertools.product(("MyA", "MyB", "Avg"), ("ERM", "CORAL"))
    ]
    for line in sentences(report):
        assert line in text
        assert f"* {line}".replace("_", r"\_").replace("|", r"\|").replace("<", r"\<") in markdown
    assert r"C\_L (ours)" in latex
    assert r"\label{tab:training-domain-significance}" in latex
    assert r"\label{tab:training-domain-ranks}" in latex
    rows = list(csv.DictReader(io.StringIO(render(report, "csv", Path()))))
    content = json.loads(render(report, "json", Path()))
    for comparison, row, item in zip(comparisons, rows, content["significance"], strict=True):
        assert float(row["difference"]) == item["difference"] == comparison.difference
        assert float(row["corrected_p_value"]) == item["corrected_p_value"] == comparison.corrected_p_value
        assert row["baseline"] == item["baseline"] == "Fi|shr"
        assert row["sentence"] == item["sentence"]
        assert item["sentence"].endswith(").")
    assert [item["algorithm"] for item in content["ranks"]] == [
        {"CORAL": "C_L (ours)", "Fishr": "Fi|shr"}.get(name, name)
        for name in report.sections[0].significance.ranks.ranks
    ]


def test_command(tmp_path: Path, run_command):
    folder = write(tmp_path, {"ERM": 0, "CORAL": 0.2, "Fishr": 0})
    finished = run_command("collect_results", "--input_dir", folder, "--significance", "--selection", SELECTION)
    assert finished.returncode == 0, finished.stderr
    assert "With 3 trials, CORAL is above ERM on ColoredDigits" in finished.stdout
    plain = run_command("collect_results", "--input_dir", folder, "--selection", SELECTION)
    before, note = plain.stdout.rstrip("\n").rsplit("\n\n", 1)
    assert finished.stdout.startswith(before)  # the tables do not change
    assert finished.stdout.endswith(f"{note}\n")
    unknown = run_command("collect_results", "--input_dir", folder, "--significance", "--baseline", "CORAAL")
    assert unknown.returncode == 2
    assert "--baseline CORAAL: this sweep has no such runs; did you mean CORAL?" in unknown.stderr
    absent = run_command(
        *("collect_results", "--input_dir", folder, "--significance", "--algorithms", "CORAL", "Fishr")
    )
    assert absent.returncode == 2
    assert "--baseline ERM: not among --algorithms; add it there" in absent.stderr


def test_page_contains_sentences_and_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path, {"ERM": 0, "CORAL": 0.2, "Fishr": 0.001})
    monkeypatch.setattr(plots, "draw_plots", lambda *_: [])
    report = report_of(folder, on_the_line=True)
    html = render(report, "html", tmp_path)
    root = parsed(html)
    for name in ("significance", "ranks"):
        assert text_of(by_id(root, SELECTION, "", name)).startswith(("Differences from ERM", "Mean ranks over 3 test"))
    assert "Accuracy on the line" in text_of(by_id(root, "", "line"))
    for line in sentences(report):
        assert f"<li>{escape(line)}</li>" in html
