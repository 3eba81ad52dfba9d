"""The data of the page's explorer: equal to the records, whatever these contain."""

import hashlib
import json
import re
import shutil
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from domainbed.errors import printable
from domainbed.reporting import metrics
from domainbed.reporting.formats import explorer
from domainbed.reporting.formats.explorer import explorer_data
from domainbed.reporting.formats.page import as_html
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import Report, make_report
from tests.conftest import make_record, write_sweep
from tests.reporting.sweeps import golden_records, write_golden_sweep
from tests.reporting.test_columns import DecodedBlock
from tests.reporting.test_strange_records import STRANGE, write_strange_sweep


def report_of(folder: Path, **options) -> Report:
    return make_report(load_sweep(str(folder)), ReportOptions(**options))


def decoded_runs(report: Report, folder: Path) -> tuple[DecodedBlock, dict[str, dict]]:
    """Return the block of a report and, by folder, what it says about each run."""
    block = DecodedBlock(explorer_data(report, folder))
    runs = {}
    for dataset in block.header["datasets"]:
        columns = {name: block.column(place) for name, place in dataset["runs"].items()}
        first = np.concatenate([[0], np.cumsum(columns["records"])])
        step = block.column(dataset["records"]["step"])
        test = block.accuracies(dataset["records"]["test"])
        out = [block.accuracies(place) for place in dataset["records"]["out"]]
        metric = {m["name"]: block.floats(m["column"]) for m in dataset["metrics"]}
        for i, name in enumerate(dataset["folders"]):
            rows = range(first[i], first[i + 1])
            runs[unquote(name)] = {
                "dataset": dataset["title"],
                "algorithm": block.header["algorithms"][columns["algorithm"][i]]["title"],
                "test_env": dataset["environments"][columns["env"][i]],
                "trial_seed": dataset["trials"][columns["trial"][i]],
                "hparams_seed": dataset["draws"][columns["draw"][i]],
                "state": dataset["states"][columns["state"][i]],
                "records": [
                    {
                        "step": dataset["steps"][step[row]],
                        "test": test[row],
                        "out": [accuracies[row] for accuracies in out],
                        **{name: values[row] for name, values in metric.items() if not np.isnan(values[row])},
                    }
                    for row in rows
                ],
                "selected": {
                    name: {key: block.column(place)[i] for key, place in selection.items()}
                    for name, selection in zip(block.header["selections"], dataset["selections"], strict=True)
                },
                "hparams": {
                    h["name"]: h["values"][position - 1]
                    for h in dataset["hparams"]
                    if (position := block.column(h["column"])[i])
                },
            }
    return block, runs


@pytest.mark.parametrize("max_values", [explorer.MAX_VALUES, 1])
def test_runs_equal_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_values: int):
    """With few values, only the selected and the last records of a run are in the block."""
    monkeypatch.setattr(explorer, "MAX_VALUES", max_values)
    folder = write_golden_sweep(tmp_path / "a sweep")
    report = report_of(folder)
    block, runs = decoded_runs(report, tmp_path)
    assert block.header["link"] == "a%20sweep"
    selections = {section.selection: report.sweep.select(section.selection) for section in report.sections}
    assert set(runs) == {name for frame in selections.values() for name in frame["folder"]}
    assert any(len(job["test_envs"]) > 1 for _, job in report.sweep.jobs.iterrows()), "these are in no view"
    for name, run in runs.items():
        job = report.sweep.jobs.loc[name]
        assert (run["dataset"], run["algorithm"]) == (job["dataset"], job["algorithm"])
        assert (run["trial_seed"], run["hparams_seed"]) == (job["trial_seed"], job["hparams_seed"])
        assert run["state"] == ("done" if job["done"] else "incomplete")
        (test_env,) = job["test_envs"]
        records = report.sweep.records[report.sweep.records["folder"] == name].set_index("step")
        steps = [record["step"] for record in run["records"]]
        assert steps == sorted(set(steps))
        assert set(steps) == set(records.index) or max_values == 1
        assert max(records.index) in steps
        for record in run["records"]:
            row = records.loc[record["step"]]
            assert record["test"] == pytest.approx(row[f"env{test_env}_in_acc"], abs=1e-4)
            expected = [row[f"env{env}_out_acc"] for env in range(len(record["out"]))]
            assert record["out"] == pytest.approx(expected, abs=1e-4)
        for section in report.sections:
            rows = selections[section.selection].query("folder == @name")
            selected = run["selected"][section.selection]
            assert bool(selected["record"]) == len(rows)
            if len(rows):
                assert steps[selected["record"] - 1] == rows["step"].item()
                assert selected["score"] / 10_000 == pytest.approx(rows["val_acc"].item(), abs=1e-4)
            assert selected["best"] == (name in set(section.best["folder"]))


def test_metrics_and_hyperparameters(tmp_path: Path):
    records = []
    for trial in range(3):
        for step in (0, 100):
            record = make_record(test_envs=(0,), trial_seed=trial, step=step)
            record |= {"loss": [0.5, float("nan"), float("inf")][trial] + step, "note": "text", "flag": True}
            record |= {"penalty": 1e-7 * (1 + step)} if trial == 0 else {}
            record["hparams"] = {"lr": 10.0**-trial, "layers": [64, trial], "resnet18": False} | (
                {"lambda": 5} if trial else {}
            )
            records.append(record)
    report = report_of(write_sweep(tmp_path, records))
    _, runs = decoded_runs(report, tmp_path)
    by_trial = {run["trial_seed"]: run for run in runs.values()}
    assert [record["loss"] for record in by_trial[0]["records"]] == pytest.approx([0.5, 100.5], rel=0.004)
    assert [record["penalty"] for record in by_trial[0]["records"]] == pytest.approx([1e-7, 1.01e-5], rel=0.004)
    for trial in (1, 2):  # not finite, or not recorded
        assert not any({"loss", "penalty"} & set(record) for record in by_trial[trial]["records"])
    assert not any({"note", "flag", "epoch"} & set(record) for run in runs.values() for record in run["records"])
    # Networks of small images ignore resnet18.
    assert by_trial[1]["hparams"] == {"lr": 0.1, "layers": "[64, 1]", "lambda": 5}
    assert "lambda" not in by_trial[0]["hparams"]


def test_number_of_metrics_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "MAX_METRICS", 3)  # one of them the loss, which is constant
    records = [make_record(test_envs=(e,)) | {f"m{i}": float(e) for i in range(9)} for e in range(3)]
    block, _ = decoded_runs(report_of(write_sweep(tmp_path, records)), tmp_path)
    (dataset,) = block.header["datasets"]
    assert [metric["name"] for metric in dataset["metrics"]] == ["m0", "m1"]
    assert dataset["omitted_metrics"] == 9  # with step_time and mem_gb


def test_constant_metrics_are_omitted(tmp_path: Path):
    records = [make_record(test_envs=(e,)) | {"mem_gb": 0.0, "loss": float(e)} for e in range(3)]
    block, _ = decoded_runs(report_of(write_sweep(tmp_path, records)), tmp_path)
    assert [metric["name"] for metric in block.header["datasets"][0]["metrics"]] == ["loss"]


def test_renamed_and_omitted(tmp_path: Path):
    write_sweep(tmp_path, golden_records())
    shown = {"algorithms": ("Fishr",), "datasets": ("PACS",), "selection": ("test-domain",)}
    report = report_of(tmp_path, **shown, rename=("Fishr=Ours", "S=sketch"))
    block, runs = decoded_runs(report, tmp_path)
    assert block.header["selections"] == ["test-domain"]
    assert block.header["algorithms"] == [{"title": "Ours", "style": 1}]  # as if ERM were there
    assert block.header["datasets"][0]["environments"] == ["A", "C", "P", "sketch"]
    assert {run["algorithm"] for run in runs.values()} == {"Ours"}


def test_strange_records(tmp_path: Path):
    report = report_of(write_strange_sweep(tmp_path))
    block, runs = decoded_runs(report, tmp_path)
    names = {name for run in runs.values() for record in run["records"] for name in record}
    assert printable(f"penalty{STRANGE}") in names
    (first,) = (run for run in runs.values() if "lr" not in run["hparams"])
    assert "batch_size" not in first["hparams"]  # 10^400
    assert "loss" not in first["records"][1]  # 1.7e308
    texts = json.dumps(block.header, ensure_ascii=False)
    assert printable(texts) == texts


def test_vendored_files_are_those_in_the_readme():
    folder = Path(explorer.__file__).parent / "vendor"
    listed = dict(re.findall(r"`(\S+\.js)`.*`([0-9a-f]{64})`", (folder / "README.md").read_text()))
    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}


def test_page_contains_the_license(tmp_path: Path):
    report = report_of(write_sweep(tmp_path, [make_record(test_envs=(e,)) for e in range(3)]))
    license = (Path(explorer.__file__).parent / "vendor" / "LICENSE-d3").read_text()
    assert license.strip() in unescape(as_html(report, tmp_path))


def test_unfinished_sweep_without_selectable_runs(tmp_path: Path):
    assert explorer_data(report_of(write_sweep(tmp_path, [make_record(test_envs=(0, 1))])), tmp_path) == ""


def test_job_deleted_while_it_is_read(tmp_path: Path):
    report = report_of(write_sweep(tmp_path, [make_record(test_envs=(e,)) | {"loss": float(e)} for e in range(3)]))
    assert len(report.sweep.records) == 3
    for folder in list(report.sweep.jobs.index)[:2]:
        shutil.rmtree(tmp_path / folder)
    (tmp_path / report.sweep.jobs.index[2] / "results.jsonl").write_text(
        '{"step": 0, "loss": 1.0}\n{"step": [1]}\n<torn'
    )
    _, runs = decoded_runs(report, tmp_path)
    assert len(runs) == 3
