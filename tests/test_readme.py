"""What the README says is so."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from domainbed.reporting.formats.text import text
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import load_sweep
from domainbed.reporting.report import make_report
from domainbed.scripts import (
    collect_results,
    colored_mnist,
    download,
    landscape,
    list_top_hparams,
    plot,
    recompute,
    sweep,
    train,
)
from domainbed.scripts.config_file import with_config_file
from domainbed.sweep.launchers.slurm import sbatch_parameters
from tests.conftest import make_record, write_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every `$ …` line of the README, as words."""
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_the_example_algorithm_works_as_shown(tmp_path: Path):
    (example,) = [block for block in blocks("python") if "ALGORITHMS.register" in block]
    assert len(example.splitlines()) < 40
    (tmp_path / "my_algorithms.py").write_text(example)
    launch, collect = [words for words in commands() if "runs/groupdro" in words]
    for words in (launch, collect):
        assert words[0] == "python"
        finished = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, input="y")
        assert finished.returncode == 0, finished.stderr
    rows = [line.split()[0] for line in finished.stdout.splitlines() if line.startswith(("ERM ", "GroupDRO "))]
    assert rows == ["ERM", "GroupDRO"] * 4


def test_every_command_line_parses():
    scripts = {
        "sweep": sweep,
        "collect_results": collect_results,
        "list_top_hparams": list_top_hparams,
        "plot": plot,
        "recompute": recompute,
        "colored_mnist": colored_mnist,
        "download": download,
        "landscape": landscape,
        "train": train,
    }
    modules = {f"domainbed.scripts.{name}": module for name, module in scripts.items()}
    parsed = [modules[words[2]].parser().parse_args(words[3:]) for words in commands() if words[0] == "python"]
    assert len(parsed) == 26
    for words in commands():
        if words[0].startswith("scripts/"):
            assert (ROOT / words[0]).is_file()


def test_the_map_shows_every_file_and_no_other():
    (house,) = [block for block in blocks("text") if block.startswith("domainbed/")]
    for path in sorted((ROOT / "domainbed").rglob("*.py")):
        if path.name not in ("__init__.py",):
            assert path.name in house, f"{path} is not on the map"
    for name in re.findall(r"[\w/]+\.(?:py|txt)", house):
        found = [*ROOT.glob(f"domainbed/**/{name}"), *ROOT.glob(f"scripts/{name}"), *ROOT.glob(f"tests/{name}")]
        assert found, f"{name} is on the map only"
    for folder in re.findall(r"^ *(\w+)/ ", house, flags=re.MULTILINE):
        rooms = [path for path in (ROOT / "domainbed").iterdir() if path.is_dir()]
        assert any((base / folder).is_dir() for base in (ROOT, ROOT / "domainbed", *rooms)), folder


def test_the_quoted_tables_look_like_the_real_ones(tmp_path: Path):
    """All but the figures, and how wide they are."""
    (algorithms,) = re.findall(r"--algorithms ([\w ]+)", (ROOT / "scripts/quickstart").read_text())
    records = [
        make_record("ColoredDigits", algorithm, (env,), trial, hparams_seed)
        for algorithm in algorithms.split()
        for env, trial, hparams_seed in itertools.product(range(3), range(2), range(2))
    ]
    (quoted,) = [block for block in blocks("text") if "Model selection" in block]
    quoted = quoted[quoted.index("84 runs asked for") : quoted.index("\n84 runs asked for: 84 done; written to")]
    told = text(make_report(load_sweep(str(write_sweep(tmp_path, records))), ReportOptions()))
    assert masked(quoted) == masked(told.partition("\n\nWhat was asked for is not kept here")[0])


def masked(text: str) -> str:
    return re.sub(r"[ -]+", " ", re.sub(r"\d+\.\d", "N", text)).strip()


def test_links_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert target.removeprefix("#") in headings if target.startswith("#") else (ROOT / target).exists(), target


def test_the_example_of_a_clusters_options_holds(tmp_path: Path):
    (example,) = blocks("yaml")
    file = tmp_path / "slurm.yaml"
    file.write_text(example)
    parser = sweep.parser()
    words = with_config_file(["launch", "--output_dir", "x", "--launcher_config", str(file)], parser.command("launch"))
    parameters = sbatch_parameters(vars(parser.parse_args(words)))
    assert parameters["time"] == 240
    assert parameters["setup"] == ["module load cuda"]
    assert parameters["additional_parameters"] == {"requeue": True, "exclude": "node7"}


def test_no_placeholder_is_left():
    assert not re.findall(r"^[A-Z]{3,}$", README, flags=re.MULTILINE)
