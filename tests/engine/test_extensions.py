"""Mistakes in users' algorithms, datasets, averagings and trackers end in one line that names them."""

import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.base import Algorithm
from domainbed.algorithms.erm import ERM
from domainbed.algorithms.fishr import Fishr
from domainbed.datasets import DATASETS, FeatureEnvironment, FileEnvironment, MultipleDomainDataset
from domainbed.datasets import ArrayEnvironment as Env
from domainbed.engine.algorithm_checks import describe_untrained
from domainbed.engine.averaging import AVERAGINGS
from domainbed.engine.averaging.base import Averaging
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.digest import code_digest
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.model import load_model
from domainbed.engine.tracking import TRACKERS, Tracker
from domainbed.engine.train import train
from domainbed.errors import AlgorithmError, UsageError
from domainbed.hparams import Hparam, uniform
from domainbed.hparams_registry import default_hparams, resolve_hparams
from domainbed.records import CHECKPOINT_FILE, read_job
from domainbed.registry import import_modules
from domainbed.reporting.load import load_sweep

STEPS = {"steps": 3, "checkpoint_freq": 1, "hparams": '{"batch_size": 4}'}


def run(tmp_path: Path, algorithm: type[Algorithm] = ERM, control: JobControl | None = None, **kwargs) -> Path:
    """Train a job of an algorithm, and return its folder."""
    arguments = {"dataset": "ColoredDigits", "test_envs": (2,), "output_dir": str(tmp_path / "job"), **STEPS, **kwargs}
    with ALGORITHMS.temporarily("Mine", algorithm):
        train(JobConfig(algorithm="Mine", **arguments), control)
    return tmp_path / "job"


class Saves(ERM):
    def training_state(self):
        return {"q": 1}


class SavesAndLoads(Saves):
    def load_training_state(self, saved):
        pass


LOADED: list[int] = []


class Extends(ERM):
    def training_state(self):
        return {**super().training_state(), "mine": 3}

    def load_training_state(self, saved):
        LOADED.append(saved["mine"])
        super().load_training_state(saved)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Saves, r"^Saves.training_state lacks .*modules.*; extend the result of super\(\)"),
        (SavesAndLoads, r"^SavesAndLoads.training_state lacks .*modules.*; extend the result of super\(\)"),
    ],
)
def test_state_without_that_of_the_base_class_is_rejected(tmp_path: Path, algorithm: type[Algorithm], message: str):
    """Otherwise, a resumed job would start from untrained weights."""
    with pytest.raises(UsageError, match=message):
        run(tmp_path, algorithm)
    assert not (tmp_path / "job").exists()


def test_extended_state_is_saved_and_loaded(tmp_path: Path):
    with pytest.raises(Interrupted):
        run(tmp_path, Extends, JobControl(should_stop=iter([False, True] + 99 * [False]).__next__))
    LOADED.clear()
    run(tmp_path, Extends)
    assert LOADED == [3]


class OwnFeaturizer(ERM):
    def __init__(self, *args):
        super().__init__(*args)
        self.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(128, 32))


class FrozenCopy(ERM):
    def __init__(self, *args):
        super().__init__(*args)
        self.copy = nn.Linear(2, 2).requires_grad_(False)
        self.own = nn.Linear(2, 2)
        self.optimizers = [torch.optim.SGD(self.own.parameters())]


def test_parameters_that_no_optimizer_has_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture):
    run(tmp_path, OwnFeaturizer)
    note = "note: Mine: the parameters featurizer.1.weight, featurizer.1.bias are not in any optimizer, so updates"
    assert note in capsys.readouterr().out
    hparams = default_hparams("ERM", "ColoredDigits")
    assert describe_untrained(FrozenCopy((2, 8, 8), 2, 2, hparams)) == ""


class NoSuper(ERM):
    def __init__(self, *args):
        self.layer = nn.Linear(2, 2)


class Replaces(Fishr):
    HPARAMS = {"mine": Hparam(1.0)}


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            NoSuper,
            r"; call super\(\).__init__\(input_shape, num_classes, num_domains, hparams\) first in NoSuper.__init__",
        ),
        (
            Replaces,
            r"; HPARAMS of Replaces lacks those of Fishr, which it replaces: HPARAMS = \{\*\*Fishr.HPARAMS, …\}$",
        ),
    ],
)
def test_errors_have_hints(tmp_path: Path, algorithm: type[Algorithm], message: str):
    with pytest.raises(AlgorithmError, match=message):
        run(tmp_path, algorithm)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, "update must return a dict of metrics, not None"),
        (0.5, "update must return a dict of metrics, not 0.5"),
        ({1: 0.3}, "names of metrics must be strings, not 1"),
        ({"step": 3.0}, "records have an entry called 'step'; choose another name for this metric"),
        ({"env2_out_acc": 3.0}, "records have an entry called 'env2_out_acc'"),
        ({"loss": torch.zeros(2)}, "metric 'loss' returned by update must be a single number"),
    ],
    ids=str,
)
def test_wrong_metrics(tmp_path: Path, metrics: object, message: str):
    class Returns(ERM):
        def update(self, minibatches, unlabeled=None):
            return metrics

    with pytest.raises(AlgorithmError, match=f"^step 0: (Type|Value)Error: {message}"):
        run(tmp_path, Returns)


@pytest.mark.parametrize(
    ("predict", "shape"),
    [
        (lambda network, x: network[0](x), r"\(64, 32\)"),
        (lambda network, x: network(x)[:, 0], r"\(64,\)"),
        (lambda network, x: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("averaging", ["none", "swad"])  # SWAD measures losses first
def test_wrong_logits(tmp_path: Path, predict, shape: str, averaging: str):
    class Predicts(ERM):
        EVAL_BATCH_SIZE = 64

        def predict(self, x):
            return super().predict(x) if self.training else predict(self.network, x)

    message = rf"evaluation after step 0: .*predict must return logits \[n, num_classes\], here \(64, 2\), not {shape}"
    with pytest.raises(AlgorithmError, match=message):
        run(tmp_path, Predicts, averaging=averaging)


def test_algorithm_that_requires_photos_is_rejected_on_digits(tmp_path: Path):
    algorithm = type("Photos", (ERM,), {"REQUIRES_PHOTOS": True, "__module__": __name__})
    with pytest.raises(UsageError, match="Mine requires a dataset of photos, not of small images"):
        run(tmp_path, algorithm)


@pytest.mark.parametrize("value", [1.0, (1.0, lambda r: 2.0)], ids=["number", "as in DomainBed"])
def test_hyperparameters_must_be_declared_as_such(value: object):
    algorithm = type("Numbers", (ERM,), {"HPARAMS": {"mine": value}})
    with pytest.raises(UsageError, match=r"^algorithm 'Numbers': HPARAMS\['mine'\] is .*; make it an Hparam\(DEFAULT"):
        ALGORITHMS.register("Numbers")(algorithm)
    assert "Numbers" not in ALGORITHMS


def test_draws_must_be_functions():
    with pytest.raises(
        UsageError, match=r"the draw of Hparam\(1.0, …\) must be a function, such as uniform\(0, 1\), not 3"
    ):
        Hparam(1.0, 3)  # type: ignore[arg-type]
    algorithm = type("Draws", (ERM,), {"HPARAMS": {"mine": Hparam(1.0, uniform)}})
    with (
        ALGORITHMS.temporarily("Draws", algorithm),
        pytest.raises(UsageError, match=r"^hyperparameter 'mine': its draw failed \(TypeError: uniform\(\) missing"),
    ):
        resolve_hparams("Draws", "ColoredDigits", 1, 0)


def test_registration_names_what_is_missing_or_taken():
    with pytest.raises(
        UsageError, match=r"register requires a name: .*\.register\(\"SavesAndLoads\"\)\(SavesAndLoads\)"
    ):
        ALGORITHMS.register(SavesAndLoads)  # type: ignore[arg-type]
    with (
        ALGORITHMS.temporarily("Mine", Saves),
        pytest.raises(
            UsageError, match=rf"^algorithm 'Mine' is already registered by module {__name__}; choose another name$"
        ),
    ):
        ALGORITHMS.register("Mine")(Extends)


# Datasets


def images(n: int = 20, shape: tuple[int, ...] = (1, 8, 8), dtype: type = np.float32) -> np.ndarray:
    return np.zeros((n, *shape), dtype)


LABELS = np.arange(20) % 3


@pytest.mark.parametrize(
    ("attributes", "make", "message"),
    [
        ({}, lambda: Env(images(), LABELS[:5]), r"ValueError: expected images .*, in test_extensions.py line \d"),
        ({}, lambda: Env(images().tolist(), LABELS), "must be NumPy arrays, not list and ndarray"),
        ({}, lambda: Env(images(), LABELS + 1), r"environment 'a': labels are 1 to 3, but must be 0 to 2 "),
        ({}, lambda: Env(images(), LABELS * 1.0), "'a': labels are float64; convert them to integers"),
        ({}, lambda: Env(images(shape=(8, 8, 1)), LABELS), r"'a': images are \(8, 8, 1\), but input_shape is"),
        ({}, lambda: Env(images(dtype=int), LABELS), "'a': images are int64; convert them to uint8"),
        ({}, lambda: (images(), LABELS), r"'a' is a tuple; make it an ArrayEnvironment\(images, labels\)"),
        ({}, lambda: Env(images()[:, :, ::-1], LABELS), r"'a': images are a reversed view, .*array\.copy"),
        ({}, lambda: Env(images(), LABELS[::-1]), r"'a': labels are a reversed view, .*array\.copy"),
        ({}, lambda: Env(images(dtype=">f4"), LABELS), r"'a': images are dtype\('>f4'\), which torch does not support"),
        ({}, lambda: FeatureEnvironment([images()], LABELS), "'a' is a FeatureEnvironment; make it an ArrayEnv"),
        ({}, lambda: FileEnvironment(Path(), ["x"], LABELS[:1], True), r"files have 3 channels, .* is \(1, 8, 8\)"),
        ({"num_classes": 3.0}, lambda: Env(images(), LABELS), "num_classes is 3.0, not an integer"),
        ({}, lambda: [][0], r"dataset 'Mine': IndexError: list index out of range, in test_extensions.py line \d+$"),
        ({"ENVIRONMENTS": ["a", "b", "c"]}, lambda: Env(images(), LABELS), "has 2 environments, but 3 ENV"),
        ({"num_classes": None}, lambda: Env(images(), LABELS), "has no attribute num_classes; set it in"),
    ],
)  # fmt: skip
def test_mistakes_in_datasets(tmp_path: Path, attributes: dict, make, message: str):
    class Dataset(MultipleDomainDataset):
        ENVIRONMENTS = ["a", "b"]
        SMALL_IMAGES = True
        input_shape = (1, 8, 8)
        num_classes = 3

        def __init__(self, root, test_envs, hparams, trial_seed=0):
            self.environments = [make(), make()]

    for name, value in attributes.items():
        if value is None:
            delattr(Dataset, name)
        else:
            setattr(Dataset, name, value)
    with DATASETS.temporarily("Mine", Dataset), pytest.raises(UsageError, match=message) as error:
        run(tmp_path, dataset="Mine", test_envs=(1,))
    assert str(error.value).startswith("dataset 'Mine'")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "job").exists()


def test_numbers_and_names_of_numpy_become_those_of_python(tmp_path: Path):
    """Saved models with others could not be loaded."""

    class Dataset(MultipleDomainDataset):
        ENVIRONMENTS = ["a", "b", "c"]
        SMALL_IMAGES = True

        def __init__(self, root, test_envs, hparams, trial_seed=0):
            self.environments = [Env(images(), LABELS)] * 3
            self.num_classes = LABELS.max() + 1
            self.class_names = np.unique(["x", "y", "z"])
            self.input_shape = list(images().shape[1:])

    class Declares(ERM):
        HPARAMS = {"mine": Hparam(np.log(2)), "switch": Hparam(np.True_)}

    with DATASETS.temporarily("Numpy", Dataset), ALGORITHMS.temporarily("Mine", Declares):
        folder = run(tmp_path, Declares, dataset="Numpy")
        model = load_model(folder / "model.pkl")
    assert model.class_names == ["x", "y", "z"]
    assert type(default_hparams("ERM", "ColoredDigits")["lr"]) is float
    assert model.hparams["mine"] == pytest.approx(0.693, abs=1e-3)
    assert model.hparams["switch"] is True


# Averagings and trackers


class Forgetful(Averaging):
    def tensors(self):
        return list(self.algorithm.parameters())

    def add_update(self):
        self.last = [p.detach().clone() for p in self.tensors()]

    def average(self):
        return self.last


def test_averaging_must_save_its_state(tmp_path: Path):
    with (
        AVERAGINGS.temporarily("mean", Forgetful),
        pytest.raises(UsageError, match="--averaging mean: Forgetful must implement state_dict and load_state_dict"),
    ):
        run(tmp_path, averaging="mean")


class SavesObjects(Forgetful):
    last: list = []

    def state_dict(self):
        return {"last": self.last, "decay": np.float64(0.9)}

    def load_state_dict(self, state):
        self.last = state["last"]


def test_averaging_must_save_what_can_be_loaded(tmp_path: Path):
    """By the first evaluation: after a kill, it would be too late."""
    with (
        AVERAGINGS.temporarily("mean", SavesObjects),
        pytest.raises(UsageError, match=r"^SavesObjects\.state_dict\(\)\['decay'\] is of type float64, and loading it"),
    ):
        run(tmp_path, averaging="mean")


class CopiesWeights(Extends):
    """Saves a copy of its weights, and not only the weights themselves."""

    def training_state(self):
        return {**super().training_state(), "copy": [p.detach().clone() for p in self.parameters()]}


def test_job_stopped_while_it_evaluates_an_average_saves_the_weights_of_training(tmp_path: Path):
    def is_in_last_evaluation() -> bool:
        frames = {frame.function: frame.frame for frame in inspect.stack()}
        return "make_record" in frames and frames["train"].f_locals["step"] > 100

    with pytest.raises(Interrupted):
        run(tmp_path, CopiesWeights, JobControl(should_stop=is_in_last_evaluation), averaging="sma", steps=120,
            checkpoint_freq=110)  # fmt: skip
    saved = torch.load(tmp_path / "job" / CHECKPOINT_FILE, weights_only=True)["algorithm"]
    weights = [value for name, value in saved["modules"].items() if value.is_floating_point()]
    assert all(any(torch.equal(copy, w) for w in weights) for copy in saved["copy"])


class Draws(Tracker):
    PREFIX = "draws"
    entries: object = {"draws": 1.0}

    def __init__(self, config, algorithm, splits, feed):
        pass

    def record(self):
        torch.rand(3)
        np.random.rand(3)
        return self.entries


def test_trackers_do_not_affect_training(tmp_path: Path):
    jobs = []
    for name in ("nothing", "draws"):
        with TRACKERS.temporarily("draws", Draws), ALGORITHMS.temporarily("Mine", ALGORITHMS["Mixup"]):
            folder = tmp_path / name
            train(JobConfig("ColoredDigits", "Mine", (2,), **STEPS, track=name, output_dir=str(folder)))
        jobs.append([(r["loss"], r["env2_in_acc"], r.get("draws")) for r in read_job(folder)[0]])
    assert [job[:2] for job in jobs[0]] == [job[:2] for job in jobs[1]]
    assert [job[2] for job in jobs[1]] == [1.0] * 3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "Draws.record must return a dict of numbers by name, not None"),
        ({"draws_a": torch.ones(1)}, r"Draws.record must return Python numbers; 'draws_a' is tensor"),
        ({"env0_out_acc": 1.0}, "Draws.record: records have an entry called 'env0_out_acc'"),
        ({"loss": 1.0}, "Draws.record: 'loss' must start with 'draws', the tracker's PREFIX"),
    ],
)
def test_wrong_entries_of_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: object, message: str):
    monkeypatch.setattr(Draws, "entries", entries)
    with TRACKERS.temporarily("draws", Draws), pytest.raises(UsageError, match=message):
        run(tmp_path, track="draws")


# Code


CODE = """
from domainbed.algorithms import ALGORITHMS, ERM

@ALGORITHMS.register("Edited")
class Edited(ERM):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes the user's module and imports it again."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(code: str) -> None:
        (tmp_path / "edited_algorithm.py").write_text(code)
        sys.modules.pop("edited_algorithm", None)
        ALGORITHMS._registered.pop("Edited", None)
        importlib.invalidate_caches()
        import_modules(["edited_algorithm"])

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    ALGORITHMS._registered.pop("Edited", None)


def test_edited_code_is_reported(tmp_path: Path, module, capsys: pytest.CaptureFixture):
    """Of a job that is resumed, and of the jobs of a table."""

    def job(name: str, **kwargs) -> JobConfig:
        return JobConfig("ColoredDigits", "Edited", (2,), **STEPS, **kwargs, output_dir=str(tmp_path / "sweep" / name))

    module(CODE)
    train(job("a"))
    assert load_sweep(str(tmp_path / "sweep")).problems == []
    with pytest.raises(Interrupted):
        train(job("b", hparams_seed=1), JobControl(should_stop=iter([False, True] + 99 * [False]).__next__))
    module(CODE + "# edited\n")
    capsys.readouterr()
    train(job("b", hparams_seed=1))
    note = (
        "note: the code of Edited or ColoredDigits has changed since this checkpoint; to train with the new code only"
    )
    assert note in capsys.readouterr().out
    assert (
        "ColoredDigits: runs of Edited were trained with 2 versions of its code"
        in load_sweep(str(tmp_path / "sweep")).problems
    )
    assert load_model(tmp_path / "sweep" / "b" / "model.pkl").algorithm is not None


def test_hash_is_that_of_the_code_that_runs(tmp_path: Path, module):
    """A file that is edited after its import has no effect on this process."""
    module(CODE)
    before = code_digest([ALGORITHMS["Edited"]])
    (tmp_path / "edited_algorithm.py").write_text(CODE + "# edited\n")
    assert code_digest([ALGORITHMS["Edited"]]) == before
    module(CODE + "# edited\n")
    assert code_digest([ALGORITHMS["Edited"]]) != before


def test_code_of_this_package_does_not_count():
    assert code_digest([ERM, Fishr, nn.Linear, dict]) is None
    assert code_digest([Saves]) == code_digest([SavesAndLoads, Saves]) is not None


def test_job_folder_instead_of_the_sweep(tmp_path: Path):
    folder = run(tmp_path)
    with pytest.raises(UsageError, match="; it is the folder of a job: pass the folder that contains it"):
        load_sweep(str(folder))
