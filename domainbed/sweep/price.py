"""The price of a launch, estimated before it starts: time, hours of cores and GPUs, and disk space for saved models and
predictions.

The time of a job is its number of updates times the time per update of its kind: the mean over finished jobs of the
same kind or, if there are none, that of two updates on random images. Loading and evaluations are not included.
"""

import itertools
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from domainbed import predictions
from domainbed.engine.config import JobConfig
from domainbed.hparams import Hparams
from domainbed.records import algorithm_name, last_record
from domainbed.sweep.archive import last_records
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.launchers import Capacity
from domainbed.sweep.progress import updates_done
from domainbed.sweep.status import JobState, Status
from domainbed.terminal import duration

if TYPE_CHECKING:
    from domainbed.algorithms.base import Algorithm
    from domainbed.datasets import MultipleDomainDataset

MAX_RECORDS = 8  # jobs of a kind whose records are read
MAX_FOLDERS = 500  # folders of other launches that are searched for records
MAX_STEP_TIME = 86_400.0  # seconds; a record with more is not taken seriously
MAX_NAMED = 2  # kinds of jobs that are named
TIMED_UPDATES = 2  # after one that is not timed
QUICK_LIMIT = 1.0  # seconds after which a launch starts no more timings
LONG_LIMIT = 60.0  # the same, with --estimate


class StepTime(NamedTuple):
    """The time per update of a kind of jobs.

    Attributes:
        seconds: the time.
        n_jobs: number of jobs that it is averaged over; 0 if it was timed on this machine.
        on_gpu: whether these jobs used a GPU.
    """

    seconds: float
    n_jobs: int
    on_gpu: bool


class Measurement(NamedTuple):
    """The costs of a kind of jobs that are measured when its algorithm is created.

    Attributes:
        model_bytes: size of a saved model, or None if it is unknown.
        step_time: time per update, if it was timed.
        prediction_bytes: size of the saved predictions, at most, without the names of images; 0 if none are saved.
    """

    model_bytes: int | None
    step_time: StepTime | None
    prediction_bytes: int = 0


@dataclass(frozen=True)
class Timing:
    """Which kinds of jobs to time, and how.

    Attributes:
        kinds: the kinds whose time per update is unknown.
        limit: time in seconds after which no more timings are started.
        only_quick: whether to time small images on a CPU only.
    """

    kinds: Collection[Kind] = ()
    limit: float = 0.0
    only_quick: bool = True


def recorded_step_times(
    statuses: Mapping[Job, Status], kinds: Collection[Kind], archive: Path | None = None
) -> dict[Kind, StepTime]:
    """Return the time per update of the kinds of jobs that have records in the sweep's folder or an archive.

    Args:
        statuses: the statuses of all jobs of the launch. Those of them that are done count first, then other jobs in
            their sweep's folder, then those in the archive.
        kinds: the kinds.
        archive: an archive written by `export`.
    """
    step_times = done_step_times(statuses, kinds)
    known = {job.folder.name for job in statuses}
    for records in (_records_of_others(statuses, known), last_records(archive) if archive else ()):
        if missing := set(kinds) - step_times.keys():
            step_times |= _step_times_by_kind(records, missing)
    return step_times


def done_step_times(statuses: Mapping[Job, Status], kinds: Collection[Kind]) -> dict[Kind, StepTime]:
    """Return the time per update of the kinds of jobs with finished jobs."""
    done: dict[Kind, list[Job]] = defaultdict(list)
    for job, status in statuses.items():
        if status.state == JobState.DONE and job.kind in kinds:
            done[job.kind].append(job)
    step_times = {}
    for kind, jobs in done.items():
        sample = jobs[:: math.ceil(len(jobs) / MAX_RECORDS)]
        if step_time := _mean_step_time(last_record(job.folder) for job in sample):
            step_times[kind] = step_time
    return step_times


def _records_of_others(statuses: Mapping[Job, Status], known: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the last records of jobs in the sweep's folder that are not part of this launch."""
    sweep_dir = next(iter(statuses)).folder.parent
    try:
        names = (entry.name for entry in os.scandir(sweep_dir) if entry.name not in known)
        for name in itertools.islice(names, MAX_FOLDERS):
            if record := last_record(sweep_dir / name):
                yield record
    except OSError:  # the folder does not exist yet
        return


def _step_times_by_kind(records: Iterable[Mapping[str, Any]], kinds: Collection[Kind]) -> dict[Kind, StepTime]:
    by_kind: dict[Kind, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        args = record.get("args")
        if isinstance(args, dict) and isinstance(args.get("algorithm"), str):
            kind = str(args.get("dataset")), algorithm_name(args)
            if kind in kinds and len(by_kind[kind]) < MAX_RECORDS:
                by_kind[kind].append(record)
    step_times = {kind: _mean_step_time(of_kind) for kind, of_kind in by_kind.items()}
    return {kind: step_time for kind, step_time in step_times.items() if step_time}


def _mean_step_time(records: Iterable[Mapping[str, Any] | None]) -> StepTime | None:
    """Return the mean of the times per update in some records, without those that have none."""
    times, on_gpu = [], False
    for record in records:
        seconds = record.get("step_time") if record else None
        if record and isinstance(seconds, float) and 0 < seconds < MAX_STEP_TIME:
            times.append(seconds)
            on_gpu |= bool(record.get("mem_gb"))
    return StepTime(sum(times) / len(times), len(times), on_gpu) if times else None


def measure(
    config: JobConfig, hparams: Hparams, dataset: "MultipleDomainDataset", algorithm: "Algorithm", timing: Timing | None
) -> Measurement:
    """Measure what a job of this kind costs.

    Args:
        config: the job.
        hparams: its hyperparameters.
        dataset: its dataset.
        algorithm: its algorithm, on any device.
        timing: how to time updates, or None.
    """
    import torch

    from domainbed.algorithms.state import is_builtin

    model_bytes = None
    with suppress(Exception):  # the job reports it, if it fails for the same reason
        # As in the saved file, a tensor that has several names counts once.
        tensors = {id(t): t for t in algorithm.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)}
        model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    n_images = sum(map(len, dataset)) if config.save_predictions else 0
    prediction_bytes = predictions.file_size(n_images, dataset.num_classes)
    on_gpu = torch.cuda.is_available()
    is_quick = dataset.SMALL_IMAGES and not on_gpu
    # Updates of other algorithms may do anything, such as never end.
    if timing is None or not is_builtin(type(algorithm)) or (timing.only_quick and not is_quick):
        return Measurement(model_bytes, None, prediction_bytes)
    with suppress(Exception):
        step_time = StepTime(time_updates(config, hparams, dataset), 0, on_gpu)
        return Measurement(model_bytes, step_time, prediction_bytes)
    return Measurement(model_bytes, None, prediction_bytes)


def time_updates(config: JobConfig, hparams: Hparams, dataset: "MultipleDomainDataset") -> float:
    """Return the time per update of a job in seconds, on random images and one CPU thread. Updates are not captured."""
    import torch

    from domainbed.backbones import without_weights
    from domainbed.engine.model import make_algorithm
    from domainbed.seeding import get_rng_state, set_rng_state

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n_threads, generators = torch.get_num_threads(), get_rng_state()
    torch.set_num_threads(1)  # as in a sweep with one worker per core
    try:
        with without_weights():
            algorithm = make_algorithm(config, hparams, dataset).to(device)
        algorithm.train()
        shape, n_envs = (hparams["batch_size"], *dataset.input_shape), len(dataset) - len(config.test_envs)
        batches = [
            (torch.rand(shape, device=device), torch.randint(dataset.num_classes, shape[:1], device=device))
            for _ in range(n_envs)
        ]
        start = 0.0
        for step in range(1 + TIMED_UPDATES):
            if step == 1:
                _synchronize(device)
                start = time.perf_counter()
            algorithm.update(batches, None)
        _synchronize(device)
        return (time.perf_counter() - start) / TIMED_UPDATES
    finally:
        torch.set_num_threads(n_threads)
        set_rng_state(generators)


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Price:
    """The estimated price of a launch.

    Attributes:
        n_jobs: number of jobs to run.
        updates: number of updates that are left to do.
        capacity: how many jobs run at once, and on what; None if the launcher does not say.
        seconds: total time of the updates of all jobs whose time per update is known, one job after another.
        longest: time of the longest of these jobs, in seconds.
        unknown: the kinds whose time per update is unknown, which are not included.
        basis: what the times per update are based on.
        n_models: number of models that will be saved.
        model_bytes: their size, or None if it is unknown.
        prediction_bytes: size of the predictions that will be saved, at most.
        free_bytes: free space on the disk of the sweep's folder.
    """

    n_jobs: int
    updates: int
    capacity: Capacity | None
    seconds: float
    longest: float
    unknown: list[Kind]
    basis: list[str]
    n_models: int
    model_bytes: int | None
    prediction_bytes: int
    free_bytes: int

    @property
    def wall_seconds(self) -> float | None:
        """The time until the last job ends, without waiting in a queue; None if it is unknown."""
        if not (self.capacity and self.basis):
            return None
        return max(self.longest, self.seconds / self.capacity.jobs)

    def lines(self) -> list[str]:
        """Return the price as lines for people."""
        wall, hours = self.wall_seconds, self.seconds / 3600
        parts = [f"{self.n_jobs:,} jobs, {self.updates:,} updates"]
        if wall is not None and self.capacity:
            parts.append(f"{duration(wall)} with {self.capacity.jobs} at once")
        if self.basis and self.capacity:
            parts.append(f"{_rounded(hours * self.capacity.cores)} core-hours")
            if self.capacity.gpus:
                parts.append(f"{_rounded(hours * self.capacity.gpus)} GPU-hours")
        elif self.basis:
            parts.append(f"{duration(self.seconds)} one after another")
        lines = [f"Estimate: {', '.join(parts)}"]
        if self.basis:
            lines.append(f"  updates only, without loading and evaluations; based on {' and '.join(self.basis)}")
        if self.unknown:
            named = [f"{algorithm} on {dataset}" for dataset, algorithm in self.unknown]
            others = len(named) - MAX_NAMED
            shown = ", ".join(named[:MAX_NAMED]) + (f" and {others} more" if others > 0 else "")
            lines.append(
                f"  time unknown, not included: {shown}; there are no records of such jobs (`--estimate` times updates "
                "of built-in algorithms)"
            )
        if self.n_models and self.model_bytes is not None:
            size, free = _gib(self.model_bytes), _gib(self.free_bytes)
            lines.append(
                f"  disk: {size} for {self.n_models:,} saved models (--skip_model_save saves none); {free} free"
            )
            if self.model_bytes > self.free_bytes:
                lines.append("  warning: the models do not fit on the disk")
        if self.prediction_bytes:
            lines.append(f"  disk: {_gib(self.prediction_bytes)} for predictions; {_gib(self.free_bytes)} free")
            if self.prediction_bytes > self.free_bytes:
                lines.append("  warning: the predictions do not fit on the disk")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the price as a JSON object."""
        capacity, hours = self.capacity, self.seconds / 3600 if self.basis else None
        return {
            "n_jobs": self.n_jobs,
            "updates": self.updates,
            "jobs_at_once": capacity.jobs if capacity else None,
            "seconds": self.wall_seconds,
            "core_hours": hours * capacity.cores if capacity and hours is not None else None,
            "gpu_hours": hours * capacity.gpus if capacity and hours is not None else None,
            "basis": self.basis,
            "unknown": [{"dataset": dataset, "algorithm": algorithm} for dataset, algorithm in self.unknown],
            "n_models": self.n_models,
            "model_bytes": self.model_bytes,
            "prediction_bytes": self.prediction_bytes,
            "free_bytes": self.free_bytes,
        }


def estimate(
    jobs: Sequence[Job],
    statuses: Mapping[Job, Status],
    recorded: Mapping[Kind, StepTime],
    measurements: Mapping[Kind, Measurement],
    capacity: Capacity | None,
) -> Price:
    """Return the price of running jobs.

    Args:
        jobs: the jobs.
        statuses: their statuses; what incomplete jobs have done is not counted.
        recorded: the time per update of each kind that has records.
        measurements: what was measured of each kind.
        capacity: the launcher's.
    """
    timed = {kind: found.step_time for kind, found in measurements.items() if found.step_time}
    step_times = {**timed, **recorded}
    updates, seconds, longest, n_models, model_bytes, prediction_bytes = 0, 0.0, 0.0, 0, 0, 0
    sizes = {kind: found.model_bytes for kind, found in measurements.items()}
    for job in jobs:
        left = max(0, job.config.steps - updates_done(job, statuses[job]))
        updates += left
        if step_time := step_times.get(job.kind):
            seconds += left * step_time.seconds
            longest = max(longest, left * step_time.seconds)
        n_models += (n := count_models(job.config))
        model_bytes += n * (sizes.get(job.kind) or 0)
        prediction_bytes += measurements[job.kind].prediction_bytes if job.kind in measurements else 0
    kinds = dict.fromkeys(job.kind for job in jobs)
    folder = jobs[0].folder
    return Price(
        len(jobs),
        updates,
        capacity,
        seconds,
        longest,
        [kind for kind in kinds if kind not in step_times],
        _describe_basis([step_times[kind] for kind in kinds if kind in step_times]),
        n_models,
        None if any(sizes.get(kind) is None for kind in kinds) else model_bytes,
        prediction_bytes,
        shutil.disk_usage(next(path for path in folder.absolute().parents if path.is_dir())).free,
    )


def count_models(config: JobConfig) -> int:
    """Return the number of models that a job saves: at most, if it may end early."""
    every = len(config.evaluation_steps()) if config.save_model_every_checkpoint else 0
    return (not config.skip_model_save) + config.save_best_model + every


def _describe_basis(step_times: Sequence[StepTime]) -> list[str]:
    basis = []
    for on_gpu, device in ((True, "a GPU"), (False, "a CPU")):
        if n_jobs := sum(time.n_jobs for time in step_times if time.on_gpu == on_gpu):
            basis.append(f"the records of {n_jobs} jobs on {device}")
    if n_timed := sum(time.n_jobs == 0 for time in step_times):
        kinds = "kind" if n_timed == 1 else "kinds"
        basis.append(f"{TIMED_UPDATES} updates of each of {n_timed} {kinds} of jobs on this machine")
    return basis


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _gib(n_bytes: int) -> str:
    """Return a size such as "1.5 GiB" or "23 MiB"."""
    if n_bytes < 2**30:
        return f"{n_bytes / 2**20:,.1f} MiB"
    return f"{n_bytes / 2**30:,.1f} GiB"
