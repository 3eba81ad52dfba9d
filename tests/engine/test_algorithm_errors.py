"""Errors in users' algorithms: the step, the phase and the lines of the user's code, but none of the engine's."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM
from domainbed.engine.algorithm_errors import locate_errors
from domainbed.engine.config import JobConfig
from domainbed.engine.train import train
from domainbed.errors import AlgorithmError, UsageError
from domainbed.loading.photo_feed import explain_dead_worker
from domainbed.sweep.job import Job
from domainbed.sweep.preflight import check_jobs
from domainbed.sweep.run import run_job

SOURCE = """
from domainbed.algorithms import ERM
from domainbed.hparams import Hparam

class Fails(ERM):
    HPARAMS = {"where": Hparam("")}
    phase = "warm-up"

    def __init__(self, *args):
        super().__init__(*args)
        self.fail("constructor")
        self.updates = 0
        if self.hparams["where"] == "state":
            self.batches = iter([1])

    def fail(self, where):
        if self.hparams["where"] == where:
            try:
                {}["key"]
            except KeyError as error:
                raise (ValueError if where == "hparams" else ZeroDivisionError)("no way") from error

    def update(self, minibatches, unlabeled=None):
        if self.updates == 2:
            self.fail("update")
            if self.hparams["where"] == "super":
                return super().update([])
            if self.hparams["where"] == "metrics":
                return {"loss": "x"}
        self.updates += 1
        return super().update(minibatches, unlabeled)

    def predict(self, x):
        if self.updates == 3 and not self.training:
            self.fail("predict")
        return super().predict(x)
"""
LINE = SOURCE[: SOURCE.index("raise (Val")].count("\n") + 1
SUPER = SOURCE[: SOURCE.index("return super().update([])")].count("\n") + 1


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_algorithms.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    with ALGORITHMS.temporarily("Fails", importlib.import_module("my_algorithms").Fails):
        yield
    del sys.modules["my_algorithms"]


def make(tmp_path: Path, where: str, algorithm: str = "Fails") -> JobConfig:
    hparams = '{"batch_size": 4' + (f', "where": "{where}"' if algorithm == "Fails" else "") + "}"
    folder = str(tmp_path / "job")
    return JobConfig("ColoredDigits", algorithm, (2,), hparams=hparams, steps=3, checkpoint_freq=2, output_dir=folder)


REASONS = {
    "constructor": f"constructor: ZeroDivisionError: no way, in my_algorithms.py line {LINE}",
    "update": f"step 2 (phase 'warm-up'): ZeroDivisionError: no way, in my_algorithms.py line {LINE}",
    "predict": f"evaluation after step 2 (phase 'warm-up'): ZeroDivisionError: no way, in my_algorithms.py line {LINE}",
    "metrics": "step 2 (phase 'warm-up'): TypeError: metric 'loss' returned by update must be a single number, not 'x'",
}


@pytest.mark.parametrize("where", REASONS)
def test_error_names_the_place_and_the_users_lines(tmp_path: Path, where: str, capfd: pytest.CaptureFixture):
    with pytest.raises(AlgorithmError) as raised:
        train(make(tmp_path, where))
    assert str(raised.value) == REASONS[where]
    assert isinstance(raised.value.__cause__, ZeroDivisionError | TypeError)
    report = raised.value.report
    assert ("KeyError: 'key'" in report) == (where != "metrics")
    assert f'{tmp_path}/my_algorithms.py", line {LINE}, in fail' in report or where == "metrics"
    files = {line.split('"')[1] for line in report.splitlines() if line.startswith("  File ")}
    assert files <= {str(tmp_path / "my_algorithms.py")}

    def fail(argv: object) -> None:
        raise raised.value

    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(fail)
    assert end.value.code == 1
    assert capfd.readouterr().err == f"{report}error: {REASONS[where]}\n"


def test_error_below_the_users_code_names_its_last_line(tmp_path: Path):
    with pytest.raises(AlgorithmError, match=rf", in my_algorithms\.py line {SUPER}$"):
        train(make(tmp_path, "super"))


def test_job_of_a_sweep_records_the_same(tmp_path: Path, capfd: pytest.CaptureFixture):
    job = Job(make(tmp_path, "update"))
    with capfd.disabled():  # the log receives the output of the process itself
        event = run_job(job, lambda event: None, lambda: False)
    assert event.reason == REASONS["update"]
    log = (job.folder / "log.txt").read_text()
    assert log.endswith(f"ZeroDivisionError: no way\nerror: {REASONS['update']}\n")
    assert "train.py" not in log


def test_error_of_a_builtin_algorithm_is_raised_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def update(self, minibatches, unlabeled=None):
        raise ZeroDivisionError

    monkeypatch.setattr(ERM, "update", update)
    with pytest.raises(ZeroDivisionError):
        train(make(tmp_path, "", "ERM"))


def test_death_of_a_loader_process_is_not_an_error_of_the_algorithm():
    """Its signal interrupts any code, and that code may fail as well."""

    class Users(ERM):
        pass

    def update() -> None:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        finally:
            raise ValueError("the update was interrupted")

    message = r"an image loader process died .*--loader_workers"
    with pytest.raises(UsageError, match=message), explain_dead_worker(), locate_errors(Users, lambda: "step 3"):
        update()


def test_launch_rejects_state_that_cannot_be_saved(tmp_path: Path):
    with pytest.raises(UsageError, match=r" on ColoredDigits: self\.batches \(of type list_iterator\) cannot be saved"):
        check_jobs([Job(make(tmp_path, "state"))])
    with pytest.raises(UsageError, match=r" on ColoredDigits: constructor: "):
        check_jobs([Job(make(tmp_path, "constructor"))])
