"""The steps of a launch besides its checks: order jobs, run them, print their progress, and summarize."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from domainbed.engine.interrupts import stop_on_signals
from domainbed.records import clear_pruned
from domainbed.sweep.display import Display, make_display
from domainbed.sweep.failures import clear_failure
from domainbed.sweep.job import Job
from domainbed.sweep.launchers import Launcher
from domainbed.sweep.queue import read_queue
from domainbed.sweep.status import JobState, Status, count_states, survey
from domainbed.sweep.step_times import done_step_times


@dataclass(frozen=True, repr=False)
class LaunchResult:
    """The outcome of a launch.

    Attributes:
        statuses: the status of each job of the launch.
        n_failed: number of jobs that failed, including failures that could not be recorded.
        stop_signal: the signal that stopped the launch, if any.
    """

    statuses: dict[Job, Status]
    n_failed: int = 0
    stop_signal: int | None = None

    def __repr__(self) -> str:
        return f"{len(self.statuses)} jobs: {count_states(self.statuses)}"


def launch_order(jobs: Sequence[Job], statuses: Mapping[Job, Status]) -> list[Job]:
    """Return jobs in the order in which to start them: trial by trial, so a stopped sweep has complete trials.

    Within a trial, jobs that are expected to take longest start first, so that no worker is left with a long job at the
    end. The estimate comes from finished jobs of the same dataset and algorithm; jobs without one come before others.

    Args:
        jobs: the jobs to order.
        statuses: the statuses of all jobs of the launch.
    """
    step_times = done_step_times(statuses, {job.kind for job in jobs})

    def expected_seconds(job: Job) -> float:
        return step_times[job.kind].seconds * job.config.steps if job.kind in step_times else float("inf")

    return sorted(jobs, key=lambda job: (job.config.trial_seed, -expected_seconds(job)))


def run_launch(
    launcher: Launcher, jobs: Sequence[Job], statuses: Mapping[Job, Status], display: Display | None = None
) -> LaunchResult:
    """Run checked jobs until they end or a signal stops them, and print their progress and a summary.

    Failed jobs among them are retried, and pruned ones resumed. A second Ctrl-C kills jobs on this machine at once.

    Args:
        launcher: runs the jobs.
        jobs: the jobs to run, in the order in which to start them.
        statuses: the statuses of all jobs of the launch, including those that are not run.
        display: prints the events of the jobs; by default, bars on a terminal and lines elsewhere.
    """
    sweep_dir = jobs[0].folder.parent
    statuses = dict(statuses)
    for job in jobs:
        if statuses[job].failure:
            clear_failure(job.folder)
            statuses[job] = Status(JobState.INCOMPLETE)
        elif statuses[job].state == JobState.PRUNED:
            clear_pruned(job.folder)
            statuses[job] = Status(JobState.INCOMPLETE)
    start = time.monotonic()
    if display is None:
        display = make_display(jobs) if launcher.WAITS else Display(jobs)
    with stop_on_signals() as stop_request:
        try:
            with display:
                for event in launcher.launch(jobs, statuses, stop_request):
                    display.show(event)
        except KeyboardInterrupt:
            launcher.stop()
    statuses = survey(statuses, read_queue(sweep_dir))
    print(f"{count_states(statuses)} after {time.monotonic() - start:.0f} s")
    if stop_request():
        print("Stopped. Run the same command to resume.", file=sys.stderr)
    return LaunchResult(statuses, display.n_failed, stop_request.signals[0] if stop_request() else None)
