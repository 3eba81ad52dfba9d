"""Each package imports only those below it; optional packages are imported only by their own commands."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "domainbed"
BOTTOM_UP = [
    "errors",
    "files",
    "terminal",
    "seeding",
    "registry",
    "cli",
    "options",
    "hparams",
    "warm_up",
    "compute",
    "efficientnet_lite",
    "backbones",
    "networks",
    "gradients",
    "loading",
    "datasets",
    "algorithms",
    "hparams_registry",
    "records",
    "predictions",
    "model_selection",
    "pruning",
    "engine",
    "sweep",
    "command_launchers",
    "reporting",
    "landscape",
    "replay",
    "analysis",
    "inspection",
    "colored_mnist",
    "scripts",
    "api",
    "lib",
]
# Optional packages, and the scripts that import them.
OPTIONAL = {
    "landscape": "landscape",
    "replay": "replay",
    "analysis": "analyze",
    "inspection": "inspect",
    "colored_mnist": "colored_mnist",
}


def imports_of(path: Path) -> set[str]:
    """Return the subpackages and top-level modules of domainbed that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "domainbed":
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("domainbed."):
            modules.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            modules |= {a.name.split(".")[1] for a in node.names if a.name.startswith("domainbed.")}
    return modules - {"__version__"}


def test_imports_point_down():
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    packages = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files}
    assert packages == set(BOTTOM_UP)
    for path in files:
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imports_of(path):
            assert BOTTOM_UP.index(other) <= BOTTOM_UP.index(package), f"{path} imports {other}"


def test_nothing_imports_domainbeds_old_paths():
    """They exist for classes written for DomainBed."""
    for path in (path for path in ROOT.rglob("*.py") if path.parent != ROOT / "lib"):
        assert "lib" not in imports_of(path), path


def test_optional_packages_are_imported_only_by_their_commands():
    for path in ROOT.rglob("*.py"):
        package = path.relative_to(ROOT).parts[0]
        if package not in OPTIONAL:
            allowed = {name for name, script in OPTIONAL.items() if package == "scripts" and path.stem == script}
            assert not imports_of(path) & OPTIONAL.keys() - allowed, path
