"""The proof of concept's command line, with real processes."""

import json
import multiprocessing
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

from domainbed.colored_mnist import runner as restarts
from domainbed.colored_mnist.experiment import PENALTIES, STEPS
from domainbed.datasets.mnist import FILES
from domainbed.scripts import colored_mnist

MODULE = [sys.executable, "-m", "domainbed.scripts.colored_mnist"]


@pytest.fixture(scope="module")
def complete_random_mnist(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data_dir with as many images as MNIST has, each noise that a digit's number shifts."""
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


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_trains_what_is_not_there_yet_and_prints_the_table(complete_random_mnist: str, run_module, tmp_path: Path):
    out = tmp_path / "out"
    args = ["--data_dir", complete_random_mnist, "--output_dir", out, "--steps", 2, "--workers", 2]
    first = run_module("colored_mnist", *args, "--algorithm", "ERM", "Fishr", "--restarts", 1)
    assert first.returncode == 0, first.stderr
    before = lines(out)
    assert {(r["algorithm"], r["seed"]) for r in before} == {("ERM", 0), ("Fishr", 0)}

    with open(out / "records.jsonl", "a") as file:
        file.write('{"accuracy": 1}\n')
        file.write('{"algorithm": "ERM", "cut o')  # as a full disk leaves it
    second = run_module("colored_mnist", *args, "--algorithm", "Fishr", "Fishr_covariance", "--restarts", 2)
    assert second.returncode == 0, second.stderr
    told = [line for line in second.stderr.splitlines() if "is no run; left out" in line]
    assert told[:2] == [f"warning: {out / 'records.jsonl'}: line {n} is no run; left out" for n in (3, 4)]
    kept = (out / "records.jsonl").read_text().splitlines(keepends=True)
    assert kept[3] == '{"algorithm": "ERM", "cut o\n'
    (out / "records.jsonl").write_text("".join(kept[:2] + kept[4:]))
    runs = lines(out)
    assert runs[:2] == before
    assert [(r["algorithm"], r["seed"]) for r in runs[2:]].count(("Fishr", 0)) == 0
    assert {(r["algorithm"], r["seed"]) for r in runs[2:]} == {
        ("Fishr", 1),
        ("Fishr_covariance", 0),
        ("Fishr_covariance", 1),
    }
    table = [line for line in second.stdout.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["Fishr", "Fishr_covariance"]
    mean = 100 * np.mean([r["test_acc"] for r in runs if r["algorithm"] == "Fishr"])
    assert f" {mean:.1f} ± " in table[2]

    third = run_module("colored_mnist", *args, "--algorithm", "Fishr", "Fishr_covariance", "--restarts", 2)
    assert third.stdout.splitlines()[-4:] == second.stdout.splitlines()[-4:]
    assert lines(out) == runs


@pytest.mark.slow
def test_restarts_that_have_not_told_of_the_landscape_are_trained_again(
    complete_random_mnist: str, run_module, tmp_path: Path
):
    out = tmp_path / "out"
    args = ["--data_dir", complete_random_mnist, "--output_dir", out, "--steps", 1, "--algorithm", "ERM"]
    quiet = run_module("colored_mnist", *args, "--restarts", 1)
    assert quiet.returncode == 0, quiet.stderr
    telling = run_module("colored_mnist", *args, "--restarts", 1, "--track", "landscape")
    assert telling.returncode == 0, telling.stderr
    first, second = lines(out)
    assert second["course"] == [{"step": 0} | {k: v for k, v in second.items() if k.startswith("landscape_")}]
    assert {k: v for k, v in second.items() if k in first and k != "seconds"} == {
        k: v for k, v in first.items() if k != "seconds"
    }
    assert "| risks, squared distance" in telling.stdout
    assert (out / "landscape.png").exists()
    assert (out / "landscape.pdf").exists()
    again = run_module("colored_mnist", *args, "--restarts", 1, "--track", "landscape")
    assert again.stdout.endswith(telling.stdout[telling.stdout.index("| Algorithm") :])
    assert len(lines(out)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 4], ids=["as they start", "as they train"])
def test_ctrl_c_leaves_what_is_done_and_no_process(complete_random_mnist: str, tmp_path: Path, seconds: float):
    args = ["--data_dir", complete_random_mnist, "--output_dir", tmp_path / "out", "--workers", 2]
    args = [*args, "--algorithm", "ERM", "--steps", 100_000, "--restarts", 3]
    run = {"algorithm": "ERM", "label_flip": 0.25, "grayscale": False, "steps": 100_000, "seed": 1}
    run |= {"train_acc": 1.0, "test_acc": 1.0, "gray_acc": 1.0}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records.jsonl").write_text(json.dumps(run) + "\n")
    process = subprocess.Popen(
        [*MODULE, *map(str, args)], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(children(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = children(process.pid)
        assert len(workers) >= 2
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()  # its workers end with it
    assert process.returncode == 130
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 20  # Python's own helper process takes its time
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert lines(tmp_path / "out") == [run]


def children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except FileNotFoundError:
        return []


def test_what_help_tells_is_what_there_is():
    args = colored_mnist.parser().parse_args(["--data_dir", "d"])
    assert args.steps == STEPS == colored_mnist.PUBLISHED_STEPS
    assert list(PENALTIES) == list(colored_mnist.ALGORITHMS)


def test_a_loss_that_is_not_finite_is_no_result(monkeypatch: pytest.MonkeyPatch):
    images, digits = torch.full((60_000, 14, 14), float("nan")), torch.zeros(60_000, dtype=torch.long)
    steps = multiprocessing.get_context("spawn").Value("q", 0)
    monkeypatch.setattr(restarts, "_worker", {"mnist": (images, digits), "steps": steps})
    run = {"algorithm": "IRM", "label_flip": 0.25, "grayscale": True, "steps": 1, "seed": 0}
    with pytest.raises(ArithmeticError, match="loss is nan and nll is nan and penalty is nan at the last step, 0"):
        restarts.train_one(run)
