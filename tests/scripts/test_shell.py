"""scripts/quickstart and scripts/digits: what they say of themselves, and refuse, before anything is set up."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(tmp_path: Path):
    """Runs a copy of a script, beside a setup that fails. Returns status, stdout and stderr."""
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
def test_help_is_the_comment_at_the_head(run, name: str, flag: str):
    _, *lines = (SCRIPTS / name).read_text().splitlines()
    head = lines[: lines.index("set -euo pipefail")]
    assert len(head) > 1
    assert run(name, flag) == (0, "".join(f"{line.removeprefix('# ')}\n" for line in head), "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("quickstart", "--workers", "2"), "unknown argument --workers: scripts/quickstart takes none; "),
        (("digits", "--workers", "2", "--output_dir", "runs/mine"), "scripts/digits is about runs/digits; "),
        (("digits", "--output_dir=runs/mine"), "scripts/digits is about runs/digits; "),
    ],
)
def test_what_they_do_not_take_is_told_in_one_line(run, words: tuple[str, ...], told: str):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {told}python -m domainbed.scripts.sweep launch ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [("quickstart",), ("digits", "--workers", "2")])
def test_else_they_begin_with_the_setup(run, words: tuple[str, ...]):
    assert run(*words) == (9, "", "set up\n")
