"""The Python interface: keyword arguments, results, displays, programs without a main guard, and signals."""

import json
import multiprocessing.spawn
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import domainbed as db
from domainbed import api
from domainbed.algorithms import ALGORITHMS
from domainbed.algorithms.erm import ERM
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.model import load_model
from domainbed.errors import UsageError
from domainbed.records import mark_done, read_job
from domainbed.reporting.load import load_sweep
from domainbed.scripts import collect_results
from domainbed.sweep.launchers import LAUNCHERS, JobEvent, Launcher
from domainbed.sweep.processes import start_process
from domainbed.sweep.status import JobState
from tests.conftest import make_record, write_sweep
from tests.sweep.helpers import LauncherHere

NOTEBOOK = Path(__file__).parents[1] / "results" / "quickstart" / "notebook.ipynb"
SMALL = {"steps": 3, "hparams": {"batch_size": 8}}
GRID = {"datasets": "ColoredDigits", "algorithms": "ERM", "n_hparams": 1, "n_trials": 1, **SMALL}


def test_import_is_light_and_lists_the_interface():
    program = (
        "import sys, domainbed as db; heavy = {'torch', 'pandas', 'tqdm', 'domainbed.engine'} & set(sys.modules); "
        "print(sorted(heavy), set(db.__all__) <= set(dir(db)), hasattr(db, 'nothing'))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stdout == "[] True False\n", finished.stderr


def test_attributes_are_the_functions():
    assert (db.train, db.report) == (api.train, api.report)
    assert (db.load_model, db.load_sweep) == (load_model, load_sweep)
    assert db.sweep is sys.modules["domainbed.sweep"], "the package, which is callable"
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        db.trian  # noqa: B018


def test_train_returns_records_and_model(tmp_path: Path):
    job = db.train("ColoredDigits", "ERM", 2, output_dir=tmp_path / "job", checkpoint_freq=2, **SMALL)
    assert job.records["step"].tolist() == [0, 2]
    records, _ = read_job(job.folder)
    assert records[0]["args"]["test_envs"] == [2]
    assert records[0]["hparams"]["batch_size"] == 8
    assert job.records["env0_out_acc"].tolist() == [record["env0_out_acc"] for record in records]
    assert db.load_model(job.model_path).predict(torch.rand(5, 2, 8, 8)).shape == (5, 2)
    unsaved = db.train("ColoredDigits", "ERM", [0, 2], output_dir=tmp_path / "two", skip_model_save=True, **SMALL)
    assert unsaved.model_path is None
    with pytest.raises(UsageError, match="contains a finished run"):
        db.train("ColoredDigits", "ERM", 2, output_dir=tmp_path / "job", **SMALL)


def test_train_leaves_the_programs_generators_and_settings_alone(tmp_path: Path):
    """Otherwise, a loop that draws hyperparameters would draw the same ones after each job."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    try:
        generators = [state() for state in (random.getstate, np.random.get_state, torch.get_rng_state)]
        options = {"deterministic": True, "precision": "fp32", "output_dir": tmp_path / "job", **SMALL}
        db.train("ColoredDigits", "ERM", 2, **options)
        assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert not torch.are_deterministic_algorithms_enabled()
        after = [state() for state in (random.getstate, np.random.get_state, torch.get_rng_state)]
        assert after[0] == generators[0]
        assert np.array_equal(after[1][1], generators[1][1])
        assert torch.equal(after[2], generators[2])
    finally:
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("highest")


def test_interrupted_train_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C saves a checkpoint, then raises KeyboardInterrupt; SIGTERM reaches the program's own handler."""
    arguments = {"dataset": "ColoredDigits", "algorithm": "ERM", "test_envs": 2, "checkpoint_freq": 1, **SMALL}
    folder, received = tmp_path / "job", []
    update = ERM.update
    signals = iter([signal.SIGINT, signal.SIGTERM])

    def interrupted_update(self, *args):
        signal.raise_signal(next(signals))
        return update(self, *args)

    monkeypatch.setattr(ERM, "update", interrupted_update)
    with pytest.raises(KeyboardInterrupt):
        db.train(**arguments, output_dir=folder)
    handler = signal.signal(signal.SIGTERM, lambda signum, frame: received.append(signum))
    try:
        with pytest.raises(Interrupted):
            db.train(**arguments, output_dir=folder)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert received == [signal.SIGTERM]
    monkeypatch.setattr(ERM, "update", update)
    assert db.train(**arguments, output_dir=folder).records["step"].tolist() == [0, 1, 2]


def test_several_sets_of_test_environments(tmp_path: Path):
    arguments = {**GRID, "test_envs": [[0, 1], [2]], "command_launcher": "here"}
    with LAUNCHERS.temporarily("here", LauncherHere):
        result = db.sweep(tmp_path / "sweep", **arguments)
    assert {job.config.test_envs for job in result.statuses} == {(0, 1), (2,)}


def test_train_in_another_thread(tmp_path: Path):
    jobs = []
    thread = threading.Thread(
        target=lambda: jobs.append(db.train("ColoredDigits", "ERM", 2, output_dir=tmp_path / "job", **SMALL))
    )
    thread.start()
    thread.join()
    assert jobs[0].records["step"].tolist() == [0, 2]
    problems = []

    def launch() -> None:
        try:
            db.sweep(tmp_path / "sweep", **GRID)
        except UsageError as error:
            problems.append(str(error))

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert problems == ["sweep must be called from the main thread, which receives signals"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_hparam": 1}, "unknown argument 'n_hparam'; did you mean n_hparams"),
        ({"datasets": "ColoredDigit"}, "unknown dataset 'ColoredDigit'; did you mean ColoredDigits"),
        ({"steps": 1.5}, "--steps: invalid int value: '1.5'"),
        ({"steps": True}, "--steps: invalid int value: 'True'"),
        ({"leave_one_out": "yes"}, "leave_one_out must be True or False, not 'yes'"),
        ({"algorithms": []}, "--algorithms: expected at least one argument"),
        ({"wait": False}, "launcher local runs jobs while sweep is running"),
        ({"command_launcher": "slrum"}, "unknown launcher 'slrum'; did you mean slurm"),
        ({"imports": "no_such_module"}, "cannot import module no_such_module"),
        ({"help": True}, "unknown argument 'help'"),
    ],
)
def test_invalid_arguments_are_named(arguments: dict, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        db.sweep(tmp_path / "sweep", **{**GRID, **arguments})
    assert not (tmp_path / "sweep").exists()


def test_classes_of_the_main_program_are_rejected(tmp_path: Path):
    own = type("Own", (ERM,), {"__module__": "__main__"})
    with (
        ALGORITHMS.temporarily("Own", own),
        pytest.raises(UsageError, match=r"algorithm 'Own' is defined in the main program .* imports=\['its_name'\]"),
    ):
        db.sweep(tmp_path / "sweep", **{**GRID, "algorithms": ["ERM", "Own"]})


def test_sweep_and_report(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "sweep"
    arguments = {**GRID, "algorithms": ("ERM", "IRM"), "command_launcher": "here"}
    with LAUNCHERS.temporarily("here", LauncherHere):
        assert db.sweep(folder, dry_run=True, **arguments) is None
        assert not folder.exists()
        result = db.sweep(folder, **arguments)
        assert repr(result) == "6 jobs: 6 done"
        assert repr(db.sweep(folder, **arguments)) == "6 jobs: 6 done", "nothing is left to do"
        assert db.sweep(folder, dry_run=True, **arguments) is db.sweep(folder, estimate=True, **arguments) is None
    (launch,) = [json.loads(path.read_text()) for path in folder.glob(".sweep/launches/*.json")]
    assert launch["algorithms"] == ["ERM", "IRM"]
    capsys.readouterr()
    sweep = db.load_sweep(folder)
    assert len(sweep.select("training-domain")) == 6
    tables = db.report(sweep, selection="training-domain", decimals=2)
    collect_results.main(["--input_dir", str(folder), "--selection", "training-domain", "--decimals", "2"])
    assert repr(tables) == capsys.readouterr().out
    assert "| IRM" in tables._repr_markdown_()
    assert set(tables.frame["column"]) == {"+90%", "+80%", "-90%", "ColoredDigits", "Avg", "Rank"}


def test_report_is_saved_in_the_format_of_the_suffix(tmp_path: Path):
    folder = write_sweep(tmp_path / "sweep", [make_record(test_envs=(env,)) for env in range(3)])
    tables = db.report(str(folder))
    for suffix, start in {".md": "3 runs", ".tex": "\\documentclass", ".csv": "selection", ".json": "{"}.items():
        tables.save(tmp_path / f"tables{suffix}")
        assert (tmp_path / f"tables{suffix}").read_text().startswith(start)
    with pytest.warns(UserWarning, match="leave-one-domain-out: No table: this method requires"):
        tables.save(tmp_path / "tables.csv")
    with pytest.raises(UsageError, match="--format latex does not support --power"):
        db.report(str(folder), power=True).save(tmp_path / "power.tex")
    with pytest.raises(UsageError, match="--format markdown does not support --cite"):
        db.report(str(folder), cite=True).to_format("markdown")
    with pytest.raises(UsageError, match="unknown format 'pdf'"):
        tables.to_format("pdf")
    with pytest.raises(UsageError, match=r"unknown suffix of '.*tables.pdf'; choose from .txt, .md"):
        tables.save(tmp_path / "tables.pdf")
    with pytest.raises(UsageError, match=r"folder .* does not exist"):
        tables.save(tmp_path / "missing" / "tables.md")
    with pytest.raises(UsageError, match="unknown argument 'selektion'; did you mean selection"):
        db.report(folder, selektion="all")
    pd.testing.assert_frame_equal(tables.frame, db.report(folder).frame)


class Submits(Launcher):
    """Submits jobs, the first of which is done at once, and the others while the caller waits."""

    WAITS = False

    def launch(self, jobs, statuses, should_stop):
        for job in jobs:
            job.folder.mkdir(parents=True)
            yield JobEvent(job, JobState.QUEUED)
        mark_done(jobs[0].folder)


def test_wait_for_submitted_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "sweep"
    queued = {"has": lambda name: True, "failures": {}}
    monkeypatch.setattr(api, "read_queue", lambda sweep_dir: type("Queue", (), queued) if sleeps < 2 else None)
    sleeps = 0

    def sleep(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if sleeps == 2:
            for job in result.statuses:
                mark_done(job.folder)

    monkeypatch.setattr(api.time, "sleep", sleep)
    with LAUNCHERS.temporarily("submits", Submits):
        result = db.sweep(folder, wait=False, command_launcher="submits", **GRID)
    assert [status.state for status in result.statuses.values()].count(JobState.DONE) == 1
    assert sleeps == 0
    waiting = api.LaunchResult(api.survey(result.statuses, api.read_queue(folder)))
    assert repr(api._wait(waiting, folder)) == "3 jobs: 3 done"
    assert sleeps == 2


def test_workers_do_not_import_the_main_module(monkeypatch: pytest.MonkeyPatch):
    prepared: list[dict] = []

    class Process:
        def start(self) -> None:
            prepared.append(multiprocessing.spawn.get_preparation_data("worker"))

    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)  # as of a script
    monkeypatch.setattr(main, "__file__", os.path.abspath("script.py"), raising=False)
    assert "init_main_from_path" in multiprocessing.spawn.get_preparation_data("worker")
    start_process(Process())
    assert main.__spec__ is None
    # A child ignores a main module of this name (multiprocessing.spawn._fixup_main_from_name).
    assert prepared[0].get("init_main_from_name") == "__main__"
    assert "init_main_from_path" not in prepared[0]


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path):
    """With fewer steps and trials. A kernel of this environment executes it."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("steps=101", "steps=3").replace("n_trials=2", "n_trials=1")
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output.data for output in outputs if output.output_type == "execute_result"]
    assert data[0]["text/plain"] == "6 jobs: 6 done"
    assert data[1]["text/markdown"].startswith("6 runs requested: 6 done\n\n## Model selection: training-domain")
    assert "image/png" in data[-1]


def test_stored_notebook_was_executed_and_names_no_folder_of_a_machine():
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        o for cell in cells for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"
    ]
    texts = [output.get("data", output) for cell in cells for output in cell["outputs"]]
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", json.dumps(texts))
