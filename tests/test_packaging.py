"""The source distribution and the wheel: their contents and metadata, and the wheel outside a checkout."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
import yaml

import domainbed

ROOT = Path(__file__).parents[1]
FILES = {
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"),
    ".ci/run",
}
FOLDERS = ("domainbed", "results", "scripts", "tests")
# Not find_spec("pip"): setuptools reacts to it by disabling its distutils, which torch.compile needs in this process.
INSTALLED = {distribution.name for distribution in distributions()}

pytestmark = pytest.mark.skipif(not {"setuptools", "pip"} <= INSTALLED, reason="builds a wheel")


def run(*command: object, cwd: Path, timeout: int = 240) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    finished = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def files_of(root: Path, *folders: str) -> set[str]:
    """Return the paths of all files in these folders, without what Python and pytest cache."""
    found = {path.relative_to(root) for folder in folders for path in (root / folder).rglob("*") if path.is_file()}
    return {str(path) for path in found if not {"__pycache__", ".pytest_cache"} & set(path.parts)}


@dataclass
class Built:
    """A source distribution, and the wheel that is built from it alone, as `python -m build` does."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp("built")
    for name in files_of(ROOT, *FOLDERS) | FILES:
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / "source" / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_{0}(sys.argv[1])"
    run(sys.executable, "-c", build.format("sdist"), root / "sdist", cwd=root / "source")
    (sdist,) = (root / "sdist").iterdir()
    with tarfile.open(sdist) as tar:
        tar.extractall(root / "unpacked", filter="data")
    (unpacked,) = (root / "unpacked").iterdir()
    run(sys.executable, "-c", build.format("wheel"), root / "wheel", cwd=unpacked)
    (wheel,) = (root / "wheel").iterdir()
    return Built(sdist, wheel)


def test_sdist_contains_everything(built: Built):
    with tarfile.open(built.sdist) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
        assert tar.getmember(f"domainbed-{domainbed.__version__}/scripts/quickstart").mode & 0o100, "executable"
    generated = {name for name in names if name.startswith("domainbed.egg-info/")} | {"PKG-INFO"}
    assert names - generated == files_of(ROOT, *FOLDERS) | FILES


def test_wheel_contains_the_package_only(built: Built):
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {name for name in files_of(ROOT, "domainbed") if not name.endswith(".md")}


def test_metadata(built: Built):
    with zipfile.ZipFile(built.wheel) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"domainbed-{domainbed.__version__}.dist-info/METADATA"))
    assert metadata["Version"] == domainbed.__version__
    assert metadata["License"] == "MIT"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == domainbed.__version__
    assert [author["name"] for author in citation["authors"]] == [metadata["Author"]]
    assert set(citation["keywords"]) <= {keyword.strip() for keyword in metadata["Keywords"].split(",")}
    urls = {url.rpartition(", ")[2] for url in metadata.get_all("Project-URL")}
    assert {reference["url"] for reference in citation["references"]} <= urls
    assert f"\n## {domainbed.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_wheel_works_outside_a_checkout(built: Built, tmp_path: Path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site_packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # The dependencies come from this environment; its .pth file, which names the checkout, is not read.
    dependencies = Path(torch.__file__).parents[1]
    (site_packages / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-deps", "--force-reinstall", built.wheel, cwd=tmp_path)

    check_commands(tmp_path / "venv", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif("DOMAINBED_TEST_PYTHON" not in os.environ, reason="DOMAINBED_TEST_PYTHON names no other Python")
def test_wheel_and_its_dependencies_install_into_another_python(built: Built, tmp_path: Path):
    run(os.environ["DOMAINBED_TEST_PYTHON"], "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    version = run(python, "-c", "import sys; print(*sys.version_info[:2])", cwd=tmp_path).split()
    assert version != [str(number) for number in sys.version_info[:2]]
    # Most modules are never imported; the others are compiled when they are.
    options = ["--quiet", "--no-compile", "--no-cache-dir", "-c", ROOT / "scripts" / "constraints.txt"]
    run(python, "-m", "pip", "install", *options, built.wheel, cwd=tmp_path, timeout=1200)
    check_commands(tmp_path / "venv", tmp_path)
    shutil.rmtree(tmp_path / "venv")  # 5 GB with CUDA


def check_commands(environment: Path, cwd: Path) -> None:
    """Train, collect and report with the package that is installed in a virtual environment."""
    python, tool = environment / "bin" / "python", environment / "bin" / "domainbed"
    (site_packages,) = (environment / "lib").glob("python*/site-packages")
    location = run(python, "-c", "import domainbed; print(domainbed.__file__)", cwd=cwd).strip()
    assert Path(location).is_relative_to(site_packages)
    assert "collect_results" in run(tool, "--help", cwd=cwd)
    job = ["--dataset", "ColoredDigits", "--algorithm", "ERM", "--test_envs", 0, "--steps", 2]
    run(tool, "train", *job, "--output_dir", "sweep/job", cwd=cwd)
    assert "ColoredDigits" in run(tool, "collect", "--input_dir", "sweep", "--compare", "published", cwd=cwd)
    run(tool, "collect", "--input_dir", "sweep", "--format", "html", "--output", "report.html", cwd=cwd)
    assert "<style>" in (cwd / "report.html").read_text()
    run(tool, "colored_mnist", "--help", cwd=cwd)
