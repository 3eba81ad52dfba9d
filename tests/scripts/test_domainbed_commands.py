"""What DomainBed's users type works, or is answered with what to type instead."""

import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed import cli, datasets, registry
from domainbed.algorithms import ALGORITHMS
from domainbed.command_launchers import REGISTRY
from domainbed.datasets.mnist import FILES
from domainbed.engine.interrupts import STOP_SIGNALS
from domainbed.engine.lock import LOCK_FILE
from domainbed.errors import UsageError
from domainbed.records import read_job
from domainbed.scripts import collect_results, download, train
from domainbed.sweep.job import Job
from domainbed.sweep.launchers.function import accept_launcher
from domainbed.sweep.status import JobState
from tests.images import write_image
from tests.sweep.helpers import fill_folder, jobs_of, log_only, states

SMALL = ["--datasets", "ColoredDigits", "--n_hparams", "1", "--n_trials", "1", "--steps", "2", "--skip_confirmation"]
BATCH = ["--hparams", '{"batch_size": 8}']


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(registry, "_imported", {})


def run(line: str, capsys: pytest.CaptureFixture) -> tuple[object, str, str]:
    """Run a command line such as `train --algorithm ERM`; return its status, output and errors."""
    module, *args = shlex.split(line)
    main = importlib.import_module(f"domainbed.scripts.{module}").main
    with pytest.raises(SystemExit) as end:
        cli.run(lambda _: main(args))
    return end.value.code or 0, *capsys.readouterr()


# The commands of DomainBed's README, as written there.
ANSWERS = [
    (
        "train --data_dir=./domainbed/data/MNIST/ --algorithm ILC --dataset RotatedMNIST",
        r"unknown algorithm 'ILC'; .*ERM, CORAL, .*MIRO.* \(--import MODULE adds your own\)",
    ),
    ("train --algorithm IGA --dataset Spirals", r"unknown dataset 'Spirals'; .*PACS.* \(--import MODULE"),
    (
        "train --data_dir=./domainbed/data/MNIST/ --algorithm IGA --dataset ColoredMNIST --test_env 2",
        r"--data_dir './domainbed/data/MNIST/' is not a folder; create it first; MNIST is downloaded into it",
    ),
    (
        "sweep launch --data_dir=/my/datasets/path --output_dir=o --command_launcher MyLauncher",
        r"unknown launcher 'MyLauncher'; choose from local, multi_gpu, slurm \(--import MODULE adds your own\)",
    ),
    (
        "sweep launch --data_dir=/my/datasets/path --output_dir=o --command_launcher MyLauncher --algorithms ERM DANN "
        "--datasets RotatedMNIST VLCS --n_hparams 5 --n_trials 1",
        r"unknown launcher 'MyLauncher'",
    ),
    ("sweep delete_incomplete --output_dir o", r"--output_dir o contains no sweep; run `sweep launch` first"),
    (
        "sweep delete_incomplete --data_dir=/my/datasets/path --output_dir=o --command_launcher MyLauncher",
        r"--output_dir o contains no sweep; run `sweep launch` first",
    ),
    ("collect_results --input_dir=/my/sweep/output/path", r"--input_dir '/my/sweep/output/path' is not a folder"),
    ("collect_results --latex --input_dir=/my/sweep", r"--input_dir '/my/sweep' is not a folder"),
    ("sweep launch --output_dir o --task domain_adaptation", r"requires --uda_holdout_fraction above 0"),
    ("sweep launch --output_dir o --datasets PACS --test_envs 0 4", r"--test_envs 4: PACS has no such environment"),
    ("sweep launch --output_dir o --datasets PACS --test_envs 0 1 2 3", r"leaves no environment of PACS to train on"),
    ("sweep launch --output_dir o --datasets PACS --test_envs 1 1", r"lists an environment twice"),
    (
        "sweep launch --output_dir o --leave_one_out --test_envs 0",
        r"--leave_one_out cannot be combined with --test_envs",
    ),
    ("train --dataset ColoredDigits --hparams '{\"my_param\": 1}'", r"ERM has no hyperparameter 'my_param'"),
    ("download --data_dir data --verify", r"--verify requires --dataset"),
]


@pytest.mark.parametrize(("line", "message"), ANSWERS, ids=str)
def test_answer(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    status, out, err = run(line, capsys)
    assert (status, out) == (2, "")
    assert re.search(message, err), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_unknown_module_lists_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    package = importlib.import_module("domainbed.scripts")
    monkeypatch.setattr(sys, "argv", ["-m"])
    hints = {
        "save_images": "choose from train, sweep,",
        "trian": "did you mean train? Available: train",
        "cell": "",  # a module without a command
    }
    for name, hint in hints.items():
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", f"domainbed.scripts.{name}", "--data_dir", "d"])
        with pytest.raises(SystemExit):
            package._reject_unknown_module()
        assert capsys.readouterr().err.startswith(f"error: unknown command '{name}'; {hint}")
    for module in ("domainbed.scripts.train", "domainbed.scripts", "pytest"):
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", module])
        package._reject_unknown_module()


def test_download_without_a_dataset_lists_them(capsys: pytest.CaptureFixture):
    status, out, _ = run("download --data_dir=./domainbed/data", capsys)
    assert status == 0
    assert Path("domainbed/data").is_dir()
    assert list(Path("domainbed/data").iterdir()) == []
    assert re.search(r"^  DomainNet +586,575 images  18\.4 GB to download$", out, re.MULTILINE)
    assert re.search(r"^  ColoredMNIST +70,000 images  12 MB to download$", out, re.MULTILINE)
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(datasets.DATASETS)
    raw = Path("domainbed/data/MNIST/raw")
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).touch()
    assert run("download --data_dir=./domainbed/data", capsys)[1].count(f"70,000 images  exists: {raw}\n") == 2
    with pytest.raises(UsageError, match="--dataset Table must be checked by itself"):
        download.main(["--data_dir", "t.csv", "--dataset", "Table", "ColoredDigits"])
    assert not Path("t.csv").exists()
    assert download.main(["--data_dir", "new", "--dataset", "ColoredDigits"]) == 0
    assert Path("new").is_dir()


def test_dummy_launcher_needs_no_data(capsys: pytest.CaptureFixture):
    """And accepts all options of DomainBed's launch."""
    line = (
        "sweep launch --data_dir=/my/datasets/path --output_dir=o --command_launcher dummy --algorithms ERM DANN "
        "--datasets RotatedMNIST PACS --n_hparams_from 1 --n_hparams 3 --n_trials 1 --single_test_env "
        "--holdout_fraction 0.3 --skip_confirmation --steps 10 --seed 0 --task domain_generalization "
        """--hparams '{"freeze_bn": true}'"""
    )
    status, out, err = run(line, capsys)
    assert (status, err) == (0, "40 jobs in o: 40 not launched\n")
    commands = [shlex.split(command) for command in out.splitlines()]
    assert len(commands) == 40
    assert list(Path().iterdir()) == []
    config = train.config_of(train.parser().parse_args(commands[0][3:]))
    assert commands[0][1:3] == ["-m", "domainbed.scripts.train"]
    assert (config.steps, config.holdout_fraction, config.hparams) == (10, 0.3, '{"freeze_bn": true}')
    assert config.data_dir == "/my/datasets/path"


def launched(*words: str) -> list[Job]:
    return jobs_of(["launch", "--output_dir", "o", *SMALL, "--algorithms", "ERM", *words])


def test_seed_changes_every_job():
    assert launched("--seed", "0") == launched()
    seeds = [{job.config.seed for job in launched("--seed", seed)} for seed in "012"]
    assert [len(s) for s in seeds] == [3, 3, 3]
    assert len(set.union(*seeds)) == 9


def test_domain_adaptation():
    jobs = launched("--task", "domain_adaptation", "--uda_holdout_fraction", "0.5")
    assert {(job.config.task, job.config.uda_holdout_fraction) for job in jobs} == {("domain_adaptation", 0.5)}
    assert not set(jobs) & set(launched())


def test_sets_of_test_environments(tmp_path: Path):
    """In the order of the command line; the same set in another order is the same job, also as a single one."""
    jobs = launched("--test_envs", "1", "0", "--test_envs", "2", "--test_envs", "0", "1")
    assert [job.config.test_envs for job in jobs] == [(0, 1), (2,)]
    assert jobs[1] == launched()[2]
    assert jobs[0] in launched("--leave_one_out")
    for text in ("test_envs: [1, 0]", "test_envs: [[1, 0]]", "test_envs: [[0, 1]]\nalgorithms: [ERM]"):
        (tmp_path / "a.yaml").write_text(text)
        assert launched("--launcher_config", str(tmp_path / "a.yaml")) == jobs[:1]
        assert launched("--launcher_config", str(tmp_path / "a.yaml"), "--test_envs", "2") == jobs[1:]
    (tmp_path / "a.toml").write_text("test_envs = [[2], [0, 1]]")
    assert launched("--launcher_config", str(tmp_path / "a.toml")) == jobs[::-1]


def words_of(algorithm: str = "ERM", launcher: str = "Theirs", *words: str) -> list[str]:
    grid = [*SMALL, *BATCH, "--algorithms", algorithm, "--command_launcher", launcher]
    return ["launch", "--output_dir", "o", *grid, *words]


def train_here(commands: list[str]) -> None:
    """Run the command lines, as a DomainBed launcher does, but in this process; failures of one end only that one."""
    while commands:
        words = shlex.split(commands.pop(0))
        assert words[:3] == [sys.executable, "-m", "domainbed.scripts.train"]
        try:
            train.main(words[3:])
        except Exception as error:
            print(f"{type(error).__name__}: {error}")


@pytest.fixture
def their_launcher() -> Iterator[None]:
    with REGISTRY.temporarily("Theirs", accept_launcher("Theirs", train_here)):
        yield


def test_function_launcher_and_single_source_training(their_launcher: None, capsys: pytest.CaptureFixture):
    words = words_of("ERM", "Theirs", "--test_envs", "0", "1", "--test_envs", "2")
    line = shlex.join(["sweep", *words])
    status, out, _ = run(line, capsys)
    assert status == 0, out
    assert states(jobs_of(words)) == [JobState.DONE] * 2
    assert "2 done after" in out
    assert "Watch the progress" not in out
    record = read_job(jobs_of(words)[0].folder)[0][-1]
    assert record["args"]["test_envs"] == [0, 1]
    assert {f"env{env}_{part}_acc" for env in range(3) for part in ("in", "out")} <= record.keys()
    assert not any((job.folder / LOCK_FILE).exists() for job in jobs_of(words))

    assert run(line, capsys)[0] == 0  # nothing left to do
    assert run("sweep status --output_dir o", capsys)[0] == 0
    status, out, _ = run("collect_results --input_dir=o", capsys)
    assert "2 runs requested: 2 done" in out
    assert "Runs with several test environments are in no table (1 of 2): selection methods require a single one" in out
    assert collect_results.main(["--latex", "--input_dir", "o"]) is None
    latex = capsys.readouterr().out
    assert latex.startswith("\\documentclass")
    collect_results.main(["--format", "latex", "--input_dir", "o"])
    assert capsys.readouterr().out == latex


def test_failed_commands_are_recorded_and_retried(their_launcher: None, capsys: pytest.CaptureFixture):
    importlib.import_module("tests.sweep.misbehaving")
    hparams = ["--hparams", json.dumps({"how": "raise", "batch_size": 4})]
    line = shlex.join(["sweep", *words_of("Misbehaving", "Theirs", *hparams, "--test_envs", "2")])
    status, out, err = run(line, capsys)
    assert status == 1, (out, err)
    assert "1 failed after" in out
    assert "FAILED Misbehaving on ColoredDigits" in err
    status, out, _ = run("sweep status --output_dir o --failed", capsys)
    assert status == 1
    assert "failed once, last on" in out
    assert "log: " not in out  # the launcher decides where the output goes
    assert "Skipping failed jobs" in run(line, capsys)[1]
    run(f"{line} --retry_failed", capsys)
    assert "failed 2 times" in run("sweep status --output_dir o --failed", capsys)[1]


def test_failure_before_a_job_has_a_folder_is_recorded(
    their_launcher: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def fail(*args: object) -> None:
        raise UsageError("the data is gone")

    line = shlex.join(["sweep", *words_of("ERM", "Theirs", "--test_envs", "2")])
    with monkeypatch.context() as patch:
        patch.setattr("domainbed.engine.train.set_up", fail)
        status, out, err = run(line, capsys)
    assert status == 1, (out, err)
    assert "1 failed after" in out
    assert ": the data is gone\n" in err
    assert "Skipping failed jobs" in run(line, capsys)[1]


@pytest.mark.slow
def test_output_of_commands_is_not_among_the_events(tmp_path: Path):
    launcher = "from domainbed.command_launchers import REGISTRY\nimport subprocess\n\n\n"
    launcher += "def call(commands):\n    for command in commands:\n        subprocess.call(command, shell=True)\n\n\n"
    Path("my_launchers.py").write_text(launcher + 'REGISTRY["Theirs"] = call\n')
    words = [*words_of("ERM", "Theirs", "--test_envs", "2"), "--import", "my_launchers", "--json"]
    command = [sys.executable, "-m", "domainbed.scripts.sweep", *words]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    events = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [event["event"] for event in events] == ["launched", "estimate", "done", "ended"]
    assert ", Python 3" in finished.stderr


def test_error_in_a_function_launcher(capsys: pytest.CaptureFixture):
    def broken(commands: list[str]) -> None:
        raise RuntimeError("no cluster")

    with REGISTRY.temporarily("Theirs", accept_launcher("Theirs", broken)):
        status, _, err = run(shlex.join(["sweep", *words_of()]), capsys)
    assert status == 2
    assert re.search(
        r"launcher 'Theirs' failed: RuntimeError: no cluster, in test_domainbed_commands\.py line \d+$", err
    )


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signals_end_a_function_launcher(number: signal.Signals, capsys: pytest.CaptureFixture):
    """It would start the next command otherwise."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored, as with nohup")
    reached = []

    def interrupted(commands: list[str]) -> None:
        reached.append("before")
        signal.raise_signal(number)
        reached.append("after")

    handler = signal.getsignal(number)
    with REGISTRY.temporarily("Theirs", accept_launcher("Theirs", interrupted)):
        status, out, err = run(shlex.join(["sweep", *words_of()]), capsys)
    assert status == 128 + number
    assert reached == ["before"]
    assert "3 not launched after" in out
    assert "Stopped. Run the same command to resume." in err
    assert signal.getsignal(number) == handler


def test_registered_launchers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(REGISTRY, "_registered", dict(REGISTRY._registered))
    REGISTRY["mine"] = train_here  # type: ignore[assignment]
    assert "mine" in REGISTRY
    for name, item, message in (
        ("local", train_here, "launcher 'local' is already registered; choose another name, such as 'Mylocal'"),
        ("dummy", train_here, "launcher 'dummy' prints the commands; choose another name"),
        ("number", 3, "must be a subclass of Launcher or a function"),
        ("string", str, "must be a subclass of Launcher or a function"),
    ):
        with pytest.raises(registry.UsageError, match=message):
            REGISTRY[name] = item  # type: ignore[assignment]


def test_delete_incomplete_with_the_options_of_a_launch(capsys: pytest.CaptureFixture):
    """It deletes only jobs of that launch, whichever launcher ran them."""
    mine, other = words_of("ERM", "NotHere"), words_of("ERM", "local", "--steps", "3")
    jobs, others = log_only(mine), log_only(other)
    for job in (*jobs[:2], *others[:1]):
        fill_folder(job, JobState.INCOMPLETE)
    fill_folder(others[1], JobState.DONE)
    status, out, err = run(shlex.join(["sweep", "delete_incomplete", *mine[1:]]), capsys)
    assert (status, err) == (3, "")
    assert out.startswith("The options select 3 of the 6 jobs in o\n")
    assert [job.folder.exists() for job in (*jobs, *others)] == [False] * 3 + [True, True, False]

    status, _, err = run("sweep delete_incomplete --output_dir o --skip_confirmation --algorithms DANN", capsys)
    assert status == 2
    assert "nothing was deleted; repeat the options of the launch" in err
    assert others[0].folder.exists()
    assert run("sweep delete_incomplete --output_dir o --skip_confirmation", capsys)[0] == 3
    assert [job.folder.exists() for job in others] == [False, True, False]
    assert "--n_hparams" not in run("sweep delete_incomplete --help", capsys)[1]


# The structure of DomainBed's algorithms.py.
THEIR_MODULE = """
import torch
import torch.nn as nn
from domainbed import networks
from domainbed.lib.misc import random_pairs_of_minibatches, ParamDict, MovingAverage, l2_between_dicts

ALGORITHMS = ['ERM', 'MyAlgorithm']


class Algorithm(torch.nn.Module):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super(Algorithm, self).__init__()
        self.hparams = hparams


class ERM(Algorithm):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super(ERM, self).__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, self.hparams)


class MyAlgorithm(ERM):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module with DomainBed's structure, which ends in the line of the test's parameter."""
    name = f"their_module_{len(sys.modules)}"
    (tmp_path / f"{name}.py").write_text(THEIR_MODULE + request.param)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ALGORITHMS, "_registered", dict(ALGORITHMS._registered))
    return name


REGISTER = "import domainbed.algorithms\ndomainbed.algorithms.ALGORITHMS.register"
ON_IMPORT = [
    ("", "MyAlgorithm", "defines it, but does not register it: add domainbed.algorithms.ALGORITHMS.register("),
    ("", "ERM", "warning: algorithm 'ERM' is the built-in one, not that of module their_module_"),
    (f"{REGISTER}('ERM')(ERM)", "ERM", "algorithm 'ERM' is already registered; choose another name, such as 'MyERM'"),
    (f"{REGISTER}('Mine')(ERM)", "Mine", "not derived from this package's Algorithm; replace its own base class with"),
    (f"{REGISTER}('Mine')('ERM')", "Mine", "algorithm 'Mine': 'ERM' is not"),
    ("ALGORITHMS.register('Mine')(ERM)", "Mine", "AttributeError: 'list' object has no attribute 'register'"),
]


@pytest.mark.parametrize(("module", "name", "message"), ON_IMPORT, indirect=["module"])
def test_module_with_their_structure(module: str, name: str, message: str, capsys: pytest.CaptureFixture):
    status, _, err = run(f"train --import {module} --dataset ColoredDigits --algorithm {name} --test_env 7", capsys)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1 + err.startswith("warning")


NEEDY = """
import domainbed.algorithms
class Needy(domainbed.algorithms.ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.alpha = self.hparams["alpha"] * {"one": 1}[self.hparams.get("key", "one")]
domainbed.algorithms.ALGORITHMS.register("Needy")(Needy)
"""


@pytest.mark.parametrize("module", [NEEDY], indirect=True)
def test_undeclared_hyperparameter(module: str, capsys: pytest.CaptureFixture):
    line = f"train --import {module} --dataset ColoredDigits --algorithm Needy --test_env 2 --steps 1 --output_dir t"
    status, _, err = run(line, capsys)
    assert status == 1
    assert "Needy has no hyperparameter 'alpha': declare it in the class, HPARAMS = {\"alpha\": Hparam(DEFAULT)}" in err
    assert "--hparams '{\"alpha\": VALUE}'" in err
    status, _, err = run(f"""{line} --hparams '{{"alpha": 2, "key": "two"}}'""", capsys)
    assert status == 1
    assert "KeyError: 'two'" in err
    assert "has no hyperparameter" not in err
    assert run(f"""{line} --hparams '{{"alpha": [2]}}'""", capsys)[0] == 2
    assert run(f"""{line} --hparams '{{"alpha": 2.5, "batch_size": 4}}'""", capsys)[0] == 0


def test_dataset_as_in_domainbed(tmp_path: Path):
    dataset = datasets.get_dataset_class("ColoredDigits")(None, [0], {})
    assert (len(dataset), dataset.input_shape, dataset.num_classes) == (3, (2, 8, 8), 2)
    assert (dataset.N_STEPS, dataset.N_WORKERS, dataset.ENVIRONMENTS) == (1001, 8, ["+90%", "+80%", "-90%"])
    pairs = list(dataset[1])
    assert len(pairs) == len(dataset[1]) == 599
    x, y = dataset[1][5]
    assert (x.dtype, x.shape, type(y)) == (torch.float32, (2, 8, 8), int)
    assert torch.equal(x, pairs[5][0])
    np.testing.assert_allclose(x, dataset[1].images[5] / 255)
    with pytest.raises(IndexError):
        dataset[1][599]

    for env in ("A", "B"):
        for label in ("cat", "dog"):
            write_image(tmp_path / "images" / env / label / "1.png")
    photos = datasets.get_dataset_class("Folder")(str(tmp_path / "images"), [0], {"data_augmentation": True})
    (x, first), (_, second) = photos[1]
    assert (x.dtype, x.shape, first, second) == (torch.float32, (3, 224, 224), 0, 1)
    images, labels = next(iter(torch.utils.data.DataLoader(photos[0], batch_size=2)))
    assert (images.shape, labels.tolist()) == ((2, 3, 224, 224), [0, 1])


def test_datasets_with_domainbeds_constructor_are_rejected_on_registration():
    class Theirs(datasets.MultipleDomainDataset):
        ENVIRONMENTS = ["a", "b"]

        def __init__(self, root, test_envs, hparams):
            self.datasets = []

    message = r"Theirs.__init__ must take \(root, test_envs, hparams, trial_seed\) and set self.environments"
    with pytest.raises(registry.UsageError, match=message):
        datasets.DATASETS.register("Theirs")(Theirs)
    with pytest.raises(registry.UsageError, match="is not derived from domainbed"):
        datasets.DATASETS.register("Theirs")(object)
    assert "Theirs" not in datasets.DATASETS
