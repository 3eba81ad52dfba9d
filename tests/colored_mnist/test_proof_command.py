"""The colored_mnist command, with real processes."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed.colored_mnist import experiment, runner
from domainbed.datasets.mnist import FILES
from tests.processes import children_of

MODULE = [sys.executable, "-m", "domainbed.scripts.colored_mnist"]


@pytest.fixture(scope="module")
def complete_random_mnist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a data_dir with as many images as MNIST: noise whose brightness depends on the digit."""
    root = tmp_path_factory.mktemp("data")
    (root / "MNIST" / "raw").mkdir(parents=True)
    rng = np.random.RandomState(0)
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        digits = rng.randint(0, 10, n).astype(np.uint8)
        images = (rng.randint(0, 128, (n, 28, 28)) + 12 * digits[:, None, None]).astype(np.uint8)
        for name, header, values in (
            ("images", struct.pack(">IIII", 0x803, n, 28, 28), images),
            ("labels", struct.pack(">II", 0x801, n), digits),
        ):
            (file,) = [f for f in FILES if f.startswith(part) and name in f]
            (root / "MNIST" / "raw" / file).write_bytes(header + values.tobytes())
    return str(root)


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process train and test on a part of the images."""
    monkeypatch.setattr(experiment, "N_TRAIN", 1000)
    monkeypatch.setattr(experiment, "N_TEST", 200)


def read_records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_trains_missing_restarts_and_prints_the_table(
    complete_random_mnist: str, few_images: None, run_module, run_command, tmp_path: Path
):
    """At first in worker processes."""
    out = tmp_path / "out"
    args = ["--data_dir", complete_random_mnist, "--output_dir", out, "--steps", 2]
    first = run_module("colored_mnist", *args, "--algorithm", "ERM", "Fishr", "--restarts", 1, "--workers", 2)
    assert first.returncode == 0, first.stderr
    before = read_records(out)
    assert {(r["algorithm"], r["seed"]) for r in before} == {("ERM", 0), ("Fishr", 0)}

    with open(out / "records.jsonl", "a") as file:
        file.write('{"accuracy": 1}\n')
        file.write('{"algorithm": "ERM", "cut o')  # truncated, e.g. by a full disk
    args += ["--workers", 1]
    second = run_command("colored_mnist", *args, "--algorithm", "Fishr", "Fishr_covariance", "--restarts", 2)
    assert second.returncode == 0, second.stderr
    warnings = [line for line in second.stderr.splitlines() if "not a finished restart" in line]
    assert warnings[:2] == [
        f"warning: {out / 'records.jsonl'}: skipping line {n}, which is not a finished restart" for n in (3, 4)
    ]
    content = (out / "records.jsonl").read_text().splitlines(keepends=True)
    assert content[3] == '{"algorithm": "ERM", "cut o\n'
    (out / "records.jsonl").write_text("".join(content[:2] + content[4:]))
    restarts = read_records(out)
    assert restarts[:2] == before
    assert [(r["algorithm"], r["seed"]) for r in restarts[2:]].count(("Fishr", 0)) == 0
    assert {(r["algorithm"], r["seed"]) for r in restarts[2:]} == {
        ("Fishr", 1),
        ("Fishr_covariance", 0),
        ("Fishr_covariance", 1),
    }
    table = [line for line in second.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["Fishr", "Fishr_covariance"]
    mean = 100 * np.mean([r["test_acc"] for r in restarts if r["algorithm"] == "Fishr"])
    assert f" {mean:.1f} ± " in table[2]
    assert [cell.strip() for cell in table[2].split("|")[3:5]] == ["-", "-"]  # the published experiment has more steps

    third = run_command("colored_mnist", *args, "--algorithm", "Fishr", "Fishr_covariance", "--restarts", 2)
    assert third.stdout.splitlines()[-4:] == second.stdout.splitlines()[-4:]
    assert read_records(out) == restarts


@pytest.mark.slow
def test_untracked_restarts_are_trained_again_to_track_the_landscape(
    complete_random_mnist: str, few_images: None, run_command, tmp_path: Path
):
    out = tmp_path / "out"
    args = ["--data_dir", complete_random_mnist, "--output_dir", out, "--steps", 1, "--algorithm", "ERM"]
    untracked = run_command("colored_mnist", *args, "--restarts", 1)
    assert untracked.returncode == 0, untracked.stderr
    tracked = run_command("colored_mnist", *args, "--restarts", 1, "--track", "landscape")
    assert tracked.returncode == 0, tracked.stderr
    first, second = read_records(out)
    assert second["course"] == [{"step": 0} | {k: v for k, v in second.items() if k.startswith("landscape_")}]
    assert {k: v for k, v in second.items() if k in first and k != "seconds"} == {
        k: v for k, v in first.items() if k != "seconds"
    }
    assert "| risks, squared distance" in tracked.stdout
    assert (out / "landscape.png").exists()
    assert (out / "landscape.pdf").exists()
    again = run_command("colored_mnist", *args, "--restarts", 1, "--track", "landscape")
    assert again.stdout.endswith(tracked.stdout[tracked.stdout.index("| Algorithm") :])
    assert len(read_records(out)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 4], ids=["starting", "training"])
def test_ctrl_c_keeps_finished_restarts_and_ends_all_processes(
    complete_random_mnist: str, tmp_path: Path, seconds: float
):
    args = ["--data_dir", complete_random_mnist, "--output_dir", tmp_path / "out", "--workers", 2]
    args = [*args, "--algorithm", "ERM", "--steps", 100_000, "--restarts", 3]
    finished = {"algorithm": "ERM", "label_flip": 0.25, "grayscale": False, "steps": 100_000, "seed": 1}
    finished |= {"train_acc": 1.0, "test_acc": 1.0, "gray_acc": 1.0}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.jsonl").write_text(json.dumps(finished) + "\n")
    process = subprocess.Popen(
        [*MODULE, *map(str, args)], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(children_of(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = children_of(process.pid)
        assert len(workers) >= 2
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()  # its workers end too
    assert process.returncode == 130
    before, interrupted, _ = stderr.partition("interrupted\n")  # later, a thread of joblib that is ending may fail
    assert interrupted
    assert "Traceback" not in before
    deadline = time.monotonic() + 20  # joblib's resource tracker ends last
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert read_records(tmp_path / "out") == [finished]


def test_non_finite_loss_raises():
    images, digits = torch.full((60_000, 14, 14), float("nan")), torch.zeros(60_000, dtype=torch.long)
    settings = {"algorithm": "IRM", "label_flip": 0.25, "grayscale": True, "steps": 1, "seed": 0}
    with pytest.raises(ArithmeticError, match="loss is nan and nll is nan and penalty is nan at the last step, 0"):
        runner.train_restart(settings, (images, digits))
