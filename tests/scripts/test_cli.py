"""What the command lines share: outputs that are closed, full, or not read to their end."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_record, write_sweep
from tests.sweep.helpers import jobs_of, launch_words, states


def in_shell(line: str) -> subprocess.CompletedProcess:
    """A line for bash, in which PYTHON stands for this Python, its output buffered as by default."""
    line = line.replace("PYTHON", f"env -u PYTHONUNBUFFERED {shlex.quote(sys.executable)} -m domainbed.scripts")
    return subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full, which only Linux has")
@pytest.mark.parametrize(
    ("output", "status", "told"),
    [
        ("> /dev/full", 2, "error: No space left on device\n"),
        ("| true", 1, ""),
        (">&-", 0, ""),
    ],
)
def test_tables_that_nobody_reads(tmp_path: Path, output: str, status: int, told: str):
    sweep = write_sweep(tmp_path / "sweep", [make_record(test_envs=(env,)) for env in range(3)])
    finished = in_shell(f"PYTHON.collect_results --input_dir {shlex.quote(str(sweep))} {output}")
    assert (finished.returncode, finished.stderr) == (status, told)


def test_nobody_there_to_answer(tmp_path: Path):
    words = shlex.join(["launch", "--output_dir", str(tmp_path / "s"), "--datasets", "ColoredDigits"])
    finished = in_shell(f"PYTHON.sweep {words} <&-")
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: nothing was launched: nobody is there to answer; --skip_confirmation goes on without asking\n"
    )


@pytest.mark.slow
def test_a_launch_whose_reader_leaves_stops_as_if_asked_to(tmp_path: Path):
    """What runs saves what it has."""
    (slow := tmp_path / "slow").touch()
    words = launch_words(
        tmp_path / "sweep", "--workers", 2, "--steps", 9, launcher="local", how="slow", cause=str(slow), at=0
    )
    jobs = jobs_of(words)
    finished = in_shell(f"PYTHON.sweep {shlex.join(words)} | head -1")
    assert finished.stdout.endswith("3 not launched\n")
    assert finished.returncode == 143, finished.stderr
    assert finished.stderr == "Stopped. The same command goes on with what is not done.\n"
    assert "running" not in (told := [state.value for state in states(jobs)])
    assert "done" in told
    assert set(told) != {"done"}
    assert not list((tmp_path / "sweep").glob("*/lock"))
