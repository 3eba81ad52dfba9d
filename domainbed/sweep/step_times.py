"""The time per update of kinds of jobs, from records."""

import itertools
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from domainbed.records import algorithm_name, last_record
from domainbed.sweep.archive import last_records
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.status import JobState, Status

MAX_RECORDS = 8  # jobs of a kind whose records are read
MAX_FOLDERS = 500  # folders of other launches that are searched for records
MAX_STEP_TIME = 86_400.0  # seconds; a record with more is not taken seriously


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
