"""One job as a process: signals that stop it and reach its loader processes as well, and resuming."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed.engine import checkpoint
from domainbed.engine.config import JobConfig
from domainbed.engine.train import train as train_job
from domainbed.scripts import train
from domainbed.sweep.failures import FAILURE_FILE, read_failure
from tests.engine.test_resume import NOT_COMPARED
from tests.images import write_tree
from tests.processes import children_of, is_alive, wait_until

NOTICE = "\nStopping after saving a checkpoint; press Ctrl-C again to stop immediately.\n"

SLOW = """
import os, time
import torch
from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM

if "Slow" not in ALGORITHMS:
    @ALGORITHMS.register("Slow")
    class Slow(ERM):
        def __init__(self, input_shape, num_classes, num_domains, hparams):
            super(ERM, self).__init__(input_shape, num_classes, num_domains, hparams)
            self.network = torch.nn.Sequential(
                torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(48, num_classes)
            )
            self.optimizer = torch.optim.Adam(self.parameters())

        def update(self, minibatches, unlabeled=None):
            time.sleep(float(os.environ.get("SLOW", 0)))
            return super().update(minibatches, unlabeled)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc, which only Linux has")
def test_job_stops_on_every_signal_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Signals go to the whole process group, as from a terminal or a batch system. The loaders must ignore them."""
    write_tree(tmp_path / "tree", {name: {"car": 6, "tram": 6} for name in ("day", "dusk", "night")})
    (tmp_path / "slow_erm.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--dataset", "Folder", "--data_dir", str(tmp_path / "tree"), "--algorithm", "Slow", "--test_envs", "2"]
    words += ["--import", "slow_erm", "--steps", "60", "--checkpoint_freq", "6", "--hparams", '{"batch_size": 2}']
    words += ["--loader_workers", "2", "--output_dir"]
    folder = tmp_path / "job"
    command = [sys.executable, "-m", "domainbed.scripts.train", *words, str(folder)]
    environ = os.environ | {"SLOW": "0.1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}

    def start() -> subprocess.Popen:
        before = (folder / "results.jsonl").stat().st_size if folder.exists() else 0
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environ
        )
        results = folder / "results.jsonl"
        wait_until(lambda: process.poll() is not None or (results.exists() and results.stat().st_size > before))
        assert process.poll() is None, process.communicate()
        return process

    step = 0
    for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        process = start()
        loaders = children_of(process.pid)
        assert len(loaders) >= 2
        os.killpg(process.pid, signum)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 128 + signum, stderr
        before, step = step, checkpoint.load_checkpoint(folder)["step"]
        assert before < step < 60
        assert (f"Resuming from checkpoint at step {before}." in stdout) == (before > 0)
        notice = NOTICE if signum == signal.SIGINT else ""
        assert stderr == f"{notice}stopped after {step} of 60 steps; run the same command to resume\n"
        assert not (folder / "lock").exists()
        wait_until(lambda loaders=loaders: not any(is_alive(pid) for pid in loaders), seconds=30)

    process = start()
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() + process.stderr.readline() == NOTICE
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.startswith(("interrupted\n", "stopped after "))  # it may already have stopped

    for name in ("job", "uninterrupted"):
        train_job(train.config_of(train.parser().parse_args([*words, str(tmp_path / name)])))
    job, uninterrupted = ((tmp_path / name / "results.jsonl").read_bytes() for name in ("job", "uninterrupted"))
    assert NOT_COMPARED.sub(b"", job) == NOT_COMPARED.sub(b"", uninterrupted)
    assert {path.name for path in folder.iterdir()} == {"results.jsonl", "done", "model.pkl"}


def test_invalid_interval_is_rejected(run_module):
    finished = run_module("train", "--dataset", "ColoredDigits", "--test_envs", 2, "--save_every", 0)
    assert finished.returncode == 2
    assert finished.stderr == "error: --save_every must be above 0 and finite, not 0.0\n"


def test_failure_to_import_torch_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as on a node without it: a launcher that only runs commands would otherwise start the job forever."""
    folder = tmp_path / JobConfig("ColoredDigits", "ERM", (2,), steps=1).name()
    monkeypatch.setitem(sys.modules, "domainbed.engine.train", None)
    words = ["--dataset", "ColoredDigits", "--algorithm", "ERM", "--test_envs", "2", "--steps", "1"]
    with pytest.raises(ImportError):
        train.main([*words, "--output_dir", str(folder)])
    assert "domainbed.engine.train" in read_failure(folder / FAILURE_FILE).reason
