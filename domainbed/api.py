"""The Python interface: train, sweep and report with the options of the commands as keyword arguments."""

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from domainbed import cli
from domainbed.algorithms import ALGORITHMS
from domainbed.datasets import DATASETS
from domainbed.engine.averaging import AVERAGINGS
from domainbed.engine.config import JobConfig
from domainbed.engine.control import JobControl
from domainbed.engine.interrupts import STOP_SIGNALS, StopRequest, stop_on_signals
from domainbed.engine.loggers import LOGGERS
from domainbed.engine.tracking import TRACKERS
from domainbed.errors import UsageError, suggest
from domainbed.options import BooleanAction, ListAction, add_options, from_args
from domainbed.records import read_job
from domainbed.registry import Registry, import_modules
from domainbed.reporting.formats.data import cells_frame
from domainbed.reporting.formats.render import check_format, render
from domainbed.reporting.layout import ReportOptions
from domainbed.reporting.load import Sweep, load_sweep
from domainbed.reporting.report import Report, make_report
from domainbed.scripts import sweep as sweep_command
from domainbed.scripts import sweep_parser
from domainbed.sweep.display import widget_bar
from domainbed.sweep.launch import LaunchResult
from domainbed.sweep.launchers import LAUNCHERS
from domainbed.sweep.progress import count_updates
from domainbed.sweep.queue import read_queue
from domainbed.sweep.status import JobState, survey

SUFFIXES = {
    ".txt": "text",
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".json": "json",
    ".html": "html",
}
POLL = 10  # seconds between looks at submitted jobs

T = TypeVar("T")


@dataclass(frozen=True)
class TrainedJob:
    """A finished job.

    Attributes:
        folder: the job's folder.
        records: one row per evaluation: `step`, accuracies (`env{i}_in_acc`, `env{i}_out_acc`), and metrics.
        model_path: the saved model, for `load_model`; None with `skip_model_save`.
    """

    folder: Path
    records: pd.DataFrame
    model_path: Path | None


def train(dataset: str, algorithm: str, test_envs: int | Iterable[int], **options: Any) -> TrainedJob:
    """Train a job in this process, or resume it.

    A signal such as Ctrl-C, or a notebook's interrupt, takes effect after a checkpoint has been saved; the same call
    then resumes the job. Only the main thread receives signals. The program's own random generators and torch's
    settings are the same afterward.

    Args:
        dataset: the dataset.
        algorithm: the algorithm, which may be defined in the calling program.
        test_envs: the environments to test on.
        options: other fields of `JobConfig`, such as `steps=101` or `hparams={"lr": 0.01}`.

    Returns:
        The job's folder, records and model.

    Raises:
        UsageError: an argument is invalid, or the folder contains a finished run or another run.
    """
    from domainbed.engine.model import MODEL_FILE  # imports torch
    from domainbed.engine.setup import preserved_settings
    from domainbed.engine.train import train as train_job

    import_modules(_items(options.get("imports")))
    config = _from_keywords(JobConfig, dataset=dataset, algorithm=algorithm, test_envs=test_envs, **options)
    with _deferred_signals() as should_stop, preserved_settings():
        train_job(config, JobControl(should_stop))
    folder = Path(config.output_dir)
    rows = [
        {name: value for name, value in record.items() if isinstance(value, int | float)}
        for record in read_job(folder)[0]
    ]
    records = pd.DataFrame(rows).drop(columns="schema_version", errors="ignore")
    return TrainedJob(folder, records, None if config.skip_model_save else folder / MODEL_FILE)


def sweep(output_dir: str | Path, *, wait: bool = True, **options: Any) -> LaunchResult | None:
    """Run the jobs of a sweep that are not done, as `domainbed sweep launch` does, without asking for confirmation.

    Local launchers start worker processes, which do not import the calling program: its own algorithms and datasets
    must be in a module named by `imports`. The program needs no `if __name__ == "__main__"`.

    Args:
        output_dir: the sweep's folder.
        wait: whether to return only when no job is running or queued anymore. Only launchers that submit jobs, such as
            `slurm`, support False.
        options: the options of `sweep launch`, such as `datasets=["PACS"]`, `steps=101` or `workers=2`.

    Returns:
        The status of each job; None after a dry run.

    Raises:
        UsageError: an argument is invalid, or this is not the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("sweep must be called from the main thread, which receives signals")
    options = {"output_dir": output_dir, "skip_confirmation": True, **options}
    import_modules(_items(options.get("imports")))
    launch_parser = sweep_parser.parser().command("launch")
    args = sweep_parser.parse_args(["launch", *_words(launch_parser, options)])
    if not wait and args.command_launcher in LAUNCHERS and LAUNCHERS[args.command_launcher].WAITS:
        raise UsageError(
            f"launcher {args.command_launcher} runs jobs while sweep is running; omit wait=False, or use a launcher "
            "that submits jobs, such as slurm"
        )
    _check_importable(args)
    result = sweep_command.launch_jobs(args)
    if result and result.stop_signal:
        signal.raise_signal(result.stop_signal)
    return _wait(result, Path(output_dir)) if result and wait else result


def report(source: str | Path | Sweep, **options: Any) -> "Tables":
    """Return the tables of a sweep.

    Args:
        source: the sweep's folder, or the sweep, as returned by `load_sweep`.
        options: the fields of `ReportOptions`, such as `selection="training-domain"` or `versus=["Fishr", "ERM"]`.

    Raises:
        UsageError: an argument is invalid, or the folder contains no records.
    """
    loaded = source if isinstance(source, Sweep) else load_sweep(str(source))
    return Tables(make_report(loaded, _from_keywords(ReportOptions, **options)))


@dataclass(frozen=True, repr=False)
class Tables:
    """The tables of a sweep: text when printed, Markdown in a notebook.

    Attributes:
        report: the report, whose cells are numbers.
    """

    report: Report

    def __repr__(self) -> str:
        return render(self.report, "text", Path())

    def _repr_markdown_(self) -> str:
        return render(self.report, "markdown", Path())

    def to_format(self, name: str) -> str:
        """Return the tables as "text", "markdown", "latex", "latex-fragment", "csv", "json" or "html".

        Raises:
            UsageError: the format is unknown, or does not support an option of the report.
        """
        check_format(name, self.report.options)
        return render(self.report, name, Path())

    def save(self, path: str | Path) -> None:
        """Write the tables in the format of the file's suffix: .txt, .md, .tex, .csv, .json, or .html (with plots).

        Raises:
            UsageError: the suffix is unknown, or the format does not support an option of the report.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise UsageError(f"unknown suffix of {str(path)!r}; choose from {', '.join(SUFFIXES)}")
        check_format(SUFFIXES[path.suffix], self.report.options)
        cli.check_output(str(path), "path")
        content = render(self.report, SUFFIXES[path.suffix], path.parent)
        if path.suffix == ".csv":  # it has no place for these
            for line in self.report.warnings:
                warnings.warn(line, stacklevel=2)
        cli.write_output(content, str(path))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per cell, unrounded: accuracies in percent, and counts; the columns of the format csv."""
        return cells_frame(self.report)


def _wait(result: LaunchResult, sweep_dir: Path) -> LaunchResult:
    """Wait until no job is running or queued, and show the number of updates."""
    statuses = result.statuses
    active = (JobState.RUNNING, JobState.QUEUED)
    if not any(status.state in active for status in statuses.values()):
        return result
    with widget_bar(statuses) as bar:
        while True:
            bar.n = count_updates(statuses)[1]
            bar.refresh()
            if not any(status.state in active for status in statuses.values()):
                return LaunchResult(statuses, sum(s.state == JobState.FAILED for s in statuses.values()))
            time.sleep(POLL)
            statuses = survey(statuses, read_queue(sweep_dir))


@contextmanager
def _deferred_signals() -> Iterator[StopRequest]:
    """Note signals that would stop the program, and deliver the first one at the end of the block."""
    is_main = threading.current_thread() is threading.main_thread()
    stop_request = StopRequest()
    try:
        with stop_on_signals(STOP_SIGNALS if is_main else ()) as stop_request:
            yield stop_request
    finally:
        if stop_request():
            signal.raise_signal(stop_request.signals[0])


def _check_importable(args: Any) -> None:
    """Raise UsageError if the jobs of a launch require a class that workers do not import."""
    registries: list[tuple[Registry[Any], Iterable[str]]] = [
        (ALGORITHMS, args.algorithms),
        (DATASETS, args.datasets),
        (AVERAGINGS, [args.averaging]),
        (TRACKERS, [args.track]),
        (LOGGERS, args.log_to),
    ]
    for registry, names in registries:
        for name in names:
            is_own = name in registry and name not in registry.builtin_names  # others would import torch
            if not is_own:
                continue
            if (module := registry[name].__module__) == "__main__":
                raise UsageError(
                    f"{registry.kind} {name!r} is defined in the main program or notebook, which the processes that "
                    f"train jobs do not import; move it to a module, and pass imports=['its_name']"
                )
            if not args.imports and not registry.is_plugin(name):
                raise UsageError(
                    f"{registry.kind} {name!r} is defined in module {module}, which the processes that train jobs do "
                    f"not import; pass imports=[{module!r}]"
                )


def _from_keywords(cls: type[T], **options: Any) -> T:
    """Return an instance of a dataclass of options with these values."""
    parser = cli.Parser(prog="domainbed", add_help=False)
    add_options(parser, cls)
    return from_args(cls, parser.parse_args(_words(parser, options)))


def _words(parser: cli.Parser, options: Mapping[str, Any]) -> list[str]:
    """Return options as the words of a command line. None stands for the default.

    Raises:
        UsageError: the parser has no such option, or it does not take this value.
    """
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    words: list[str] = []
    for name, value in options.items():
        if name not in actions:
            raise UsageError(f"unknown argument {name!r}; {suggest(name, actions)}")
        action = actions[name]
        flag = action.option_strings[0]
        if value is None:
            continue
        if isinstance(action, BooleanAction):
            if not isinstance(value, bool):
                raise UsageError(f"{name} must be True or False, not {value!r}")
            words.append(flag if value else action.negations[0])
        elif isinstance(value, Mapping):
            pairs = [f"{key}={item}" for key, item in value.items()]  # such as slurm_extra
            words += [flag, *pairs] if action.nargs else [f"{flag}={json.dumps(value)}"]
        elif isinstance(action, ListAction) and any(isinstance(item, list | tuple) for item in _items(value)):
            for one in _items(value):  # such as test_envs=[[0, 1], [2]]
                words += [flag, *map(str, _items(one))]
        elif action.nargs:
            words += [flag, *map(str, _items(value))]
        else:
            words.append(f"{flag}={value}")
    return words


def _items(value: Any) -> list[Any]:
    """Return the items of an option that takes several; a single item may be given without a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str | os.PathLike) or not isinstance(value, Iterable) else list(value)
