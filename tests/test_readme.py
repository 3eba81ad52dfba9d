"""The READMEs are true: commands parse, examples run, links resolve, and every file is listed."""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from domainbed.algorithms import FAMILIES
from domainbed.reporting.formats.text import as_text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from tests.conftest import make_record, write_sweep

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ROOMS = sorted(path for path in (ROOT / "domainbed").iterdir() if path.is_dir() and path.name not in ("__pycache__",))
READMES = [
    README,
    *(room / "README.md" for room in ROOMS),
    *sorted(ROOT.glob("*/README.md")),
    *ROOT.glob("results/*/README.md"),
]
IDS = [str(path.parent.relative_to(ROOT)) for path in READMES]


def blocks(readme: Path, language: str) -> list[str]:
    """Return the code blocks of a language in a README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", readme.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(readme: Path) -> list[list[str]]:
    """Return every `$ …` line of a README as words."""
    lines = "\n".join(blocks(readme, "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


def test_root_readme_fits_200_lines():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("readme", READMES, ids=IDS)
def test_commands_parse(readme: Path):
    for words in commands(readme):
        if words[0] == "python" and words[1:2] == ["-m"]:
            module, args = words[2], words[3:]
        elif words[0] == "domainbed":
            module, args = f"domainbed.scripts.{words[1]}", words[2:]
        else:
            if words[0].startswith("scripts/"):
                assert (ROOT / words[0]).is_file(), words
            continue
        if module.startswith("domainbed.") and "--help" not in args:
            args = [arg for arg in args if arg != "|"]
            import_module(module).parser().parse_args(args)


@pytest.mark.parametrize("room", [*ROOMS, ROOT / "scripts"], ids=lambda room: room.name)
def test_room_readme_lists_every_file(room: Path):
    listed = (room / "README.md").read_text()
    for path in room.rglob("*"):
        if path.suffix in (".py", ".html", ".css", ".js") and path.name != "__init__.py":
            name = rf"`(?:\w+/)*{re.escape(path.name)}[` ]"
            assert re.search(name, listed), f"{path} is not in {room / 'README.md'}"
    for name in re.findall(r"`((?:\w+/)*(?!my_)\w+\.py)`", listed):
        places = [room, *room.rglob("*"), ROOT / "domainbed", ROOT]
        assert any((place / name).is_file() for place in places), f"{name} does not exist"


def test_root_readme_lists_every_room():
    listed = README.read_text()
    for room in [*ROOMS, ROOT / "scripts", ROOT / "tests", ROOT / "results"]:
        assert f"({room.relative_to(ROOT)}/README.md)" in listed, room
    for path in (ROOT / "domainbed").glob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert f"`{path.name}`" in listed, path


@pytest.mark.parametrize("readme", READMES, ids=IDS)
def test_links_resolve(readme: Path):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", readme.read_text()):
        name, _, fragment = target.partition("#")
        path = readme.parent / name if name else readme
        assert path.exists(), target
        if fragment:
            path = path / "README.md" if path.is_dir() else path
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert fragment in anchors, target


@pytest.mark.slow
def test_example_algorithm_runs_as_shown(run_command, tmp_path: Path):
    """With fewer jobs and steps."""
    readme = ROOT / "domainbed" / "algorithms" / "README.md"
    (example,) = [block for block in blocks(readme, "python") if "ALGORITHMS.register" in block]
    assert len(example.splitlines()) <= 40
    (tmp_path / "cwd" / "my_algorithms.py").write_text(example)
    launch, collect = (words for words in commands(readme) if "runs/groupdro" in words)
    run_example([*launch, "--n_hparams", "1", "--steps", "3", "--workers", "1"], tmp_path / "cwd")
    assert collect[0] == "domainbed"
    finished = run_command(*collect[1:])
    assert finished.returncode == 0, finished.stderr
    rows = [line.split()[0] for line in finished.stdout.splitlines() if line.startswith(("ERM ", "MyGroupDRO "))]
    assert rows == ["ERM", "MyGroupDRO"] * 4


@pytest.mark.slow
def test_python_example_runs_as_shown(tmp_path: Path):
    """As a script: the example has no main guard, which processes that import it would require."""
    (example,) = blocks(README, "python")
    script = tmp_path / "example.py"
    script.write_text(example.replace("101", "3"))
    finished = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("6 runs requested: 6 done") == 1
    assert "test_acc" in finished.stdout
    assert (tmp_path / "runs" / "job" / "done").exists()


def run_example(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command of a README, answering yes to its question."""
    scripts = Path(sys.executable).parent  # the console script does not search the current folder by itself
    command = {"python": sys.executable, "domainbed": shutil.which("domainbed", path=scripts) or "domainbed"}[words[0]]
    finished = subprocess.run([command, *words[1:]], cwd=folder, capture_output=True, text=True, input="y")
    assert finished.returncode == 0, finished.stderr
    return finished


def test_quoted_tables_match_the_real_layout(tmp_path: Path):
    """Compare everything but the numbers with the tables of a sweep like the quickstart's."""
    (algorithms,) = re.findall(r"--algorithms ([\w ]+)", (ROOT / "scripts/quickstart").read_text())
    records = [
        make_record("ColoredDigits", algorithm, (env,), trial, hparams_seed)
        for algorithm in algorithms.split()
        for env, trial, hparams_seed in itertools.product(range(3), range(2), range(2))
    ]
    printed = masked(as_text(make_report(load_sweep(str(write_sweep(tmp_path, records))), ReportOptions())))
    (quoted,) = [block for block in blocks(README, "text") if "Model selection" in block]
    for part in quoted.split("...\n"):
        assert masked(part) in printed


def masked(printed: str) -> str:
    """Replace numbers, and the widths that depend on them."""
    return re.sub(r"[ -]+", " ", re.sub(r"\d+\.\d", "N", printed)).strip()


def test_tables_of_algorithms_show_their_families():
    readme = (ROOT / "domainbed" / "algorithms" / "README.md").read_text()
    rows = re.findall(r"^\| ([\w, ]+) \| (\w+) \| `\w+\.py`", readme, re.MULTILINE)
    shown = {name: family for names, family in rows for name in names.split(", ")}
    assert shown == {name: family for family, names in FAMILIES.items() for name in names}
