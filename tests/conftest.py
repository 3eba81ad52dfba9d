"""Shared fixtures and helpers: small sweeps, MNIST, PACS, and commands run in this process or as real ones."""

import importlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import cpu_count

from domainbed import cli
from domainbed.datasets.mnist import FILES, missing_files
from domainbed.reporting.load import load_sweep
from tests.processes import start_quickly

# Parallel test processes that each use all cores slow each other down, as do the processes that they start.
torch.set_num_threads(max(1, cpu_count() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))))
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
# A shell starts background commands with SIGINT ignored; processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mnist_dir() -> str:
    """Return a data_dir with the complete MNIST."""
    data_dir = os.environ.get("DOMAINBED_DATA_DIR")
    if not data_dir:
        pytest.skip("DOMAINBED_DATA_DIR does not name a folder with the complete MNIST")
    assert not missing_files(data_dir), f"DOMAINBED_DATA_DIR={data_dir} lacks {missing_files(data_dir)}"
    return data_dir


@pytest.fixture(scope="session")
def pacs_dir() -> str:
    """Return a data_dir with all or some of the real images of PACS."""
    data_dir = os.environ.get("DOMAINBED_DATA_DIR")
    if not data_dir or not Path(data_dir, "PACS").is_dir():
        pytest.skip("DOMAINBED_DATA_DIR does not name a folder with PACS in it")
    return data_dir


@pytest.fixture
def small_mnist_dir(tmp_path: Path) -> str:
    """Return a data_dir with a random MNIST of 90 + 30 images, in the original file format."""
    rng = np.random.RandomState(0)
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        n = 90 if name.startswith("train") else 30
        if "images" in name:
            header, values = struct.pack(">IIII", 0x803, n, 28, 28), rng.randint(0, 256, (n, 28, 28))
        else:
            header, values = struct.pack(">II", 0x801, n), rng.randint(0, 10, n)
        (raw / name).write_bytes(header + values.astype(np.uint8).tobytes())
    return str(tmp_path / "data")


@pytest.fixture
def run_module(tmp_path: Path):
    """Return a function that runs `python -m domainbed.scripts.MODULE …` as a process in an empty folder."""
    cwd = tmp_path / "cwd"
    cwd.mkdir(exist_ok=True)

    def run(module: str, *args: object, **kwargs: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", f"domainbed.scripts.{module}", *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, **kwargs)

    return run


@pytest.fixture
def quick_workers() -> Iterator[None]:
    """The local launcher's workers start at once."""
    with start_quickly():
        yield


@pytest.fixture
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_workers: None):
    """Return a function like that of `run_module` that runs the command in this process, which takes no time to start.

    Workers of the local launcher are real processes, forked from one that has imported torch already.
    """
    cwd = tmp_path / "cwd"
    cwd.mkdir(exist_ok=True)

    def run(module: str, *args: object, input: str = "") -> subprocess.CompletedProcess:
        words = [module, *map(str, args)]
        stdout, stderr = io.StringIO(), io.StringIO()
        threads = torch.get_num_threads()
        with monkeypatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            patch.chdir(cwd)
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "stdin", io.StringIO(input))
            with pytest.raises(SystemExit) as end:
                cli.run(importlib.import_module(f"domainbed.scripts.{module}").main)
        torch.set_num_threads(threads)
        return subprocess.CompletedProcess(words, end.value.code or 0, stdout.getvalue(), stderr.getvalue())

    return run


def make_record(
    dataset: str = "ColoredDigits",
    algorithm: str = "ERM",
    test_envs: tuple[int, ...] = (0,),
    trial_seed: int = 0,
    hparams_seed: int = 0,
    step: int = 0,
    in_acc: tuple[float, ...] = (0.5, 0.5, 0.5),
    out_acc: tuple[float, ...] = (0.5, 0.5, 0.5),
) -> dict:
    """Return one record in DomainBed's format."""
    accuracies = {}
    for i, (in_, out) in enumerate(zip(in_acc, out_acc, strict=True)):
        accuracies |= {f"env{i}_in_acc": in_, f"env{i}_out_acc": out}
    args = {
        "algorithm": algorithm,
        "checkpoint_freq": None,
        "data_dir": "/data",
        "dataset": dataset,
        "holdout_fraction": 0.2,
        "hparams": None,
        "hparams_seed": hparams_seed,
        "output_dir": "/sweep/x",
        "save_model_every_checkpoint": False,
        "seed": 1712,
        "skip_model_save": False,
        "steps": None,
        "task": "domain_generalization",
        "test_envs": list(test_envs),
        "trial_seed": trial_seed,
        "uda_holdout_fraction": 0,
    }
    hparams = {"batch_size": 64, "lr": 0.001}
    metrics = {"step": step, "epoch": step / 7, "loss": 0.7, "step_time": 0.01, "mem_gb": 0.0}
    return {**accuracies, **metrics, "args": args, "hparams": hparams}


def read_sweep(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the records in a sweep's folder, and the reported problems."""
    sweep = load_sweep(str(folder))
    return sweep.records, sweep.problems


def write_sweep(folder: Path, records: list[dict], done: bool = True) -> Path:
    """Write records as a sweep, one job folder per run."""
    for record in records:
        a = record["args"]
        test_envs = "".join(map(str, a["test_envs"]))
        job = folder / f"{a['dataset']}-{a['algorithm']}-{test_envs}-{a['trial_seed']}-{a['hparams_seed']}"
        job.mkdir(parents=True, exist_ok=True)
        with open(job / "results.jsonl", "a") as file:
            file.write(json.dumps(record, sort_keys=True) + "\n")
        if done:
            (job / "done").write_text("done")
    return folder
