"""Fixtures for tests of sweeps: a launcher in this process, a disk that fills up, a fake SLURM."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from domainbed.sweep.launchers import LAUNCHERS
from tests.sweep.helpers import LauncherHere


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only slows down jobs this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def launcher_here() -> Iterator[None]:
    """`--command_launcher here` runs jobs in this process."""
    with LAUNCHERS.temporarily("here", LauncherHere):
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 pages of memory, 4 KiB each."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("cannot mount a small disk: mount is not installed")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that replaces commands of SLURM: `slurm(squeue='echo "1|RUNNING"')`. Each logs its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def replace_commands(**commands: str) -> Path:
        for name, script in commands.items():
            command = folder / name
            command.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/{name}.called"\n{script}\n')
            command.chmod(0o755)
        return tmp_path

    return replace_commands
