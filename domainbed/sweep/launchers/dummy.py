"""Prints the commands, to be run by whatever you have."""

import shlex
from collections.abc import Callable, Iterator, Sequence

from domainbed.sweep.job import Job
from domainbed.sweep.launchers.base import Launcher, Update


class DummyLauncher(Launcher):
    """Runs nothing."""

    RUNS_JOBS = False

    def launch(self, jobs: Sequence[Job], should_stop: Callable[[], bool] = lambda: False) -> Iterator[Update]:
        for job in jobs:
            print(shlex.join(job.command()))
        return iter(())
