"""Commands whose output is closed, full, or not read to its end, and whose input is closed."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_record, write_sweep
from tests.sweep.helpers import jobs_of, launch_words, states


def in_shell(line: str) -> subprocess.CompletedProcess:
    """Run a line of bash, in which PYTHON stands for this Python with the default buffering."""
    line = line.replace("PYTHON", f"env -u PYTHONUNBUFFERED {shlex.quote(sys.executable)} -m domainbed.scripts")
    return subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=240)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full, which only Linux has")
@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        ("> /dev/full", 2, "error: No space left on device\n"),
        ("| true", 1, ""),
        (">&-", 0, ""),
    ],
)
def test_output_that_cannot_be_written(tmp_path: Path, output: str, status: int, message: str):
    sweep = write_sweep(tmp_path / "sweep", [make_record(test_envs=(env,)) for env in range(3)])
    finished = in_shell(f"PYTHON.collect_results --input_dir {shlex.quote(str(sweep))} {output}")
    assert (finished.returncode, finished.stderr) == (status, message)


def test_closed_stdin_is_reported(tmp_path: Path):
    words = shlex.join(["launch", "--output_dir", str(tmp_path / "s"), "--datasets", "ColoredDigits"])
    finished = in_shell(f"PYTHON.sweep {words} <&-")
    assert finished.returncode == 2
    assert finished.stderr == "error: nothing was launched: stdin is not interactive; pass --skip_confirmation\n"


@pytest.mark.slow
def test_launch_stops_when_its_reader_exits(tmp_path: Path):
    """Running jobs save their state first."""
    (slow := tmp_path / "slow").touch()
    words = launch_words(
        tmp_path / "sweep", "--workers", 2, "--steps", 9, launcher="local", how="slow", cause=str(slow), at=0
    )
    jobs = jobs_of(words)
    finished = in_shell(f"PYTHON.sweep {shlex.join(words)} | head -1")
    assert finished.stdout.endswith("3 not launched\n")
    assert finished.returncode == 143, finished.stderr
    assert finished.stderr == "Stopped. Run the same command to resume.\n"
    final = [state.value for state in states(jobs)]
    assert "running" not in final
    assert "done" in final
    assert set(final) != {"done"}
    assert not list((tmp_path / "sweep").glob("*/lock"))
