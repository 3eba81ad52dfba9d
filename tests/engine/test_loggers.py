"""Loggers: what each writes, read back by its own package; failures; jobs that are killed and resumed."""

import csv
import json
import os
import random
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed.algorithms import ALGORITHMS
from domainbed.engine.checkpoint import Checkpointer
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import TakenError
from domainbed.engine.loggers import LOGGERS
from domainbed.engine.loggers.base import Logger, metrics
from domainbed.engine.train import train
from domainbed.errors import UsageError
from domainbed.records import read_job
from tests.engine.test_resume import DrawsRandomly
from tests.engine.test_train import make, registered  # noqa: F401
from tests.optional import optional

CALLS: list[tuple] = []  # of all instances of the class below
TITLE = "RecordsBatches on Tiny, test twenty, hparams 0, trial 0"


class Fake(Logger):
    """Notes its calls and draws from every random generator. The method that `FAILING` names raises an error."""

    FAILING = ""

    def start(self, config, records):
        self._note("start", config.title(), [record["step"] for record in records])

    def log(self, record):
        self._note("log", record["step"])

    def end(self, status):
        self._note("end", status)

    def _note(self, name, *args):
        random.random(), np.random.rand(), torch.rand(1)
        CALLS.append((name, *args))
        if name == self.FAILING:
            raise SystemExit("the server\nis gone")


@pytest.fixture
def fake() -> Iterator[type[Fake]]:
    CALLS.clear()
    with LOGGERS.temporarily("fake", Fake), ALGORITHMS.temporarily("DrawsRandomly", DrawsRandomly):
        yield Fake
    Fake.FAILING = ""


def results(config: JobConfig) -> list[dict]:
    """Return a job's records without times and arguments."""
    return [
        {name: value for name, value in record.items() if name not in ("args", "step_time")}
        for record in read_job(Path(config.output_dir))[0]
    ]


def test_logger_receives_every_record(fake: type[Fake], tmp_path: Path):
    train(make(tmp_path, log_to=("fake",)))
    assert CALLS == [("start", TITLE, []), ("log", 0), ("log", 5), ("log", 10), ("end", "done")]


def test_resumed_job_passes_on_earlier_records(fake: type[Fake], tmp_path: Path):
    config = make(tmp_path, log_to=("fake",))
    recorded: list[int] = []
    with pytest.raises(Interrupted):
        train(config, JobControl(should_stop=lambda: len(recorded) == 2, on_record=recorded.append))
    assert CALLS[-1] == ("end", "stopped")
    train(config)
    assert CALLS[4:] == [("start", TITLE, [0, 5]), ("log", 10), ("end", "done")]


@pytest.mark.parametrize("failing", ["", "start", "log", "end"])
def test_failing_logger_affects_neither_the_job_nor_other_loggers(
    failing: str, fake: type[Fake], tmp_path: Path, capsys: pytest.CaptureFixture
):
    job = {"algorithm": "DrawsRandomly", "checkpoint_freq": 2, "hparams": '{"batch_size": 4}'}
    plain = make(tmp_path, **job, output_dir=str(tmp_path / "plain"))
    logged = make(tmp_path, **job, log_to=("fake", "csv"))
    assert logged.name() == plain.name()
    train(plain)
    fake.FAILING = failing
    train(logged)
    assert results(logged) == results(plain)
    assert len(read_csv(Path(logged.output_dir))) == 6
    warning = "warning: logger fake failed; the job continues without it (SystemExit: the server is gone)\n"
    assert capsys.readouterr().out.count(warning) == bool(failing)
    assert [name for name, *_ in CALLS].count(failing or "end") == 1, "a logger that failed is not called again"


def test_failed_job_ends_its_run(fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Checkpointer, "save_if_due", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(make(tmp_path, log_to=("fake",)))
    assert CALLS[-1] == ("end", "failed")


def test_logger_is_told_that_another_process_continues_the_run(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("domainbed.engine.lock.time.sleep", lambda seconds: None)
    config = make(tmp_path, log_to=("fake",))
    lock = Path(config.output_dir, "lock")
    with pytest.raises(TakenError):
        train(config, JobControl(on_record=lambda step: lock.rename(lock.with_name("old lock"))))
    assert CALLS == [("start", TITLE, []), ("log", 0), ("end", "taken")]


def test_missing_package_is_reported_before_anything_is_written(fake: type[Fake], tmp_path: Path):
    fake.PACKAGE = "not_installed"
    try:
        with pytest.raises(UsageError, match="--log_to fake requires the package not_installed, which is not instal"):
            train(make(tmp_path, log_to=("csv", "fake")))
    finally:
        fake.PACKAGE = ""
    assert list(tmp_path.iterdir()) == []


def test_unknown_logger_is_reported(tmp_path: Path):
    with pytest.raises(UsageError, match="unknown logger 'tensorbord'; did you mean tensorboard"):
        make(tmp_path, log_to=("tensorbord",))


def test_csv_has_the_coordinates_and_metrics_of_each_record(tmp_path: Path):
    config = make(tmp_path, log_to=("csv",), checkpoint_freq=1, steps=4)  # the second record adds the metric "even"
    train(config)
    records, _ = read_job(tmp_path / "job")
    rows = read_csv(tmp_path / "job")
    coordinates = {"dataset": "Tiny", "algorithm": "RecordsBatches", "test_envs": "1"}
    for row, record in zip(rows, records, strict=True):
        assert row.items() >= coordinates.items()
        assert {name: float(row[name] or "nan") for name in metrics(record)} == metrics(record)
    assert [row["even"] for row in rows] == ["", "1.5", "", "1.5"]


def read_csv(folder: Path) -> list[dict[str, str]]:
    with open(folder / "records.csv", newline="") as file:
        return list(csv.DictReader(file))


def csv_values(folder: Path) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row["env0_out_acc"])) for row in read_csv(folder)]


def tensorboard_values(folder: Path) -> list[tuple[int, float]]:
    accumulator = optional("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard" / TITLE)).Reload()
    return [(event.step, event.value) for event in events.Scalars("env0_out_acc")]


def wandb_values(folder: Path) -> list[tuple[int, float]]:
    proto = optional("wandb.proto.wandb_internal_pb2")
    values = []
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    for data in wandb_records(path.read_bytes()):
        record = proto.Record.FromString(data)
        if record.WhichOneof("record_type") == "run":
            assert (record.run.display_name, record.run.run_group) == (TITLE, folder.parent.name)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            values.append((items["_step"], items["env0_out_acc"]))
    return values


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an offline run, a log in LevelDB's format: blocks of 32 KiB, parts with a checksum first."""
    position, record = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the only or the last part of a record
            yield record
            record = b""


def mlflow_values(folder: Path) -> list[tuple[int, float]]:
    tracking = optional("mlflow.tracking")
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string=f"name = '{folder.parent.name}'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (TITLE, "FINISHED")
    assert run.data.params["hparams.batch_size"] == "32"
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "env0_out_acc")]


READERS: dict[str, Callable[[Path], list[tuple[int, float]]]] = {
    "csv": csv_values,
    "tensorboard": tensorboard_values,
    "wandb": wandb_values,
    "mlflow": mlflow_values,
}
NOT_IN_TEST_EXTRA = ("wandb", "mlflow")


@pytest.fixture
def wandb_service() -> Iterator[None]:
    """End the process that wandb starts: the forked process of another test would share it."""
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires fork")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.extras, pytest.mark.slow] * (n in NOT_IN_TEST_EXTRA)) for n in READERS]
)
@pytest.mark.parametrize("is_saved", [True, False], ids=["resumes", "starts over"])
def test_killed_and_resumed_job_logs_each_step_once(
    name: str, is_saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_service: None
):
    """The process is killed after a record has been logged, and before the checkpoint that follows it."""
    if package := LOGGERS[name].PACKAGE:
        optional(package)
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    config = make(tmp_path, log_to=(name,), checkpoint_freq=2)
    save = Checkpointer.save
    if pid := os.fork():
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    else:
        torch.set_num_threads(1)  # the threads of OpenMP do not exist in a forked process, which would wait for them
        monkeypatch.setattr(
            Checkpointer,
            "save_if_due",
            lambda self, progress: (
                progress.is_evaluated
                and (os.kill(os.getpid(), signal.SIGKILL) if progress.step > 4 else is_saved and save(self, progress))
            ),
        )
        try:
            train(config)
        finally:
            os._exit(1)
    assert [record["step"] for record in read_job(tmp_path / "job")[0]] == [0, 2, 4]
    train(config)
    records, _ = read_job(tmp_path / "job")
    expected = [(record["step"], pytest.approx(record["env0_out_acc"], rel=1e-6)) for record in records]
    assert READERS[name](tmp_path / "job") == expected
    assert len(expected) == 6
