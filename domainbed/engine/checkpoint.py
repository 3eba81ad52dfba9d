"""The training checkpoint: all that a stopped job needs to go on as if it had never stopped."""

import errno
import os
import pickle
import platform
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from domainbed import __version__
from domainbed.algorithms.base import Algorithm
from domainbed.engine.config import JobConfig, recorded_args
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import Lock
from domainbed.engine.metrics import MetricLog, Metrics
from domainbed.errors import UsageError, one_line
from domainbed.files import atomic_write
from domainbed.loading.base import Feed
from domainbed.records import CHECKPOINT_FILE, RESULTS_FILE, cut_records, last_record, read_job, records_length
from domainbed.seeding import generators_state, restore_generators

PREVIOUS_FILE = "checkpoint_previous.pt"
CHECKPOINT_NAMES = (CHECKPOINT_FILE, PREVIOUS_FILE)

KEYS = {"args", "step", "is_evaluated", "figures", "seconds", "records_length", "bad_images", "algorithm", "generators"}


class Progress:
    """Where a job is: between two updates, or between an update and the evaluation behind it.

    Attributes:
        step: how many updates are done.
        is_evaluated: whether the evaluation behind the last of them is done.
        told: the figures of the updates since the last evaluation.
    """

    def __init__(
        self, step: int = 0, is_evaluated: bool = True, figures: Metrics | None = None, seconds: float = 0.0
    ) -> None:
        self.step = step
        self.is_evaluated = is_evaluated
        self.told = MetricLog(step, figures)
        self._before = seconds
        self._began: float | None = None

    def is_past(self, stop: int) -> bool:
        """Whether the first `stop` updates and the evaluation behind them are done."""
        return (self.step, self.is_evaluated) >= (stop, True)

    def begin(self) -> None:
        """The next updates begin now."""
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """How long the updates since the last evaluation took."""
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def pause(self) -> None:
        """The updates are done; what comes before the next is not their time."""
        self._before = self.seconds()
        self._began = None

    def add(self, figures: Mapping[str, torch.Tensor | float]) -> None:
        """One more update is done, and told these."""
        self.told.add(figures)
        self.step += 1
        self.is_evaluated = False

    def evaluated(self) -> None:
        """The evaluation is done and recorded."""
        self.is_evaluated = True
        self.told = MetricLog(self.step)
        self._before = 0.0
        self._began = None


class Checkpoints:
    """Writes the job's checkpoints when they are due, and goes on from them.

    Which images a step sees depends on its number alone, so a checkpoint holds no state of samplers or loaders.
    """

    def __init__(
        self, config: JobConfig, algorithm: Algorithm, feed: Feed, lock: Lock, should_stop: Callable[[], bool]
    ) -> None:
        self._config = config
        self._folder = Path(config.output_dir)
        self._algorithm = algorithm
        self._feed = feed
        self._lock = lock
        self._should_stop = should_stop
        self._first_step = 0
        self._saved_at = time.monotonic()

    def resume(self) -> Progress:
        """Bring algorithm, generators and records to where the last good checkpoint was, or to the start.

        Raises:
            UsageError: the folder holds another job's unfinished run.
        """
        refuse_another_run(self._folder, self._config)
        remove_half_written(self._folder)
        progress = Progress()
        if saved := load_checkpoint(self._folder):
            refuse_another(self._folder, saved["args"], self._config)
            try:
                self._algorithm.load_training_state(saved["algorithm"])
            except (RuntimeError, ValueError, KeyError, AttributeError) as error:
                raise UsageError(
                    f"{self._folder / CHECKPOINT_FILE} does not fit the algorithm as it is now; delete the folder to "
                    f"begin the job anew ({type(error).__name__}: {one_line(error)})"
                ) from error
            self._feed.bad_images.update(saved["bad_images"])
            progress = Progress(saved["step"], saved["is_evaluated"], saved["figures"], saved["seconds"])
            restore_generators(saved["generators"])
            self._lock.check()
            cut_records(self._folder, saved["records_length"])
            tqdm.write(f"This job goes on from its checkpoint after {progress.step} steps.")
        elif records_length(self._folder):
            cut_records(self._folder, 0)
            tqdm.write("An unfinished run of this job was here, without a checkpoint; it is begun anew.")
        self._lock.begin(progress.step)
        self._first_step = progress.step
        return progress

    def after_update(self, progress: Progress) -> None:
        """Save if it is time to. Raises Interrupted where the job shall stop."""
        self._lock.step = progress.step
        if self._should_stop():
            self._stop(progress, generators_state())
        if time.monotonic() - self._saved_at > 60 * self._config.save_every:
            self.save(progress)

    def stopper(self, progress: Progress) -> Callable[[], None]:
        """A function that ends an evaluation by Interrupted where the job shall stop.

        The evaluation is then made anew when the job goes on. (What updates depend on, `predict` must not change.)
        """
        generators = generators_state()

        def stop_if_asked() -> None:
            if self._should_stop():
                self._stop(progress, generators)

        return stop_if_asked

    def save(self, progress: Progress, generators: dict[str, Any] | None = None) -> None:
        """Write the checkpoint whole or not at all; the one before is kept until the next is written."""
        self._lock.check()
        path = self._folder / CHECKPOINT_FILE
        saved = {
            "args": self._config.args(),
            "step": progress.step,
            "is_evaluated": progress.is_evaluated,
            "figures": progress.told.numbers(),
            "seconds": progress.seconds(),
            "records_length": records_length(self._folder),
            "bad_images": sorted(self._feed.bad_images),
            "algorithm": self._algorithm.training_state(),
            "generators": generators or generators_state(),
            "versions": versions(),
        }
        with atomic_write(path, kept=self._folder / PREVIOUS_FILE) as file:
            torch.save(saved, file)
        self._saved_at = time.monotonic()

    def _stop(self, progress: Progress, generators: dict[str, Any]) -> None:
        self.save(progress, generators)
        updates = progress.step - self._first_step
        raise Interrupted(f"stopped after {progress.step} of {self._config.steps} steps", updates)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What `Checkpoints.save` wrote last, or None. A damaged checkpoint is told, and the one before takes its place."""
    for name in CHECKPOINT_NAMES:
        path = folder / name
        try:
            saved = _read(path)
            if records_length(folder) < saved["records_length"]:
                raise _DamagedError(f"{RESULTS_FILE} lacks records that were there when it was written")
        except FileNotFoundError:
            continue
        except _DamagedError as error:
            tqdm.write(f"{path} is damaged and can't be used: {error}")
            continue
        if (theirs := saved.get("versions")) != versions():
            tqdm.write(f"{path} was written by {theirs}; the last digits may come out otherwise")
        if name == PREVIOUS_FILE:  # else the next to be written would put the damaged one in its place
            os.replace(path, folder / CHECKPOINT_FILE)
        return saved
    return None


class _DamagedError(Exception):
    """A checkpoint is not what was written."""


def _read(path: Path) -> dict[str, Any]:
    """Only what is wrong with the file itself counts as damage: a GPU that fails, say, must cost no good checkpoint."""
    try:
        with zipfile.ZipFile(path) as parts:  # torch.load looks at no checksum
            if damaged := parts.testzip():
                raise _DamagedError(f"the checksum of its part {damaged} is wrong")
        # Any object that an algorithm chose to save, as it was.
        saved = torch.load(path, map_location="cpu", weights_only=False)
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _DamagedError(error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that is away for a while is no damage
            raise
        raise _DamagedError("its table of parts leads nowhere") from error
    if not isinstance(saved, dict) or not set(saved) >= KEYS:
        raise UsageError(f"{path} was written by another version of domainbed; delete the folder to begin the job anew")
    # What lay on a GPU comes back there.
    return torch.load(path, weights_only=False) if torch.cuda.is_available() else saved


def remove_checkpoints(folder: Path) -> None:
    """Remove them, and what a process that was killed had half-written. Only who holds the folder's lock may."""
    for name in CHECKPOINT_NAMES:
        (folder / name).unlink(missing_ok=True)
    remove_half_written(folder)


def remove_half_written(folder: Path) -> None:
    for path in folder.glob("*.part"):
        path.unlink(missing_ok=True)


def versions() -> str:
    """What trains here."""
    return f"domainbed {__version__}, Python {platform.python_version()}, torch {torch.__version__}"


def refuse_another_run(folder: Path, config: JobConfig) -> None:
    """See that the records in the folder, if there are any, are this job's. Raises UsageError."""
    if records_length(folder):
        records, _ = read_job(folder)
        for record in records[:1]:
            args = record.get("args")
            refuse_another(folder, args if isinstance(args, dict) else {}, config)
        if not records and (other := last_record(folder)):
            raise UsageError(
                f"{folder} holds records of schema version {other.get('schema_version')}, of which this domainbed "
                "knows nothing; choose another --output_dir"
            )


def refuse_another(folder: Path, theirs: Mapping[str, Any], config: JobConfig) -> None:
    """See that the arguments of what is in the folder are this job's, but for those that lie beside the result."""
    ours = config.args()
    telling = [f for f in fields(config) if f.compare or (f.name == "data_dir" and config.is_own_tree())]
    other = [f"{name} {value}" for name, value in recorded_args(theirs, telling).items()]
    if other != [f"{f.name} {ours[f.name]}" for f in telling]:
        raise UsageError(f"{folder} holds another, unfinished run ({', '.join(other)}); choose another --output_dir")
