import os
import sys
from pathlib import Path

import pytest

from domainbed.algorithms import ALGORITHMS
from domainbed.errors import UsageError, suggest
from domainbed.registry import Registry, import_modules
from tests.conftest import read_sweep


def test_builtin_names_come_first_and_are_imported_on_access():
    registry: Registry = Registry("thing", builtin={"b": "no.such.module:x", "path": "os:path"})
    registry.register("a")(1)
    assert list(registry) == ["b", "path", "a"]
    assert registry.builtin_names == ("b", "path")
    assert len(registry) == 3
    assert "b" in registry
    assert "c" not in registry
    assert registry["a"] == 1
    assert registry["path"] is os.path


def test_unknown_name_suggests_similar_names():
    with pytest.raises(UsageError, match="unknown algorithm 'EMR'; did you mean ERM"):
        ALGORITHMS["EMR"]


def test_registered_name_is_rejected():
    registry: Registry = Registry("thing", builtin={"b": "os:path"})
    with pytest.raises(UsageError, match="thing 'b' is already registered"):
        registry.register("b")(2)


def test_temporary_registration():
    registry: Registry = Registry("thing", builtin={"path": "os:path"})
    registry.register("a")(1)
    with registry.temporarily("a", 2), registry.temporarily("b", 3), registry.temporarily("path", 4):
        assert [registry[name] for name in registry] == [4, 2, 3]
    assert list(registry) == ["path", "a"]
    assert registry["a"] == 1
    assert registry["path"] is os.path
    with pytest.raises(KeyError), registry.temporarily("path", 5):
        raise KeyError
    assert registry["path"] is os.path


def test_suggest():
    assert suggest("coloredmnist", ["ColoredMNIST", "PACS"]) == "did you mean ColoredMNIST?"
    assert suggest("zzz", ["ColoredMNIST", "PACS"]) == "choose from ColoredMNIST, PACS"
    assert suggest("zzz", []) == "none are available"


def test_failing_import_names_the_module():
    with pytest.raises(UsageError, match="cannot import module no_such_module: ModuleNotFoundError"):
        import_modules(["no_such_module"])
    with pytest.raises(UsageError, match=r"omit the \.py suffix"):
        import_modules(["no_such_module.py"])
    with pytest.raises(UsageError, match="cannot import module 5: module names must be strings"):
        import_modules([5])  # read from a damaged file


def test_classes_can_be_imported_from_the_package():
    from domainbed.algorithms import ERM, Algorithm

    assert ALGORITHMS["ERM"] is ERM
    assert issubclass(ERM, Algorithm)
    with pytest.raises(ImportError, match="cannot import name 'EMR'"):
        from domainbed.algorithms import EMR  # noqa: F401


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder for PYTHONPATH with an installed package that registers algorithms by entry points."""
    (tmp_path / "plugin-1.0.dist-info").mkdir()
    (tmp_path / "plugin-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (tmp_path / "plugin-1.0.dist-info" / "entry_points.txt").write_text(
        "[domainbed.algorithms]\nHalfERM = plugin:HalfERM\nBroken = plugin_broken:Broken\nERM = plugin:HalfERM\n"
        "[domainbed.datasets]\nSmallDigits = plugin:SmallDigits\n"
    )
    (tmp_path / "plugin_broken.py").write_text("import no_such_module\n")
    # In DomainBed's style: `update` returns floats.
    (tmp_path / "plugin.py").write_text("""
import torch
import torch.nn.functional as F
from domainbed import networks
from domainbed.algorithms import ALGORITHMS, Algorithm
from domainbed.datasets.digits import ColoredDigits
from domainbed.hparams import Hparam, one_of

@ALGORITHMS.register("HalfERM")
class HalfERM(Algorithm):
    HPARAMS = {"half": Hparam(0.5, one_of(0.25, 0.125))}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super(HalfERM, self).__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, self.hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, self.hparams['nonlinear_classifier'])
        self.network = torch.nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams['weight_decay'])

    def update(self, minibatches, unlabeled=None):
        all_x = torch.cat([x for x, y in minibatches])
        all_y = torch.cat([y for x, y in minibatches])
        loss = self.hparams["half"] * F.cross_entropy(self.predict(all_x), all_y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {'loss': loss.item()}

    def predict(self, x):
        return self.network(x)


class SmallDigits(ColoredDigits):
    ENVIRONMENTS = ["a", "b", "c"]
""")
    return tmp_path


@pytest.mark.slow
def test_installed_package_provides_algorithms_and_datasets(installed: Path, run_module):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    args = ["--output_dir", "s", "--datasets", "SmallDigits", "--algorithms", "HalfERM", "--steps", 3]
    args += ["--n_hparams", 1, "--n_trials", 1, "--skip_confirmation", "--workers", 1]
    launched = run_module("sweep", "launch", *args, env=env)
    assert launched.returncode == 0, launched.stderr
    assert "3 done" in launched.stdout
    records, _ = read_sweep(installed / "cwd" / "s")
    assert set(records["algorithm"]) == {"HalfERM"}
    assert set(records["dataset"]) == {"SmallDigits"}
    for log in (installed / "cwd" / "s").glob("*/log.txt"):
        assert "'half': 0.5" in log.read_text()

    broken = run_module("train", "--dataset", "ColoredDigits", "--algorithm", "Broken", "--output_dir", "t", env=env)
    assert broken.returncode == 2
    assert "cannot import algorithm 'Broken' (plugin_broken:Broken) of plugin: ModuleNotFoundError" in broken.stderr
    listed = run_module("train", "--algorithm", "x", env=env)
    assert "choose from ERM, CORAL, DANN," in listed.stderr
    assert ", HalfERM, Broken" in listed.stderr


def test_current_folder_is_searched_only_for_modules_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And last, so its files never replace installed packages."""
    (tmp_path / "module_in_current_folder.py").write_text("found = True")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = list(sys.path)
    import_modules([])
    assert sys.path == before
    import_modules(["module_in_current_folder"])
    assert sys.path == [*before, ""]
    assert sys.modules.pop("module_in_current_folder").found
