"""Imports only ever point down."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "domainbed"
FROM_THE_GROUND_UP = [
    "errors",
    "files",
    "seeding",
    "registry",
    "hparams_registry",
    "compute",
    "backbones",
    "networks",
    "gradients",
    "loading",
    "datasets",
    "algorithms",
    "landscape",
    "colored_mnist",
    "model_selection",
    "records",
    "engine",
    "sweep",
    "reporting",
    "scripts",
]


def imports_of(path: Path) -> set[str]:
    """The rooms of this package that a file imports from."""
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
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files}
    assert rooms == set(FROM_THE_GROUND_UP)
    for path in files:
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imports_of(path):
            assert FROM_THE_GROUND_UP.index(other) <= FROM_THE_GROUND_UP.index(room), f"{path} imports {other}"
