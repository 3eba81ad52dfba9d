"""The cost of a launch, estimated before it starts: time, hours of cores and GPUs, and disk space for saved models and
predictions.

The time of a job is its number of updates times the time per update of its kind: the mean over records of jobs of the
same kind or, if there are none, that of two updates on random images, without loading. Evaluations are not included.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed.engine.config import JobConfig
from domainbed.errors import list_some
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.launchers import Capacity
from domainbed.sweep.measurement import TIMED_UPDATES, Measurement
from domainbed.sweep.progress import updates_done
from domainbed.sweep.status import Status
from domainbed.sweep.step_times import StepTime
from domainbed.terminal import duration

MAX_NAMED = 2  # kinds of jobs that are named


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a launch.

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

    def lines(self, is_timed: bool = False) -> list[str]:
        """Return the cost as lines for people; `is_timed`: whether kinds of jobs without records were timed."""
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
            lines.append(f"  without evaluations; based on {' and '.join(self.basis)}")
        if self.unknown:
            named = [f"{algorithm} on {dataset}" for dataset, algorithm in self.unknown]
            why = "they could not be timed"
            if not is_timed:
                why = "there are no records of such jobs (`--estimate` times updates of built-in algorithms)"
            lines.append(f"  time unknown, not included: {list_some(named, MAX_NAMED)}; {why}")
        files = []
        if self.n_models and self.model_bytes is not None:
            files.append(f"{_gib(self.model_bytes)} for {self.n_models:,} saved models (--skip_model_save saves none)")
        if self.prediction_bytes:
            files.append(f"{_gib(self.prediction_bytes)} for predictions")
        if files:
            lines.append(f"  disk: {' and '.join(files)}; {_gib(self.free_bytes)} free")
            if (self.model_bytes or 0) + self.prediction_bytes > self.free_bytes:
                lines.append("  warning: there is not enough free space for them")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the cost as a JSON object."""
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
) -> Cost:
    """Return the cost of running jobs.

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
    return Cost(
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
            basis.append(f"the records of {n_jobs} {'job' if n_jobs == 1 else 'jobs'} on {device}")
    if n_timed := sum(time.n_jobs == 0 for time in step_times):
        kinds = "kind" if n_timed == 1 else "kinds"
        basis.append(f"{TIMED_UPDATES} updates of each of {n_timed} {kinds} of jobs on this machine, without loading")
    return basis


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _gib(n_bytes: int) -> str:
    """Return a size such as "1.5 GiB" or "23 MiB"."""
    if n_bytes < 2**30:
        return f"{n_bytes / 2**20:,.1f} MiB"
    return f"{n_bytes / 2**30:,.1f} GiB"
