"""Tests of scripts/quickstart and scripts/digits, up to the setup (help, invalid arguments), and of scripts/setup."""

import os
import re
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
        (("digits", "--estimate"), "scripts/digits runs the jobs; for --estimate, use "),
        (("pacs", "--hparams={}"), "scripts/pacs does not take --hparams; use "),
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


# A Python that does nothing but to create copies of itself as virtual environments, and to write the arguments of pip.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
"-m pip") shift 2; echo "$*" >>pip.txt; ! [ -e "fail $4" ] ;;
esac
"""


@pytest.fixture
def set_up(tmp_path: Path):
    """Return a function that runs scripts/setup with a fake Python: it returns the exit status and the calls of pip."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup", "scripts/constraints.txt", "setup.cfg", "pyproject.toml"):
        shutil.copy(SCRIPTS.parent / name, tmp_path / name)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)

    def set_up(**environ: str) -> tuple[int, list[str]]:
        environ = os.environ | {"PYTHON": str(tmp_path / "python"), "REQUIRE_HASHES": ""} | environ
        finished = subprocess.run(["scripts/setup"], cwd=tmp_path, env=environ, capture_output=True, text=True)
        calls = tmp_path / "pip.txt"
        return finished.returncode, calls.read_text().splitlines() if calls.exists() else []

    return set_up


INSTALL = "install --disable-pip-version-check --no-compile -c scripts/constraints.txt -e .[test]"
INSTALL_HASHED = "install --disable-pip-version-check --no-compile --require-hashes -r scripts/requirements.txt"
INSTALL_PROJECT = "install --disable-pip-version-check --no-compile --no-deps --no-build-isolation -e ."


def test_setup_installs_once(set_up):
    assert set_up() == (0, [INSTALL])
    assert set_up() == (0, [INSTALL])


def test_setup_with_hashes(set_up):
    assert set_up(REQUIRE_HASHES="1") == (0, [INSTALL_HASHED, INSTALL_PROJECT])


def test_setup_installs_nothing_else_if_a_hash_is_wrong(set_up, tmp_path: Path):
    (tmp_path / "fail --require-hashes").touch()
    assert set_up(REQUIRE_HASHES="1") == (1, [INSTALL_HASHED])


def test_requirements_are_the_constraints_with_hashes():
    constraints = (SCRIPTS / "constraints.txt").read_text()
    requirements = (SCRIPTS / "requirements.txt").read_text().replace("\\\n", " ")
    pinned = re.findall(r"^([\w.-]+==[\w.!+-]+)", constraints, re.MULTILINE)
    hashed = re.findall(r"^([\w.-]+==[\w.!+-]+)", requirements, re.MULTILINE)
    # torch requires setuptools, which uv only lists with hashes.
    assert [pin for pin in hashed if not pin.startswith("setuptools==")] == pinned, "run the command at its top"
    for line in requirements.splitlines():
        assert line.startswith("#") or re.search(r"( +--hash=sha256:[0-9a-f]{64})+$", line), line
