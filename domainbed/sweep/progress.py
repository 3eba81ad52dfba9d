"""The tables and lines that `sweep status` prints."""

from collections import Counter, defaultdict
from collections.abc import Mapping

import tabulate

from domainbed.records import last_record
from domainbed.sweep.job import LOG_FILE, Job, Kind
from domainbed.sweep.status import MAX_ALIKE, JobState, Status, blocked_kinds, colored_state
from domainbed.terminal import duration


def status_table(statuses: Mapping[Job, Status]) -> str:
    """Return a table of the states of the jobs of each dataset and algorithm, with their progress and time left.

    The time left is what the remaining updates take at the current rate of the running jobs of the same kind.
    """
    kinds: dict[Kind, dict[Job, Status]] = defaultdict(dict)
    for job, status in statuses.items():
        kinds[job.kind][job] = status
    shown = [state for state in JobState if any(status.state == state for status in statuses.values())]
    rows = []
    for kind, of_kind in kinds.items():
        counts = Counter(status.state for status in of_kind.values())
        total, done, rate = count_updates(of_kind)
        rows.append(
            [
                *kind,
                *(counts[state] or "" for state in shown),
                f"{100 * done / total:.0f} %",
                f"{rate:.1f}" if rate else "",
                duration((total - done) / rate) if rate else "",
            ]
        )
    headers = ["Dataset", "Algorithm", *map(colored_state, shown), "updates", "updates/s", "time left"]
    return tabulate.tabulate(
        rows, headers, disable_numparse=True, colalign=("left", "left", *["right"] * (len(shown) + 3))
    )


def count_updates(statuses: Mapping[Job, Status]) -> tuple[int, int, float]:
    """Return the number of updates of some jobs: in total, done, and currently done per second.

    The total does not include what pruned jobs have not done.
    """
    total = done = 0
    rate = 0.0
    for job, status in statuses.items():
        n = updates_done(job, status)
        total += n if status.state == JobState.PRUNED else job.config.steps
        done += n
        rate += status.owner.rate() if status.owner else 0.0
    return total, done, rate


def updates_done(job: Job, status: Status) -> int:
    """Return the number of updates that a job has done: all if it is done, else up to its heartbeat or last record."""
    if status.state == JobState.DONE:
        return job.config.steps
    if status.owner:
        return status.owner.step
    record = last_record(job.folder) if status.state != JobState.NOT_LAUNCHED else None
    return record["step"] + 1 if record else 0


def summary_line(statuses: Mapping[Job, Status]) -> str:
    """Return a line such as "12 of 84 jobs done; 1,200 of 8,484 updates, 75.2 per second, 2 min left at this rate"."""
    total, done, rate = count_updates(statuses)
    counts = Counter(status.state for status in statuses.values())
    pruned = ""
    if counts[JobState.PRUNED]:
        saved = sum(job.config.steps for job in statuses) - total
        pruned = f", {counts[JobState.PRUNED]} pruned, which saves {saved:,} updates"
    line = f"{counts[JobState.DONE]} of {len(statuses)} jobs done{pruned}; {done:,} of {total:,} updates"
    return line + (f", {rate:,.1f} per second, {duration((total - done) / rate)} left at this rate" if rate else "")


def blocked_lines(statuses: Mapping[Job, Status]) -> list[str]:
    """Return a line for each kind of jobs that is blocked."""
    return [
        f"{algorithm} on {dataset} is blocked, because {MAX_ALIKE} jobs failed the same way and none is done: "
        f"{reason}\n  `launch --retry_failed` retries them"
        for (dataset, algorithm), reason in blocked_kinds(statuses).items()
    ]


def running_lines(statuses: Mapping[Job, Status]) -> list[str]:
    """Return a line for each running job: its progress, its time left, and its process."""
    lines = []
    for job, status in statuses.items():
        if (owner := status.owner) is None:
            continue
        steps = job.config.steps
        left = f", {duration((steps - owner.step) / owner.rate())} left" if owner.rate() else ""
        lines.append(f"{job}: {owner.step:,} of {steps:,} updates{left} ({owner})")
    return lines


def failure_lines(statuses: Mapping[Job, Status], task_outcomes: Mapping[str, str]) -> list[str]:
    """Return lines for each failed job, and for each incomplete job that SLURM interrupted.

    Args:
        statuses: the status of each job.
        task_outcomes: how the last SLURM task of a job ended, by the name of the job's folder.
    """
    lines = []
    for job, status in statuses.items():
        log = job.folder / LOG_FILE
        if failure := status.failure:
            times = "once" if failure.times <= 1 else f"{failure.times} times"
            lines.append(f"{job}\n  {failure.reason or 'unknown reason'}")
            last = f", last on {failure.host}, {failure.at}" if failure.at else ""
            # A task that ended before it started the job left no folder; the reason names SLURM's log.
            lines.append(f"  failed {times}{last}" + (f"; log: {log}" if log.exists() else ""))
        elif status.state == JobState.INCOMPLETE and job.folder.name in task_outcomes:
            outcome = task_outcomes[job.folder.name]
            lines.append(f"{job}\n  interrupted, can be resumed; SLURM task {outcome}; log: {log}")
    return lines
