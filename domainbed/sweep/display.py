"""What a launch prints while its jobs run: bars on a terminal, a line per job that ends elsewhere."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import IO

from tqdm import tqdm

from domainbed.engine.lock import lock_owner
from domainbed.sweep.job import Job, Kind
from domainbed.sweep.run import JobEvent
from domainbed.sweep.status import FINISHED, JobState, colored_state
from domainbed.terminal import duration, is_terminal

REFRESH_INTERVAL = 1.0  # seconds between reads of the running jobs' locks, which hold their progress
FORMAT = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt}{postfix}  {desc}"  # a narrow terminal cuts off the end


class Display:
    """Prints the events of a launch: a line for each job that ends, and why jobs failed or were not started.

    Args:
        jobs: the jobs to run.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.n_jobs = len(jobs)
        self.n_ended = self.n_failed = 0
        self._start = time.monotonic()
        self._printed: set[tuple[Kind, str]] = set()

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def show(self, event: JobEvent) -> None:
        """Print an event."""
        self.n_failed += event.state == JobState.FAILED
        self.n_ended += event.has_ended
        self.show_reason(event)
        self.show_state(event)

    def show_reason(self, event: JobEvent) -> None:
        """Print why a job failed, was interrupted or was not started, to stderr. Why one was pruned is in its log."""
        if event.state == JobState.FAILED:
            failed = colored_state(event.state, "FAILED", sys.stderr)
            print_or_stop(f"{failed} {event.job}: {event.reason}", sys.stderr)
        elif event.state != JobState.PRUNED and event.reason and (event.job.kind, event.reason) not in self._printed:
            self._printed.add((event.job.kind, event.reason))  # once for all jobs of a blocked kind
            print_or_stop(f"{event.job}: {event.reason}", sys.stderr)

    def show_state(self, event: JobEvent) -> None:
        """Print that a job has ended."""
        if event.has_ended:
            seconds = time.monotonic() - self._start
            state = colored_state(event.state)
            print_or_stop(f"[{self.n_ended}/{self.n_jobs}] {seconds:.0f} s: {state}: {event.job}")


class BarDisplay(Display):
    """A bar for the whole launch on stderr, which is a terminal, and one for each job that is running."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(jobs)
        self._total = tqdm(total=sum(job.config.steps for job in jobs), unit="step", smoothing=0.05, dynamic_ncols=True)
        self._steps: dict[Job, int] = {}
        self._bars: dict[Job, tqdm] = {}
        self._lock = threading.Lock()  # protects the bars
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._refresh_until_closed, daemon=True)

    def __enter__(self) -> "BarDisplay":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed.set()
        self._thread.join()
        for bar in [*self._bars.values(), self._total]:
            bar.close()

    def show_state(self, event: JobEvent) -> None:
        with self._lock:
            if event.is_progress:
                self._open_bar(event.job)
                self._set_steps(event.job, event.steps)
            elif event.job in self._bars:
                self._bars.pop(event.job).close()
            if event.state in FINISHED:
                self._set_steps(event.job, event.steps)
                self._total.total = (self._total.total or 0) - steps_saved(event)
            if event.has_ended:
                self._total.set_postfix_str(f"{self.n_ended}/{self.n_jobs} jobs, {self.n_failed} failed")

    def refresh(self) -> None:
        """Update the bars of the running jobs from their locks."""
        with self._lock:
            for job, bar in self._bars.items():
                if (owner := lock_owner(job.folder)) is None:
                    continue
                self._set_steps(job, owner.step)
                if rate := owner.rate():
                    left = duration((job.config.steps - owner.step) / rate)
                    bar.set_postfix_str(f"{rate:,.1f} steps/s, {left} left", refresh=False)
                bar.refresh()

    def _refresh_until_closed(self) -> None:
        while not self._is_closed.wait(REFRESH_INTERVAL):
            self.refresh()

    def _open_bar(self, job: Job) -> None:
        """Open a bar on the first free line, unless the job has one."""
        if job not in self._bars:
            used = {-bar.pos for bar in self._bars.values()}
            line = next(i for i in range(1, len(used) + 2) if i not in used)
            self._bars[job] = tqdm(
                desc=str(job), total=job.config.steps, position=line, leave=False, bar_format=FORMAT, dynamic_ncols=True
            )

    def _set_steps(self, job: Job, steps: int) -> None:
        """Set the number of steps that a job has done. Its records and its lock report them at different times."""
        new = steps - self._steps.get(job, 0)
        if new > 0:
            self._steps[job] = steps
            self._total.update(new)
            if job in self._bars:
                self._bars[job].update(new)


class WidgetDisplay(Display):
    """A bar of the updates of all jobs in a notebook; lines, as in `Display`, without ipywidgets."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(jobs)
        self._bar = widget_bar(jobs)
        self._steps = dict.fromkeys(jobs, 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def show_state(self, event: JobEvent) -> None:
        if self._bar.disable:
            super().show_state(event)
            return
        if event.is_progress or event.state in FINISHED:
            self._bar.total = (self._bar.total or 0) - steps_saved(event)
            self._bar.update(event.steps - self._steps[event.job])
            self._steps[event.job] = event.steps
        if event.has_ended:
            self._bar.set_postfix_str(f"{self.n_ended}/{self.n_jobs} jobs, {self.n_failed} failed")


def steps_saved(event: JobEvent) -> int:
    """Return the number of updates of a job that are not done because it is pruned."""
    return event.job.config.steps - event.steps if event.state == JobState.PRUNED else 0


def make_display(jobs: Sequence[Job]) -> Display:
    """Return the display for jobs that run while it is shown: bars on a terminal and in notebooks, lines elsewhere."""
    if is_terminal(sys.stderr):
        return BarDisplay(jobs)
    return WidgetDisplay(jobs) if "ipykernel" in sys.modules else Display(jobs)


def widget_bar(jobs: Iterable[Job]) -> tqdm:
    """Return a bar of the updates of some jobs: a widget in a notebook that has ipywidgets.

    Elsewhere, it is shown only if stderr is a terminal.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a notebook without ipywidgets
        from tqdm.auto import tqdm as tqdm_auto  # imports asyncio
    return tqdm_auto(total=sum(job.config.steps for job in jobs), unit="step", disable=None, smoothing=0.05)


def print_or_stop(line: str, stream: IO[str] | None = None) -> None:
    """Print a line above the bars; stop the launch if that fails, so that running jobs are saved.

    It fails if the reader has exited (`| head`) or the disk is full.

    Args:
        line: the line.
        stream: where to print it (default: stdout).
    """
    stream = stream or sys.stdout
    try:
        with tqdm.external_write_mode(file=stream):
            print(line, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        signal.raise_signal(signal.SIGTERM)
