"""What `status --json` and `launch --json` print: JSON objects for other programs."""

import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Any

from domainbed.engine.lock import LockOwner
from domainbed.records import read_pruned
from domainbed.sweep.display import Display, print_or_stop
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.progress import count_updates, updates_done
from domainbed.sweep.run import JobEvent
from domainbed.sweep.status import JobState, Status, blocked_kinds

# The names of the events of a job in each state; a running job has "started" and "progress" events.
EVENTS = {
    JobState.NOT_LAUNCHED: "skipped",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "skipped",  # because another process is training it
    JobState.INCOMPLETE: "interrupted",
    JobState.FAILED: "failed",
    JobState.PRUNED: "pruned",
    JobState.DONE: "done",
}


def status_object(sweep_dir: Path, statuses: Mapping[Job, Status], task_outcomes: Mapping[str, str]) -> dict[str, Any]:
    """Return the status of a sweep: counts of all jobs and of each kind, and the jobs.

    Args:
        sweep_dir: the sweep's folder.
        statuses: the status of each job.
        task_outcomes: how the last SLURM task of a job ended, by the name of the job's folder.
    """
    kinds: dict[Kind, dict[Job, Status]] = defaultdict(dict)
    for job, status in statuses.items():
        kinds[job.kind][job] = status
    blocked = blocked_kinds(statuses)
    return {
        "output_dir": str(sweep_dir),
        **_counts(statuses),
        "kinds": [
            {"dataset": kind[0], "algorithm": kind[1], **_counts(of_kind), "blocked": blocked.get(kind)}
            for kind, of_kind in kinds.items()
        ],
        "jobs": [_job_object(job, status, task_outcomes.get(job.folder.name)) for job, status in statuses.items()],
    }


def states_object(statuses: Mapping[Job, Status]) -> dict[str, int]:
    """Return the number of jobs in each state, including those without jobs."""
    counts = Counter(status.state for status in statuses.values())
    return {state.value: counts[state] for state in JobState}


def _counts(statuses: Mapping[Job, Status]) -> dict[str, Any]:
    total, done, rate = count_updates(statuses)
    return {"n_jobs": len(statuses), "states": states_object(statuses), **_progress(done, total, rate)}


def _progress(step: int, steps: int, rate: float) -> dict[str, Any]:
    return {
        "step": step,
        "steps": steps,
        "rate": rate or None,  # updates per second
        "seconds_left": (steps - step) / rate if rate else None,
    }


def _job_object(job: Job, status: Status, task_outcome: str | None) -> dict[str, Any]:
    owner, failure = status.owner, status.failure
    return {
        "job": job.folder.name,
        "folder": str(job.folder),
        "state": status.state.value,
        **_progress(updates_done(job, status), job.config.steps, owner.rate() if owner else 0.0),
        "process": _process(owner) if owner else None,
        "pruned": _pruned(job) if status.state == JobState.PRUNED else None,
        "failure": {**vars(failure), "reason": failure.reason or None} if failure else None,
        "task_outcome": task_outcome,
        "args": {name: value for name, value in job.config.args().items() if name != "spec"},
    }


def _pruned(job: Job) -> dict[str, Any]:
    """Return why a job is pruned; empty if that is unknown, because the file is damaged."""
    decision = read_pruned(job.folder)
    return vars(decision) if decision else {}


def _process(owner: LockOwner) -> dict[str, Any]:
    return {"pid": owner.pid, "host": owner.host, "slurm_job": owner.slurm_job or None}


class JsonDisplay(Display):
    """Prints the events of a launch as JSON lines.

    Args:
        jobs: the jobs to run.
        stream: where to print them.
    """

    def __init__(self, jobs: Sequence[Job], stream: IO[str]) -> None:
        super().__init__(jobs)
        self._stream = stream
        self._started: set[Job] = set()
        self._first: dict[Job, tuple[float, int]] = {}  # the time of a job's first record here, and its steps by then

    def show(self, event: JobEvent) -> None:
        self.n_failed += event.state == JobState.FAILED
        job = event.job
        name, details = EVENTS[event.state], {}
        if event.is_progress:
            name = "progress" if job in self._started else "started"
            self._started.add(job)
            details = _progress(event.steps, job.config.steps, self._rate(event) if name == "progress" else 0.0)
        elif event.state == JobState.DONE:
            details = {"step": job.config.steps, "steps": job.config.steps}
        elif event.state == JobState.PRUNED:
            details = {"step": event.steps, "steps": job.config.steps, "reason": event.reason}
        elif event.reason:
            details = {"reason": event.reason}
        run = {key: getattr(job.config, key) for key in ("test_envs", "trial_seed", "hparams_seed")}
        described = {"job": job.folder.name, "dataset": job.kind[0], "algorithm": job.kind[1], **run}
        print_event(self._stream, name, **described, **details)

    def _rate(self, event: JobEvent) -> float:
        """Return the number of updates per second of a job since its first record."""
        now = time.monotonic()
        start, steps = self._first.setdefault(event.job, (now, event.steps))
        return (event.steps - steps) / (now - start) if now > start else 0.0


def print_launched(stream: IO[str], output_dir: str, statuses: Mapping[Job, Status], jobs: Sequence[Job]) -> None:
    """Print the first event of a launch: the states of all its jobs, and the folders of those that it will run."""
    folders = [job.folder.name for job in jobs]
    states = states_object(statuses)
    print_event(stream, "launched", output_dir=output_dir, n_jobs=len(statuses), states=states, to_run=folders)


def print_ended(stream: IO[str], statuses: Mapping[Job, Status], exit_status: int) -> None:
    """Print the last event of a launch."""
    print_event(stream, "ended", states=states_object(statuses), exit_status=exit_status)


def print_event(stream: IO[str], name: str, **details: Any) -> None:
    """Print an event of a launch as a JSON line, with the current time in seconds since 1970."""
    print_or_stop(to_line({"event": name, "time": round(time.time(), 3), **details}), stream)


def to_line(content: Mapping[str, Any]) -> str:
    """Return an object as one line of ASCII."""
    return json.dumps(content, allow_nan=False)


@contextmanager
def reserved_stdout() -> Iterator[IO[str]]:
    """Yield stdout; whatever else is printed there within a `with` block goes to stderr, also by other processes."""
    stdout = sys.stdout
    try:
        number = stdout.fileno()
    except OSError:  # in memory; other processes do not write there
        with redirect_stdout(sys.stderr):
            yield stdout
        return
    stdout.flush()
    with open(os.dup(number), "w", encoding="ascii") as reserved, redirect_stdout(sys.stderr):
        os.dup2(2, number)
        try:
            yield reserved
        finally:
            os.dup2(reserved.fileno(), number)
