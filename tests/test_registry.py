import subprocess
import sys

import pytest

from domainbed.algorithms import ALGORITHMS
from domainbed.errors import UsageError, near
from domainbed.registry import Registry, import_modules


def test_lists_builtin_names_first_and_imports_late():
    registry: Registry = Registry("thing", builtin={"b": "no.such.module:x", "path": "os:path"})
    registry.register("a")(1)
    assert list(registry) == ["b", "path", "a"]
    assert len(registry) == 3
    assert "b" in registry
    assert "c" not in registry
    assert registry["a"] == 1
    import os

    assert registry["path"] is os.path


def test_unknown_name_is_told_with_its_neighbours():
    with pytest.raises(UsageError, match="unknown algorithm 'EMR'; did you mean ERM"):
        ALGORITHMS["EMR"]


def test_a_name_is_given_once():
    registry: Registry = Registry("thing", builtin={"b": "os:path"})
    with pytest.raises(UsageError, match="thing 'b' is registered already"):
        registry.register("b")(2)


def test_near():
    assert near("coloredmnist", ["ColoredMNIST", "PACS"]) == "did you mean ColoredMNIST?"
    assert near("zzz", ["ColoredMNIST", "PACS"]) == "choose from ColoredMNIST, PACS"
    assert near("zzz", []) == "there are none"


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(UsageError, match="can't import your module no_such_module: ModuleNotFoundError"):
        import_modules(["no_such_module"])
    with pytest.raises(UsageError, match=r"give its name without \.py"):
        import_modules(["no_such_module.py"])


@pytest.mark.parametrize("module", ["sweep", "train", "collect_results"])
def test_command_lines_answer_without_torch(module: str):
    script = (
        f"import sys; from domainbed.scripts import {module} as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "--help" in finished.stdout


def test_classes_can_be_imported_by_name_as_from_domainbed():
    from domainbed.algorithms import ERM, Algorithm

    assert ALGORITHMS["ERM"] is ERM
    assert issubclass(ERM, Algorithm)
    with pytest.raises(ImportError, match="cannot import name 'EMR'"):
        from domainbed.algorithms import EMR  # noqa: F401
