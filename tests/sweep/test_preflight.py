"""The checks of a launch: all problems at once, quickly, and without torch in the launch's own process."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchvision import models

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.engine.config import JobConfig
from domainbed.engine.metrics import NonFiniteError
from domainbed.errors import UsageError
from domainbed.hparams import Hparams
from domainbed.sweep import preflight, torch_process
from domainbed.sweep.preflight import find_missing
from domainbed.sweep.torch_process import call_with_torch, count_gpus
from tests.images import write_tree
from tests.sweep.helpers import main

SMALL = ["--n_hparams", 1, "--n_trials", 1, "--skip_confirmation"]


def test_all_missing_files_are_listed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(preflight, "call_with_torch", lambda *args: pytest.fail("nothing else is checked"))
    assert main(["launch", "--data_dir", tmp_path, "--output_dir", tmp_path / "sweep", *SMALL]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "error: 7 problems:"
    found = [line.split()[0] for line in lines[:5]]
    assert found == ["DomainNet", "OfficeHome", "PACS", "TerraIncognita", "VLCS"]
    assert lines[5].startswith(f"  {tmp_path}/MNIST/raw lacks train-images-idx3-ubyte, train-labels")
    assert lines[6].startswith("  the pretrained weights resnet50-0676ba61.pth are not in ")
    assert not (tmp_path / "sweep").exists()


def test_missing_weights_alone_are_no_problem_and_found_ones_are_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "resnet18-f37072fd.pth").touch()
    words = ["launch", "--output_dir", tmp_path / "sweep", "--weights_dir", tmp_path, "--hparams", '{"resnet18": true}']
    assert main([*words, "--datasets", "VLCS", "PACS", *SMALL]) == 2
    assert capsys.readouterr().err == (
        "error: 2 problems:\n"
        "  PACS requires --data_dir, the folder that contains PACS/\n"
        "  VLCS requires --data_dir, the folder that contains VLCS/\n"
    )


def test_weights_files_are_those_of_torchvision():
    for name, file in preflight.WEIGHTS_FILES.items():
        assert models.get_model_weights(name)["IMAGENET1K_V1"].url.endswith(f"/{file}")


def test_all_algorithms_that_cannot_be_created_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["launch", "--output_dir", tmp_path / "sweep", "--datasets", "ColoredDigits", "RotatedDigits"]
    algorithms = ["--algorithms", "ERM", "MIRO", "CORAL", "VREx"]
    assert main([*words, *algorithms, "--hparams", '{"batch_size": 1}', *SMALL]) == 2
    assert capsys.readouterr().err == (
        "error: 2 problems:\n"
        "  MIRO on ColoredDigits, MIRO on RotatedDigits: MIRO requires a dataset of photos, not of small images\n"
        "  CORAL on ColoredDigits, CORAL on RotatedDigits: CORAL requires a batch_size of at least 2, not 1\n"
    )
    assert main([*words, "--algorithms", "ERM", "VREx", "--holdout_fraction", "0.001", *SMALL]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "error: 2 problems:", "not one line per algorithm"
    assert lines[0].startswith("  ColoredDigits: environment 0 is too small to split")
    assert lines[1].startswith("  RotatedDigits: environment 0 is too small to split")


def test_unavailable_weights_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    write_tree(tmp_path / "data", {name: {"cat": 5, "dog": 5} for name in ("art", "photo")})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet18-f37072fd.pth").write_bytes(b"not weights")
    words = ["launch", "--output_dir", tmp_path / "sweep", "--datasets", "Folder", "--data_dir", tmp_path / "data"]
    words += ["--algorithms", "ERM", "CORAL", "MIRO", "--weights_dir", tmp_path / "weights"]
    assert main([*words, "--hparams", '{"resnet18": true}', *SMALL]) == 2
    error = capsys.readouterr().err
    assert error.count("resnet18-f37072fd.pth is not a weights file of resnet18") == 1


class OwnNetwork(Algorithm):
    """An algorithm whose modules are not those that this package provides."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, num_domains: int, hparams: Hparams) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network = torch.nn.Linear(math.prod(input_shape), num_classes)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--precision", "bf16", "--precision bf16 requires a featurizer from networks.Featurizer; OwnNetwork has none"),
        ("--track", "landscape", "OwnNetwork has no modules `featurizer` and `classifier`"),
    ],
)
def test_algorithm_must_support_options(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["launch", "--output_dir", tmp_path / "sweep", "--datasets", "ColoredDigits", "--algorithms", "ERM"]
    with ALGORITHMS.temporarily("OwnNetwork", OwnNetwork):
        assert main([*words, "OwnNetwork", option, value, *SMALL]) == 2
    assert capsys.readouterr().err.startswith(f"error: OwnNetwork on ColoredDigits: {message}")


def test_compilation_must_be_supported(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Compiled code cannot be differentiated twice."""
    words = ["launch", "--output_dir", tmp_path / "sweep", "--datasets", "ColoredDigits", "--algorithms", "ERM", "IGA"]
    assert main([*words, "--compile", "on", *SMALL]) == 2
    assert capsys.readouterr().err.startswith("error: IGA on ColoredDigits: IGA does not support --compile on")


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({}, "resnet50-0676ba61.pth"),
        ({"hparams": '{"resnet18": true}'}, "resnet18-f37072fd.pth"),
        ({"protocol": "head"}, ""),
        ({"protocol": "head", "hparams": '{"resnet50_augmix": false}'}, "resnet50-0676ba61.pth"),
        ({"hparams": '{"vit": true, "dinov2": true}'}, ""),
        ({"hparams": '{"pretrained": false}'}, ""),
    ],
)
def test_missing_weights_are_those_of_the_backbone(
    options: dict, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = JobConfig("PACS", "ERM", (0,), data_dir=str(tmp_path), **options)
    found = [line.split()[3] for line in find_missing([config]) if line.startswith("the pretrained weights")]
    assert found == ([file] if file else [])


PROGRAM = r"""
import re, sys
from domainbed.scripts import sweep
from domainbed.sweep.torch_process import count_gpus

if __name__ == "__main__":
    words = ["--datasets", "ColoredDigits", "--n_hparams", "1", "--n_trials", "1", "--dry_run"]
    status = sweep.main(["launch", "--output_dir", "o", *words])
    print(count_gpus() >= 0, status, "torch" in sys.modules, "torchvision" in sys.modules)
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())
    assert int(peak) < 200 * 1024
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has")
def test_launch_does_not_import_torch(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    root = str(Path(__file__).parents[2])
    finished = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    *commands, last = finished.stdout.splitlines()
    assert last == "True 0 False False"
    assert len(commands) == 21


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch, quick_workers: None) -> None:
    """This process pretends that it has not imported torch."""
    monkeypatch.setattr(torch_process, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(torch_process, "_n_gpus", None)


def test_calls_in_another_process(without_torch: None):
    assert call_with_torch(os.getpid) != os.getpid()
    assert call_with_torch(divmod, 7, 2) == (3, 1)
    assert count_gpus() == torch.cuda.device_count()


def reject(option: str) -> None:
    raise NonFiniteError(3, f"{option} is infinite")


def test_usage_errors_in_another_process_are_raised_here(without_torch: None):
    with pytest.raises(UsageError, match=r"^training diverged at step 3: --x is infinite;"):
        call_with_torch(reject, "--x")


def exit_with(status: int) -> None:
    os._exit(status)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_dead_process_is_reported(without_torch: None):
    with pytest.raises(UsageError, match=r"^cannot run exit_with: its process exited with status 3$"):
        call_with_torch(exit_with, 3)
    with pytest.raises(UsageError, match=r"was killed by SIGKILL .*because memory ran out"):
        call_with_torch(kill_this_process)
