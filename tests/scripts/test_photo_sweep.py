"""End-to-end tests of photo datasets, from command to table, with real processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed.records import RESULTS_FILE
from tests.conftest import read_sweep
from tests.images import write_tree
from tests.processes import children_of, wait_until


def rows_of(table: str, algorithm: str) -> list[str]:
    return [line for line in table.splitlines() if line.startswith(f"{algorithm} ")]


@pytest.mark.slow
def test_resnets_on_real_pacs_images(run_command, tmp_path: Path, pacs_dir: str):
    for folder in Path(pacs_dir, "PACS").glob("*/*"):
        few = tmp_path / "data" / "PACS" / folder.parent.name / folder.name
        few.mkdir(parents=True)
        for file in sorted(folder.iterdir())[:2]:
            (few / file.name).symlink_to(file)
    finished = run_command(
        "sweep",
        "launch",
        *("--datasets", "PACS", "--data_dir", tmp_path / "data", "--algorithms", "ERM", "Fishr"),
        *("--n_hparams", 1, "--n_trials", 1, "--steps", 1, "--eval", "splits", "--cache", tmp_path / "cache"),
        "--hparams",
        '{"resnet18": true, "pretrained": false, "batch_size": 4, "lr": 0.0001, "resnet_dropout": 0.1}',
        *("--output_dir", tmp_path / "sweep", "--skip_confirmation", "--skip_model_save", "--workers", 2),
    )
    assert finished.returncode == 0, finished.stderr
    assert "8 done after" in finished.stdout
    assert len(list((tmp_path / "cache").glob("PACS-*.pack"))) == 4
    records, problems = read_sweep(tmp_path / "sweep")
    assert not problems
    assert set(records["environments"]) == {("A", "C", "P", "S")}
    tables = run_command("collect_results", "--input_dir", tmp_path / "sweep").stdout
    assert re.search(r"PACS\nAlgorithm +A +C +P +S +Avg\n", tables)
    for algorithm in ("ERM", "Fishr"):
        table, averages, *oracle = rows_of(tables, algorithm)
        assert len(re.findall(r"\d+\.\d \(n = 1\)", table)) == 5
        assert len(re.findall(r"\d+\.\d", averages)) == 3  # average, overall average, and rank
        assert len(oracle) == 2


@pytest.mark.slow
def test_sweep_on_own_tree(run_command, tmp_path: Path):
    tree = write_tree(tmp_path / "seasons", {env: {"ash": 5, "oak": 5} for env in ("autumn", "spring", "winter")})
    command = [
        *("sweep", "launch", "--datasets", "Folder", "--data_dir", tree, "--algorithms", "ERM", "--n_trials", 1),
        *("--n_hparams", 1, "--steps", 1, "--output_dir", tmp_path / "sweep", "--skip_confirmation", "--workers", 1),
        *("--skip_model_save", "--hparams", '{"backbone": "shufflenet_v2_x0_5", "pretrained": false, "batch_size": 2}'),
    ]
    finished = run_command(*command)
    assert finished.returncode == 0, finished.stderr
    assert "ERM on Folder, test spring, hparams 0, trial 0" in finished.stdout
    tables = run_command("collect_results", "--input_dir", tmp_path / "sweep").stdout
    assert re.search(r"Folder\nAlgorithm +autumn +spring +winter +Avg\n", tables)


@pytest.mark.slow
def test_dead_loader_process_is_a_one_line_error(tmp_path: Path):
    tree = write_tree(tmp_path / "seasons", {env: {"ash": 5, "oak": 5} for env in ("spring", "winter")})
    command = [
        *(sys.executable, "-m", "domainbed.scripts.train", "--dataset", "Folder", "--data_dir", tree),
        *("--steps", 10_000, "--checkpoint_freq", 10_000, "--loader_workers", 1, "--output_dir", tmp_path / "job"),
        *("--hparams", '{"backbone": "shufflenet_v2_x0_5", "pretrained": false, "batch_size": 2}'),
    ]
    job = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        results = tmp_path / "job" / RESULTS_FILE
        wait_until(lambda: results.exists() or job.poll() is not None)
        assert job.poll() is None
        for child in children_of(job.pid):
            os.kill(child, signal.SIGKILL)
        _, err = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode == 2, err
    assert err.splitlines()[-1].startswith("error: an image loader process died")
    assert "--loader_workers" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_missing_weights_are_reported_before_anything_starts(run_module, tmp_path: Path):
    tree = write_tree(tmp_path / "seasons", {env: {"ash": 5, "oak": 5} for env in ("spring", "winter")})
    command = ["sweep", "launch", "--datasets", "Folder", "--data_dir", tree, "--algorithms", "ERM", "--n_trials", 1]
    finished = run_module(
        *command,
        *("--weights_dir", tmp_path / "weights", "--output_dir", tmp_path / "sweep", "--skip_confirmation"),
        env={
            "PATH": "",
            "TORCH_HOME": str(tmp_path),
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        },
    )
    assert finished.returncode == 2
    assert "resnet50-0676ba61.pth was not found in" in finished.stderr
    assert '{"pretrained": false}' in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "sweep").exists()
