"""The checkpoint of an unfinished job: everything needed to resume as if the job had never stopped."""

import errno
import os
import pickle
import platform
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from domainbed import __version__
from domainbed.algorithms.state import check_plain
from domainbed.engine.checkpoint_files import CHECKPOINT_FILES, PREVIOUS_FILE, remove_partial_files
from domainbed.engine.config import JobConfig, recorded_args
from domainbed.engine.interrupts import Interrupted
from domainbed.engine.lock import Lock
from domainbed.engine.metrics import MetricHistory, MetricLog
from domainbed.engine.setup import Setup
from domainbed.errors import UsageError, one_line
from domainbed.files import atomic_write
from domainbed.records import (
    CHECKPOINT_FILE,
    RESULTS_FILE,
    flush_records,
    last_record,
    read_job,
    records_checksum,
    records_length,
    truncate_records,
)
from domainbed.registry import is_builtin
from domainbed.seeding import get_rng_state, set_rng_state

EVALUATION_INTERVAL = 10.0  # seconds between checkpoints at evaluations; a job of a second or two needs none

KEYS = {"args", "step", "is_evaluated", "figures", "seconds", "records_length", "bad_images", "algorithm", "generators"}


class Progress:
    """The position of a job: between two updates, or between an update and its evaluation.

    Attributes:
        step: the number of updates done, which is also the next update's step.
        is_evaluated: whether the last of them has been evaluated.
        metrics: the metrics of the updates since the last evaluation.
        seconds: the time that these updates took.
        peak_memory: the largest GPU memory of this process so far, in bytes.
    """

    def __init__(
        self, step: int = 0, is_evaluated: bool = True, metrics: MetricHistory | None = None, seconds: float = 0.0
    ) -> None:
        self.step = step
        self.is_evaluated = is_evaluated
        self.metrics = MetricLog(step, metrics)
        self.seconds = seconds
        self.peak_memory = 0
        self.start_timer()

    def start_timer(self) -> None:
        """Exclude the time up to now from `seconds`."""
        self._timed_until = time.perf_counter()

    def add_time(self) -> None:
        """Add the time since the last call of this method or of `start_timer` to `seconds`."""
        now = time.perf_counter()
        self.seconds += now - self._timed_until
        self._timed_until = now

    def add_update(self, metrics: Mapping[str, torch.Tensor | float]) -> None:
        """Count an update that returned these metrics."""
        self.metrics.add(metrics)
        self.step += 1
        self.is_evaluated = False
        self.add_time()

    def finish_evaluation(self) -> None:
        """Note that the last update has been evaluated, and the record written."""
        self.is_evaluated = True
        self.metrics = MetricLog(self.step)
        self.seconds = 0.0


class Checkpointer:
    """Saves a job's checkpoints, and resumes from them.

    A checkpoint contains no state of samplers or loaders, because the batch of a step depends only on its number.
    """

    def __init__(self, config: JobConfig, setup: Setup, lock: Lock, should_stop: Callable[[], bool]) -> None:
        self._config = config
        self._folder = Path(config.output_dir)
        self._algorithm = setup.algorithm
        self._averaging = setup.averaging
        self._feed = setup.feed
        self._lock = lock
        self._should_stop = should_stop
        self._code = setup.code
        self._backbone_weights = setup.backbone_weights
        self._first_step = 0
        self._saved_at = time.monotonic()
        # Whether the state is known to be one that can be saved.
        self._is_checked = is_builtin(type(setup.algorithm)) and is_builtin(type(setup.averaging))
        setup.algorithm.record_construction()

    def resume(self) -> Progress:
        """Restore algorithm, random generators and records from the last valid checkpoint, if one exists.

        Raises:
            UsageError: the folder contains another job's unfinished run, or a checkpoint of another version.
            TakenError: another process has taken over the job; nothing is removed.
        """
        self._lock.check()  # the data may have taken long to load
        check_records(self._folder, self._config)
        remove_partial_files(self._folder)
        progress = Progress()
        if saved := load_checkpoint(self._folder, self._config.trust_checkpoint):
            check_args(self._folder, saved["args"], self._config)
            if saved.get("backbone_weights", self._backbone_weights) != self._backbone_weights:
                raise UsageError(
                    f"the weights of the frozen backbone are not those with which {self._folder} was trained so far; "
                    "restore them, or delete the folder to start over"
                )
            try:
                self._algorithm.load_training_state(saved["algorithm"])
                self._averaging.load_state_dict(saved.get("averaging", {}))  # earlier versions did not average
            except torch.OutOfMemoryError:
                raise  # says nothing about the checkpoint
            except (RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
                if "CUDA error" in str(error):
                    raise  # an error of the device says nothing about the checkpoint
                raise UsageError(
                    f"{self._folder / CHECKPOINT_FILE} does not match the current algorithm; delete the folder to "
                    f"start over ({type(error).__name__}: {one_line(error)})"
                ) from error
            self._feed.bad_images.update(saved["bad_images"])
            progress = Progress(saved["step"], saved["is_evaluated"], saved["figures"], saved["seconds"])
            set_rng_state(saved["generators"])
            self._lock.check()
            truncate_records(self._folder, saved["records_length"])
            tqdm.write(f"Resuming from checkpoint at step {progress.step}.")
            if saved.get("code", self._code) != self._code:  # earlier versions did not save it
                tqdm.write(
                    f"note: the code of {self._config.algorithm} or {self._config.dataset} has changed since this "
                    f"checkpoint; to train with the new code only, delete {self._folder} and start over"
                )
        elif records_length(self._folder):
            truncate_records(self._folder, 0)
            tqdm.write("Unfinished run found, but no checkpoint; starting over.")
        self._lock.start_from(progress.step)
        self._first_step = progress.step
        return progress

    def updates(self, progress: Progress) -> int:
        """Return the number of updates since the job started or was resumed."""
        return progress.step - self._first_step

    def stop_if_requested(self, progress: Progress, rng_state: dict[str, Any] | None = None) -> None:
        """Save a checkpoint and raise Interrupted if the caller of `train` requests a stop.

        Args:
            progress: the position to resume from.
            rng_state: the state of the random generators at this position; by default, their current state.
        """
        if self._should_stop():
            self.save(progress, rng_state)
            raise Interrupted(f"stopped after {progress.step} of {self._config.steps} steps", self.updates(progress))

    def save_if_due(self, progress: Progress) -> None:
        """Save a checkpoint if the last one is older than `--save_every` or, at an evaluation, EVALUATION_INTERVAL.

        Raises:
            UsageError: the first evaluation finds that the algorithm has a state that cannot be saved.
        """
        age, limit = time.monotonic() - self._saved_at, 60 * self._config.save_every
        if age > (min(limit, EVALUATION_INTERVAL) if progress.is_evaluated else limit):
            self.save(progress)
        elif progress.is_evaluated and not self._is_checked:
            self._training_state()

    def _training_state(self) -> dict[str, Any]:
        state = self._algorithm.training_state()
        if not self._config.trust_checkpoint:
            check_plain(state)
            check_plain(self._averaging.state_dict(), f"{type(self._averaging).__name__}.state_dict()")
        self._is_checked = True
        return state

    def save(self, progress: Progress, rng_state: dict[str, Any] | None = None) -> None:
        """Save a checkpoint atomically, and keep the previous one in case this one is damaged later."""
        self._lock.check()
        with self._averaging.training_weights():  # a job may be stopped while it evaluates its average
            state = self._training_state()
            flush_records(self._folder)  # first, because the checkpoint requires them
            length = records_length(self._folder)
            saved = {
                "args": self._config.args(),
                "step": progress.step,
                "is_evaluated": progress.is_evaluated,
                "figures": progress.metrics.to_python(),
                "seconds": progress.seconds,
                "records_length": length,
                "records_checksum": records_checksum(self._folder, length),
                "bad_images": sorted(self._feed.bad_images),
                "algorithm": state,
                "averaging": self._averaging.state_dict(),
                "generators": rng_state or get_rng_state(),
                "versions": software_versions(),
                "code": self._code,
                "backbone_weights": self._backbone_weights,
            }
            with atomic_write(self._folder / CHECKPOINT_FILE, backup=self._folder / PREVIOUS_FILE) as file:
                torch.save(saved, file)
        self._saved_at = time.monotonic()


def unsafe_objects(path: Path, error: pickle.UnpicklingError) -> str:
    """Return what prevents `torch.load` from loading a file with `weights_only=True`."""
    names = []
    with suppress(pickle.UnpicklingError):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if names:
        return f"objects of {', '.join(map(repr, sorted(names)))}"
    return f"other objects ({one_line(error).rpartition('WeightsUnpickler error: ')[2].partition(' Check the')[0]})"


def load_checkpoint(folder: Path, is_trusted: bool = False) -> dict[str, Any] | None:
    """Return the last valid checkpoint, or None if there is none. Damaged checkpoints are reported and skipped.

    Args:
        folder: the job's folder.
        is_trusted: whether a checkpoint of this user may contain objects whose loading can run code.

    Raises:
        UsageError: the checkpoint was written by another version, or contains such objects.
    """
    for name in CHECKPOINT_FILES:
        path = folder / name
        try:
            saved = _read(path, is_trusted)
            if records_length(folder) < saved["records_length"]:
                raise _DamagedError(f"{RESULTS_FILE} lacks records that were written before the checkpoint")
            checksum = saved.get("records_checksum")  # earlier versions did not save any
            if checksum not in (None, records_checksum(folder, saved["records_length"])):
                raise _DamagedError(f"records in {RESULTS_FILE} have changed since the checkpoint was written")
        except FileNotFoundError:
            continue
        except _DamagedError as error:
            tqdm.write(f"{path} is damaged and cannot be used: {error}")
            continue
        if (versions := saved.get("versions")) != software_versions():
            tqdm.write(f"{path} was written by {versions}; results may differ in the last digits")
        if name == PREVIOUS_FILE:  # otherwise the next checkpoint would replace it by the damaged one
            os.replace(path, folder / CHECKPOINT_FILE)
        return saved
    return None


# Exceptions of reading a damaged file.
_DAMAGE = (
    *(ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


class _DamagedError(Exception):
    """The contents of a checkpoint are not what was written."""


def _read(path: Path, is_trusted: bool = False) -> dict[str, Any]:
    """Read a checkpoint. Only defects of the file itself count as damage, not a failing GPU, for example."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load verifies no checksums
            if member := archive.testzip():
                raise _DamagedError(f"the checksum of its member {member} is wrong")
        saved, weights_only = _load(path, is_trusted)
    except UsageError:
        raise
    except _DAMAGE as error:
        raise _DamagedError(error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a temporarily unavailable file system is not damage
            raise
        raise _DamagedError("its zip directory is invalid") from error
    if not isinstance(saved, dict) or not set(saved) >= KEYS:
        raise UsageError(f"{path} was written by another version of domainbed; delete the folder to start over")
    # Load again to restore GPU tensors to the GPU.
    return torch.load(path, weights_only=weights_only) if torch.cuda.is_available() else saved


def _load(path: Path, is_trusted: bool) -> tuple[Any, bool]:
    """Load an intact checkpoint on the CPU. Return its content and whether `weights_only=True` can load it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True), True
    except pickle.UnpicklingError as error:
        if not is_trusted:
            raise UsageError(
                f"{path} contains {unsafe_objects(path, error)}, and loading these can run any code in the file; "
                "delete the folder to start over or, if the algorithm saves them and nobody else can write to "
                "the folder, pass --trust_checkpoint"
            ) from None
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise UsageError(f"--trust_checkpoint: {path} belongs to another user, so loading it could run their code")
    return torch.load(path, map_location="cpu", weights_only=False), False


def software_versions() -> str:
    """Return the versions of the software that trains."""
    return f"domainbed {__version__}, Python {platform.python_version()}, torch {torch.__version__}"


def check_records(folder: Path, config: JobConfig) -> None:
    """Check that any records in the folder are this job's. Raises UsageError."""
    if records_length(folder):
        records, _ = read_job(folder)
        for record in records[:1]:
            args = record.get("args")
            check_args(folder, args if isinstance(args, dict) else {}, config)
        if not records and (last := last_record(folder)):
            raise UsageError(
                f"{folder} contains records of schema version {last.get('schema_version')}, which this version of "
                "domainbed cannot read; choose another --output_dir"
            )


def check_args(folder: Path, args: Mapping[str, Any], config: JobConfig) -> None:
    """Check that these recorded arguments match the job's in all fields that determine its results.

    Raises:
        UsageError: they do not.
    """
    selected = [f for f in fields(config) if f.compare or (f.name == "data_dir" and config.has_custom_environments())]
    recorded, requested = recorded_args(args, selected), recorded_args(config.args(), selected)
    if different := [name for name in recorded if str(recorded[name]) != str(requested[name])]:
        lines = [f"{name} is {recorded[name]} there, not {requested[name]}" for name in different]
        raise UsageError(f"{folder} contains another, unfinished run ({'; '.join(lines)}); choose another --output_dir")
