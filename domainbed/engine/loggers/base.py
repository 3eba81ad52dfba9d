"""The interface of a logger, and the loggers of a job."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from tqdm import tqdm

from domainbed.engine.config import JobConfig
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import TakenError
from domainbed.engine.loggers import LOGGERS
from domainbed.errors import UsageError, one_line, printable
from domainbed.seeding import get_rng_state, set_rng_state


class Logger(ABC):
    """Receives the records of one job.

    An exception that a method raises ends the logger, not the job. Methods may draw random numbers.

    Attributes:
        PACKAGE: the package that must be installed; "" if none.
    """

    PACKAGE: ClassVar[str] = ""

    @abstractmethod
    def start(self, config: JobConfig, records: Sequence[Mapping[str, Any]]) -> None:
        """Open the job's run, and make it contain exactly these records.

        Args:
            config: the job. The name of its run is `config.title()`, that of its group `group_name(config)`.
            records: the records up to the step at which the job starts or resumes. An earlier process may have logged
                them, and later ones, which will be repeated.
        """

    @abstractmethod
    def log(self, record: Mapping[str, Any]) -> None:
        """Add a record, as in results.jsonl."""

    def end(self, status: str) -> None:  # noqa: B027  (optional)
        """Close the run.

        Args:
            status: "done", "failed", "stopped" (the job can be resumed), or "taken" (another process continues the job
                and its run, which must be left as it is).
        """


class JobLoggers:
    """The loggers of a job; a context in which the job is trained.

    Args:
        config: the job.

    Raises:
        UsageError: a logger is unknown, or its package is not installed.
    """

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._classes = {name: LOGGERS[name] for name in config.log_to}
        self._loggers: dict[str, Logger] = {}  # those that have started and have not failed
        for name, logger_class in self._classes.items():
            if (package := logger_class.PACKAGE) and not _is_installed(package):
                raise UsageError(
                    f"--log_to {name} requires the package {package}, which is not installed; `pip install {package}` "
                    "installs it"
                )

    def __enter__(self) -> "JobLoggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            status = "done"
        elif isinstance(error, TakenError):
            status = "taken"
        else:
            status = "stopped" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.end(status)

    def start(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Start all loggers; see `Logger.start`."""
        for name, logger_class in self._classes.items():
            with self._guarded(name):
                logger = self._loggers[name] = logger_class()
                logger.start(self._config, records)

    def log(self, record: Mapping[str, Any]) -> None:
        """Log a record."""
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.log(record)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Drop the logger if it fails, and preserve the random generators, which determine the job's results."""
        state = get_rng_state()
        try:
            yield
        except (Exception, SystemExit) as error:
            self._loggers.pop(name, None)
            reason = printable(f"{type(error).__name__}: {one_line(error)}")
            tqdm.write(f"warning: logger {name} failed; the job continues without it ({reason})")
        finally:
            set_rng_state(state)


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder such as W&B's own `wandb` has a spec, too


def metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record: accuracies, losses, and other metrics."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "schema_version")
    }


def parameters(config: JobConfig) -> dict[str, Any]:
    """Return what to show as the parameters of a job's run: its arguments and, as `hparams.lr`, hyperparameters."""
    hparams = {f"hparams.{name}": value for name, value in config.resolved_hparams().items()}
    args = {name: value for name, value in config.args().items() if name != "hparams"}
    return {**args, "environments": config.environment_names(), **hparams}


def sweep_folder(config: JobConfig) -> Path:
    """Return the folder whose jobs form a group: of a job in a sweep, the sweep's folder."""
    return Path(config.output_dir).absolute().parent


def group_name(config: JobConfig) -> str:
    """Return the name of the group of runs that a job belongs to: that of the sweep's folder."""
    return printable(sweep_folder(config).name) or "domainbed"
