"""Which jobs shall begin first."""

from collections.abc import Sequence

from domainbed.records import is_done, last_record
from domainbed.sweep.job import Job


def launch_order(jobs: Sequence[Job], sweep: Sequence[Job]) -> list[Job]:
    """`jobs` trial by trial, so that a sweep that is stopped has whole tables of fewer trials.

    Within a trial those begin first that will take longest, as far as those of their kind that are done tell, so that
    no worker is left with a long one at the end; before them those of which nothing is known, as they were.

    Args:
        jobs: to be ordered.
        sweep: all jobs of the sweep, some of which may be done.
    """
    seconds: dict[tuple[str, str], float] = {}  # an update of each kind
    wanted = {job.kind for job in jobs}
    for job in sweep:
        if job.kind in wanted and job.kind not in seconds and is_done(job.folder):
            took = (last_record(job.folder) or {}).get("step_time")
            if isinstance(took, float):
                seconds[job.kind] = took
    return sorted(
        jobs, key=lambda job: (job.config.trial_seed, -seconds.get(job.kind, float("inf")) * job.config.steps)
    )
