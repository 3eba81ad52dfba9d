"""Which runs a sweep was asked for, and how far each is."""

from collections.abc import Callable, Container
from pathlib import Path

from domainbed.sweep.grid import RANGES, Run, make_job
from domainbed.sweep.log import read_launches
from domainbed.sweep.queue import queue_if_it_answers
from domainbed.sweep.status import JobState, survey


def runs_asked_for(sweep_dir: Path, done: Container[Run], tell: Callable[[str], object]) -> dict[Run, JobState]:
    """The runs that the launches into this folder asked for, and the state of each.

    Of a run that launches asked for with different arguments (the number of steps, say) the last one's state counts.

    Args:
        done: runs of which a job is done. Where all launches have the same arguments, only the others are looked at,
            so that a large sweep that is done costs little.
        tell: is called with a line for each launch that can't be made any more.
    """
    launches = read_launches(sweep_dir, tell)
    settings = [{name: v for name, v in arguments.items() if name not in RANGES} for arguments, _ in launches]
    are_alike = all(each == settings[0] for each in settings)
    states: dict[Run, JobState] = {}
    jobs = {}
    for arguments, runs in launches:
        for run in runs:
            states[run] = JobState.DONE
            if not are_alike or run not in done:
                jobs[run] = make_job(run, str(sweep_dir), arguments)
    statuses = survey(jobs.values(), queue_if_it_answers(sweep_dir) if jobs else None)
    return states | {run: statuses[job].state for run, job in jobs.items()}
