"""Tables, plots and comparisons of sweeps with a frozen backbone say so."""

import json
from pathlib import Path

import pytest

from domainbed.datasets import BENCHMARK, DATASETS
from domainbed.reporting.cells import frozen_backbone
from domainbed.reporting.formats.render import FORMATS, render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.plots import draw_plots
from domainbed.reporting.report import make_report, sweep_titles
from tests.conftest import make_record, write_sweep

LABEL = "frozen efficientnet_lite0"


def write_runs(folder: Path, hparams: list[dict]) -> Path:
    """Write runs on PACS, with these hyperparameters in turn, and fine-tuned runs on VLCS."""
    records = []
    for dataset in ("PACS", "VLCS"):
        for env in range(4):
            record = make_record(dataset, "ERM", (env,), in_acc=(0.5,) * 4, out_acc=(0.5,) * 4)
            if dataset == "PACS":
                record["hparams"] = hparams[env % len(hparams)]
            records.append(record)
    return write_sweep(folder, records)


FROZEN = {"frozen": True, "backbone": "efficientnet_lite0", "resnet18": False}


@pytest.mark.parametrize(
    ("hparams", "label"),
    [
        ([FROZEN], LABEL),
        ([{**FROZEN, "backbone": "resnet50", "resnet18": True}], "frozen resnet18"),
        ([{**FROZEN, "vit": True, "dinov2": True, "resnet50_augmix": True}], "frozen dinov2"),
        ([{**FROZEN, "frozen": False}], ""),
        ([{}], ""),
        ([FROZEN, {}], f"fine-tuned and {LABEL}"),
    ],
)
def test_label(tmp_path: Path, hparams: list[dict], label: str):
    jobs = load_sweep(str(write_runs(tmp_path / "sweep", hparams))).jobs
    assert frozen_backbone(jobs, "PACS") == label
    assert frozen_backbone(jobs, "VLCS") == ""


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"bibtex"}))
def test_every_format_shows_the_label_and_no_published_results(tmp_path: Path, name: str):
    sweep = load_sweep(str(write_runs(tmp_path / "sweep", [FROZEN])))
    report = make_report(sweep, ReportOptions(("training-domain",), compare="published", rename=("PACS=Photos",)))
    text = render(report, name, tmp_path)
    assert f"Photos ({LABEL})" in text.replace(r"\_", "_")  # LaTeX and Markdown escape it
    vlcs, pacs, _ = report.sections[0].tables
    assert [any(cell.reference for cell in table.cells) for table in (pacs, vlcs)] == [False, True]
    if name == "json":
        notes = json.loads(text)["notes"]
        assert any("published results are not shown, because they are from fine-tuned" in note for note in notes)


@pytest.mark.parametrize("frozen", [True, False])
def test_average_over_the_benchmark_has_a_published_result_only_if_all_datasets_are_fine_tuned(
    tmp_path: Path, frozen: bool
):
    records = []
    for dataset in BENCHMARK:
        n = len(DATASETS[dataset].ENVIRONMENTS)
        for env in range(n):
            records.append(make_record(dataset, "ERM", (env,), in_acc=(0.5,) * n, out_acc=(0.5,) * n))
            records[-1]["hparams"] = {**FROZEN, "frozen": frozen and dataset == "PACS"}
    sweep = load_sweep(str(write_sweep(tmp_path / "sweep", records)))
    report = make_report(sweep, ReportOptions(("training-domain",), compare="published"))
    *datasets, averages = report.sections[0].tables
    assert (averages.rows["ERM"][-2].reference is None) == frozen
    assert {t.name for t in datasets if not any(cell.reference for cell in t.cells)} == ({"PACS"} if frozen else set())


def test_plots_show_the_label(tmp_path: Path):
    sweep = load_sweep(str(write_runs(tmp_path / "sweep", [FROZEN])))
    titles = sweep_titles(sweep, ())
    captions = [
        plot.caption
        for plot in draw_plots(sweep, "training-domain", ["PACS"], ["ERM"], print, titles)
        if not plot.stem.startswith("bars")
    ]
    assert captions
    assert all(f"PACS ({LABEL})" in caption for caption in captions), captions
