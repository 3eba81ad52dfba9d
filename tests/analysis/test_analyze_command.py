"""The command on a sweep of real jobs: tables agree with reports and with plain references; bad files are skipped."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from domainbed.analysis import analysis, metrics, plots
from domainbed.analysis.analysis import analyze
from domainbed.analysis.command import TABLES, write_all
from domainbed.engine.config import JobConfig
from domainbed.engine.train import train
from domainbed.model_selection import best_hparams
from domainbed.predictions import PREDICTIONS_FILE, load_predictions, save_predictions
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from tests.analysis.test_sheets import MadeSection

ALGORITHMS = ("ERM", "CORAL")


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of 24 jobs with predictions."""
    root = tmp_path_factory.mktemp("sweep")
    for algorithm, env, trial, draw in itertools.product(ALGORITHMS, range(3), range(2), range(2)):
        config = JobConfig(
            "ColoredDigits", algorithm, (env,), trial_seed=trial, hparams_seed=draw, seed=env, steps=5,
            checkpoint_freq=2, hparams='{"batch_size": 16}', skip_model_save=True, save_predictions=True,
        )  # fmt: skip
        train(config.with_output_dir(str(root / config.name())))
    return root


def selected(sweep_dir: Path, selection: str, algorithm: str, env: int) -> pd.DataFrame:
    best = best_hparams(load_sweep(str(sweep_dir)).select(selection))
    return best[(best["algorithm"] == algorithm) & (best["test_env"] == env)]


def arrays_of(sweep_dir: Path, row: pd.Series, part: int = 0) -> tuple[np.ndarray, ...]:
    """Return log-probabilities, labels, predicted classes and names on a split, as a user would read them."""
    with np.load(sweep_dir / row["folder"] / PREDICTIONS_FILE) as arrays:
        position = arrays["steps"].tolist().index(row["step"])
        is_test = arrays["environment"] == row["test_env"]
        rows = (is_test if part == 0 else ~is_test) & (arrays["part"] == part)
        logarithms = arrays["log_probabilities"][position, rows].astype(float)
        return logarithms, arrays["label"][rows], arrays["predicted"][position, rows], arrays["image"][rows]


def table_of(run_command, sweep_dir: Path, name: str, *args: str) -> pd.DataFrame:
    printed = run_command("analyze", "--input_dir", sweep_dir, "--tables", name, "--format", "json", *args)
    assert printed.returncode == 0, printed.stderr
    sections = json.loads(printed.stdout)
    return pd.concat(
        pd.DataFrame(section["tables"][name]).assign(selection=section["selection"])
        for section in sections
        if name in section["tables"]
    )


def test_accuracies_are_those_of_the_report(run_command, sweep_dir: Path):
    table = table_of(run_command, sweep_dir, "accuracy")
    report = make_report(load_sweep(str(sweep_dir)), ReportOptions(selection=("training-domain", "test-domain")))
    n = 0
    for section in report.sections:
        for algorithm, cells in section.tables[0].rows.items():
            for cell in cells:
                is_row = (table["algorithm"] == algorithm) & (table["environment"] == cell.column)
                [row] = table[is_row & (table["selection"] == section.selection)].to_dict("records")
                assert 100 * row["accuracy"] == pytest.approx(cell.mean, abs=1e-9)
                assert 100 * row["accuracy_error"] == pytest.approx(cell.standard_error, abs=1e-9)
                n += 1
    assert n == 16


def test_calibration_is_that_of_the_files(run_command, sweep_dir: Path):
    table = table_of(run_command, sweep_dir, "calibration", "--selection", "training-domain")
    [row] = table.query("algorithm == 'CORAL' and environment == '+80%' and domain == 'test'").to_dict("records")
    losses = []
    for _, run in selected(sweep_dir, "training-domain", "CORAL", 1).iterrows():
        logarithms, labels, _, _ = arrays_of(sweep_dir, run)
        normalized = logarithms - np.log(np.exp(logarithms).sum(1, keepdims=True))
        losses.append(-normalized[np.arange(len(labels)), labels].mean())
    assert row["nll"] == pytest.approx(np.mean(losses))
    assert row["nll_error"] == pytest.approx(np.std(losses) / np.sqrt(2))
    training = table[(table["domain"] == "training") & (table["environment"] != "Avg")]
    assert (training["nll_scaled"] <= training["nll"]).all()
    assert row["ece_if_calibrated"] > 0


def test_images_equal_brute_force(run_command, sweep_dir: Path):
    table = table_of(run_command, sweep_dir, "images", "--selection", "test-domain")
    for env, environment in enumerate(("+90%", "+80%", "-90%")):
        outcomes: dict[tuple[str, int], dict[str, list[bool]]] = {}
        for algorithm in ALGORITHMS:
            for _, run in selected(sweep_dir, "test-domain", algorithm, env).iterrows():
                _, labels, predicted, names = arrays_of(sweep_dir, run)
                for name, label, is_correct in zip(names, labels, predicted == labels, strict=True):
                    outcomes.setdefault((str(name), int(label)), {}).setdefault(algorithm, []).append(is_correct)
        expected = {}
        for (name, label), of_image in outcomes.items():
            solved = [a for a in ALGORITHMS if all(of_image[a])]
            failed = [a for a in ALGORITHMS if not any(of_image[a])]
            if len(failed) == 2:
                expected[name, ("5 to 9", "0 to 4")[label]] = "all fail"
            elif len(solved) == len(failed) == 1:
                expected[name, ("5 to 9", "0 to 4")[label]] = f"only {solved[0]}"
        found = table[table["environment"] == environment]
        assert dict(zip(zip(found["image"], found["label"], strict=True), found["outcome"], strict=True)) == expected


def test_agreement_and_ensembles_equal_brute_force(run_command, sweep_dir: Path):
    agreement = table_of(run_command, sweep_dir, "agreement", "--selection", "test-domain")
    runs = [selected(sweep_dir, "test-domain", algorithm, 2) for algorithm in ALGORITHMS]
    shares = []
    for (_, a), (_, b) in zip(*(of_algorithm.iterrows() for of_algorithm in runs), strict=True):
        shares.append(np.mean(arrays_of(sweep_dir, a)[2] == arrays_of(sweep_dir, b)[2]))
    [row] = agreement[agreement["environment"] == "-90%"].to_dict("records")
    assert (row["algorithm"], row["other"]) == ALGORITHMS
    assert row["agreement"] == pytest.approx(np.mean(shares))
    ensembles = table_of(run_command, sweep_dir, "ensembles", "--selection", "test-domain")
    assert set(ensembles["kind"]) == {"draws"}  # other trials have other images in an environment
    everything = load_sweep(str(sweep_dir)).select("test-domain")
    draws = everything[(everything["algorithm"] == "ERM") & (everything["test_env"] == 0)]
    accuracies, singles = [], []
    for _, of_trial in draws.groupby("trial_seed"):
        members = [arrays_of(sweep_dir, run) for _, run in of_trial.iterrows()]
        mean = np.mean([np.exp(m[0]) / np.exp(m[0]).sum(1, keepdims=True) for m in members], axis=0)
        accuracies.append(np.mean(mean.argmax(1) == members[0][1]))
        singles += [np.mean(m[2] == m[1]) for m in members]
    [row] = ensembles.query("algorithm == 'ERM' and environment == '+90%'").to_dict("records")
    assert row["accuracy"] == pytest.approx(np.mean(accuracies))
    assert row["member_accuracy"] == pytest.approx(np.mean(singles))


def test_bad_files_are_skipped(run_command, sweep_dir: Path, tmp_path: Path):
    """Missing, damaged, swapped and shortened ones."""
    copy = tmp_path / "sweep"
    shutil.copytree(sweep_dir, copy)
    best = selected(copy, "training-domain", "ERM", 0)["folder"].tolist()
    best += selected(copy, "training-domain", "ERM", 1)["folder"].tolist()
    missing, damaged, other, short = (copy / folder / PREDICTIONS_FILE for folder in best)
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    saved = load_predictions(other.parent)
    save_predictions(other.parent, replace(saved, label=1 - saved.label))
    saved = load_predictions(short.parent)
    save_predictions(short.parent, replace(saved, steps=saved.steps + 1))
    args = ("--selection", "training-domain", "--tables", "accuracy", "--datasets", "ColoredDigits")
    printed = run_command("analyze", "--input_dir", copy, *args)
    assert printed.returncode == 0
    warnings = printed.stderr.splitlines()
    assert len(warnings) == 4
    assert any(f"{damaged}: it is damaged" in line for line in warnings)
    assert any(f"{other}: its accuracy on the test environment is" in line for line in warnings)
    assert any(f"{short}: it has predictions of step" in line and "which was selected" in line for line in warnings)
    assert "4 of 12 selected runs have no usable predictions.npz and are left out" in warnings[-1]
    rows = [line.split()[:2] for line in printed.stdout.splitlines() if line.startswith("ERM")]
    assert rows == [["ERM", "-90%"]]  # neither the other environments nor an average
    folder = copy / selected(copy, "training-domain", "ERM", 2)["folder"].iloc[0]
    saved = load_predictions(folder)
    arrays = np.concatenate([saved.log_probabilities, saved.log_probabilities[..., :1]], -1)
    save_predictions(folder, replace(saved, classes=("a", "b", "c"), log_probabilities=arrays))
    printed = run_command("analyze", "--input_dir", copy, *args)
    assert printed.returncode == 0
    assert "1 of 8 runs have other classes than most; skipped" in printed.stderr
    for path in copy.glob(f"*/{PREDICTIONS_FILE}"):
        path.unlink()
    printed = run_command("analyze", "--input_dir", copy)
    assert printed.returncode == 2
    assert "no selected runs with usable predictions.npz; launch with --save_predictions" in printed.stderr


def test_everything_is_written(run_command, sweep_dir: Path, tmp_path: Path):
    args = ("--selection", "IIDAccuracySelectionMethod", "--output_dir", tmp_path / "out")
    args += ("--data_dir", tmp_path, "--max_images", 9)
    printed = run_command(
        "analyze", "--input_dir", sweep_dir, *args, "--format", "markdown", "--output", tmp_path / "t"
    )
    assert printed.returncode == 0, printed.stderr
    assert "| ERM         | +90%" in (tmp_path / "t").read_text()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{name}.csv" for name in TABLES} | {"analysis.txt", "runs-ColoredDigits-training-domain.csv"} <= names
    figures = {name for name in names if name.endswith(".png")}
    sheets = {name for name in figures if name.startswith(("all_fail-ColoredDigits-", "one_solves-ColoredDigits-"))}
    images = pd.read_csv(tmp_path / "out" / "images.csv")
    kinds = images.assign(is_failed=images["outcome"] == "all fail")[["test_env", "is_failed"]].drop_duplicates()
    assert len(figures) == 7 + len(sheets)
    assert len(sheets) == len(kinds) >= 3  # without empty ones
    assert f"tables and {len(figures)} figures, {len(sheets)} of them contact sheets, in" in printed.stderr
    for name in sheets:
        rows = pd.read_csv(tmp_path / "out" / f"{name.removesuffix('.png')}.csv")
        is_failed = images["outcome"].eq("all fail") == name.startswith("all_fail")
        found = images[is_failed & (images["test_env"] == rows["test_env"].iloc[0])]
        assert len(rows) == min(9, len(found))
        assert rows["confidence"].max() == pytest.approx(found["confidence"].max())
        predicted = rows[[f"{algorithm}, trial {trial}" for algorithm in ALGORITHMS for trial in range(2)]]
        assert (predicted.notna().sum(axis=1) == rows["n_runs"]).all()
        is_correct = predicted.eq(rows["label"], axis=0)
        solved = is_correct.T.groupby(lambda column: column.split(",")[0]).any().T.sum(axis=1)
        assert (solved == (0 if name.startswith("all_fail") else 1)).all()
    for name in figures:
        stem = name.removesuffix(".png")
        assert {f"{stem}.csv", f"{stem}.pdf"} <= names
        assert len(pd.read_csv(tmp_path / "out" / f"{stem}.csv")) > 1
    runs = pd.read_csv(tmp_path / "out" / "runs-ColoredDigits-training-domain.csv")
    assert len(runs) == 24
    reliability = pd.read_csv(tmp_path / "out" / "reliability-ColoredDigits-ERM-training-domain.csv")
    assert reliability.groupby(["environment", "scaled"])["size"].sum().tolist() == [2 * 480] * 6


def test_only_requested_tables_are_computed(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch):
    sweep = load_sweep(str(sweep_dir))
    args = (["training-domain"], ["ColoredDigits"], ALGORITHMS)
    [complete] = analyze(sweep, *args, TABLES, pytest.fail)
    assert [table.name for table in complete.tables] == list(TABLES)
    steps = {
        "agreement": (analysis, "measure_agreement"),
        "line": (analysis, "line_points"),
        "images": (analysis, "find_extremes"),
        "ensembles": (analysis, "measure_ensemble"),
    }
    for expected in complete.tables:
        with monkeypatch.context() as patch:
            for name, step in steps.items():
                if name != expected.name:
                    patch.setattr(*step, lambda *args: pytest.fail("computed"))
            if expected.name not in ("calibration", "line"):
                patch.setattr(metrics, "fit_temperature", lambda *args: pytest.fail("computed"))
            [section] = analyze(sweep, *args, [expected.name], pytest.fail)
        [table] = section.tables
        pd.testing.assert_frame_equal(table.frame, expected.frame)


def test_output_folder_is_checked_first(run_command, sweep_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(analysis, "analyze", lambda *args: pytest.fail("analyzed"))
    printed = run_command("analyze", "--input_dir", sweep_dir, "--output_dir", tmp_path / "file")
    assert (printed.returncode, printed.stdout) == (2, "")
    assert f"--output_dir {tmp_path / 'file'}: File exists" in printed.stderr


def test_files_of_similar_names_do_not_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """File names have only the first characters of those of datasets."""
    sections = [MadeSection(["ERM"]) for _ in range(2)]
    for i, section in enumerate(sections):
        section.dataset = f"{'Made' * 10}{i}"
        section.runs = section.runs[i:]
    monkeypatch.setattr(plots, "draw_section", lambda section: iter(()))
    write_all(sections, tmp_path, [], 1, pytest.fail)
    stem = f"runs-{('Made' * 10)[:30]}-training-domain"
    lengths = [len(pd.read_csv(tmp_path / f"{name}.csv")) for name in (stem, f"{stem}-2")]
    assert lengths == [2 * len(section.runs) for section in sections]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "csv"], "--format csv prints one table; add --tables with one of accuracy, calibration"),
        (["--tables", "acuracy"], "acuracy"),
        (["--selection", "oracle"], "unknown selection method 'oracle'"),
        (["--algorithms", "Fishr"], "--algorithms Fishr: this sweep has no such runs"),
        (["--input_dir", "nowhere"], "--input_dir 'nowhere' is not a folder"),
        (["--data_dir", "."], "--data_dir requires --output_dir, the folder for the contact sheets"),
    ],
)
def test_mistakes_are_one_line(run_command, sweep_dir: Path, args: list[str], message: str):
    printed = run_command("analyze", "--input_dir", sweep_dir, *args)
    assert printed.returncode == 2
    assert message in printed.stderr
    assert "Traceback" not in printed.stderr
