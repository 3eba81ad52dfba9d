"""A sweep at a glance: how many jobs are in which state, how fast it goes, and how long it has yet to go."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import tabulate

from domainbed.records import last_record
from domainbed.sweep.failures import ALIKE, blocked_reason
from domainbed.sweep.job import LOG_FILE, Job
from domainbed.sweep.status import JobState, Status


def table(statuses: Mapping[Job, Status]) -> str:
    """The states of the jobs of each dataset and algorithm, how much is done, and how long it has to go.

    The time left is what the running jobs need, at the rate at which they go, for what is not done of their kind.
    """
    kinds: dict[tuple[str, str], list[Job]] = defaultdict(list)
    for job in statuses:
        kinds[job.kind].append(job)
    shown = [state for state in JobState if any(status.state == state for status in statuses.values())]
    rows = []
    for kind, jobs in kinds.items():
        counts = Counter(statuses[job].state for job in jobs)
        total, done, rate = sums({job: statuses[job] for job in jobs})
        rows.append(
            [
                *kind,
                *(counts[state] or "" for state in shown),
                f"{100 * done / total:.0f} %",
                f"{rate:.1f}" if rate else "",
                duration((total - done) / rate) if rate else "",
            ]
        )
    headers = ["Dataset", "Algorithm", *(state.value for state in shown), "updates", "updates/s", "time left"]
    return tabulate.tabulate(
        rows, headers, disable_numparse=True, colalign=("left", "left", *["right"] * (len(shown) + 3))
    )


def sums(statuses: Mapping[Job, Status]) -> tuple[int, int, float]:
    """Of these jobs: all updates, those that are done, and how many a second are being done now."""
    total = done = 0
    rate = 0.0
    for job, status in statuses.items():
        total += job.config.steps
        if status.state == JobState.DONE:
            done += job.config.steps
        elif status.owner:
            done += status.owner.step
            rate += status.owner.rate()
        elif status.state != JobState.NOT_LAUNCHED:
            record = last_record(job.folder)
            done += record["step"] + 1 if record else 0
    return total, done, rate


def overall(statuses: Mapping[Job, Status]) -> str:
    """One line on the whole: "12 of 84 jobs done; 1,200 of 8,484 updates, 75.2 a second, 1 h 37 min left"."""
    total, done, rate = sums(statuses)
    jobs = sum(status.state == JobState.DONE for status in statuses.values())
    line = f"{jobs} of {len(statuses)} jobs done; {done:,} of {total:,} updates"
    return line + (f", {rate:,.1f} a second, {duration((total - done) / rate)} left at this rate" if rate else "")


def held_back_kinds(jobs: Iterable[Job]) -> list[str]:
    """A line for each kind of jobs that is not begun any more."""
    a_job = {job.kind: job for job in jobs}
    return [
        f"{algorithm} on {dataset} is held back, for the first {ALIKE} to end all failed alike: {reason}\n"
        "  launch --retry_failed tries again"
        for (dataset, algorithm), job in a_job.items()
        if (reason := blocked_reason(job))
    ]


def running(statuses: Mapping[Job, Status]) -> list[str]:
    """A line for each running job: how far it is, how fast, and where."""
    lines = []
    for job, status in statuses.items():
        if (owner := status.owner) is None:
            continue
        steps = job.config.steps
        left = f", {duration((steps - owner.step) / owner.rate())} left" if owner.rate() else ""
        lines.append(f"{job}: {owner.step:,} of {steps:,} updates{left} ({owner})")
    return lines


def failures(statuses: Mapping[Job, Status], ends: Mapping[str, str]) -> list[str]:
    """What is wrong: each failed job with its reason, how often, where, and its log; and what SLURM cut short.

    Args:
        ends: how SLURM's last task ended, of the incomplete jobs that it tells of, by the folder's name.
    """
    lines = []
    for job, status in statuses.items():
        log = job.folder / LOG_FILE
        if failure := status.failure:
            times = "once" if failure.times <= 1 else f"{failure.times} times"
            lines.append(f"{job}\n  {failure.reason or 'why, was not kept'}")
            last = f", last on {failure.host}, {failure.at}" if failure.at else ""
            lines.append(f"  failed {times}{last}; log: {log}")
        elif status.state == JobState.INCOMPLETE and job.folder.name in ends:
            lines.append(f"{job}\n  stopped and can go on; SLURM's task {ends[job.folder.name]}; log: {log}")
    return lines


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(45), duration(125), duration(7500), duration(200_000)
    ('45 s', '2 min', '2 h 05 min', '2 d 07 h')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
