"""scripts/quickstart and scripts/digits: help and invalid arguments, which are handled before the setup."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(tmp_path: Path):
    """Return a function that runs a copy of a script, with a setup that fails: it returns status, stdout and stderr."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup").write_text("#!/bin/sh\necho set up >&2\nexit 9\n")
    (tmp_path / "scripts" / "setup").chmod(0o755)

    def run(name: str, *words: str) -> tuple[int, str, str]:
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
        finished = subprocess.run([f"scripts/{name}", *words], cwd=tmp_path, capture_output=True, text=True)
        return finished.returncode, finished.stdout, finished.stderr

    return run


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", ["quickstart", "digits"])
def test_help_is_the_comment_at_the_top(run, name: str, flag: str):
    _, *lines = (SCRIPTS / name).read_text().splitlines()
    comment = lines[: lines.index("set -euo pipefail")]
    assert len(comment) > 1
    assert run(name, flag) == (0, "".join(f"{line.removeprefix('# ')}\n" for line in comment), "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quickstart", "--workers", "2"), "unknown argument --workers: scripts/quickstart takes no arguments; use "),
        (
            ("digits", "--workers", "2", "--output_dir", "runs/mine"),
            "scripts/digits always writes to runs/digits; use ",
        ),
        (("digits", "--output_dir=x"), "scripts/digits always writes to runs/digits; use "),
    ],
)
def test_invalid_argument_is_one_line(run, words: tuple[str, ...], message: str):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}python -m domainbed.scripts.sweep launch\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [("quickstart",), ("digits", "--workers", "2")])
def test_setup_runs_first(run, words: tuple[str, ...]):
    assert run(*words) == (9, "", "set up\n")
