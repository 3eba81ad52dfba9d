"""Commands whose output is closed, full, or not read to its end, whose input is closed, and that are interrupted."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_record, write_sweep
from tests.sweep.helpers import jobs_of, launch_words, states

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", ">&- 2>&-", ""])
def test_closed_standard_files_are_not_reused(tmp_path: Path, closed: str):
    """A file of a command must not become the stderr of C code and of child processes."""
    program = """
import os, subprocess, sys
from domainbed import cli

def main(argv):
    with open("result", "w") as file:
        for stream in (sys.stdout, sys.stderr):
            print("text", file=stream, flush=True)
        os.write(2, b"text of C code")
        subprocess.run(["sh", "-c", "cat; echo text; echo text >&2"], check=True, stdin=sys.stdin)
        file.write(f"{file.fileno() > 2} {[s.fileno() for s in (sys.stdin, sys.stdout, sys.stderr)]}")

cli.run(main)
"""
    command = f"cd {shlex.quote(str(tmp_path))}; {shlex.quote(sys.executable)} -c {shlex.quote(program)} {closed}"
    finished = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, timeout=60)
    assert finished.returncode == 0
    assert (tmp_path / "result").read_text() == "True [0, 1, 2]"


@pytest.mark.slow
def test_command_without_stderr_runs(tmp_path: Path):
    words = launch_words(tmp_path / "sweep", "--workers", 1, launcher="local")
    assert in_shell(f"PYTHON.sweep {shlex.join(words)} 2>&-").returncode == 0
    assert {state.value for state in states(jobs_of(words))} == {"done"}


@pytest.mark.parametrize("words", [["-m", "domainbed.scripts.sweep"], ["-m", "domainbed.scripts", "sweep"]])
def test_interrupt_while_a_command_is_imported(tmp_path: Path, words: list[str]):
    (tmp_path / "tabulate.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    finished = subprocess.run(
        [sys.executable, *words, "status"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (130, "", "interrupted\n")


def test_other_errors_while_a_command_is_imported_keep_their_traceback():
    finished = subprocess.run(
        [sys.executable, "-c", "import domainbed.scripts; 1 / 0"], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 1
    assert finished.stderr.startswith("Traceback")
    assert finished.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.slow
def test_launch_stops_when_its_reader_exits(tmp_path: Path):
    """Running jobs save their state first."""
    (slow := tmp_path / "slow").touch()
    words = launch_words(
        tmp_path / "sweep", "--workers", 2, "--steps", 9, launcher="local", how="slow", cause=str(slow), at=0
    )
    jobs = jobs_of(words)
    finished = in_shell(f"PYTHON.sweep {shlex.join(words)} | head -4")
    first, *estimate = finished.stdout.splitlines()
    assert first.endswith("3 not launched")
    assert [line.split()[0] for line in estimate] == ["Estimate:", "time", "disk:"]
    assert finished.returncode == 143, finished.stderr
    assert finished.stderr == "Stopped. Run the same command to resume.\n"
    final = [state.value for state in states(jobs)]
    assert "running" not in final
    assert "done" in final
    assert set(final) != {"done"}
    assert not list((tmp_path / "sweep").glob("*/lock"))
