"""A launcher made from a function of the jobs' command lines, as DomainBed's launchers are."""

import shlex
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, FunctionType
from typing import ClassVar

from domainbed.engine.interrupts import STOP_SIGNALS
from domainbed.errors import UsageError, one_line
from domainbed.sweep.job import Job
from domainbed.sweep.launchers.base import Launcher, skip_event
from domainbed.sweep.run import JobEvent, done_event, pruned_event
from domainbed.sweep.status import JobState, Status, blocked_kinds, read_status


class FunctionLauncher(Launcher):
    """Calls a function with the command lines of all jobs, which it runs or submits.

    Each command trains one job alone, and records its failure. The function may return before the jobs have ended:
    their states are those of their folders.
    """

    WAITS = False
    name: ClassVar[str]
    function: ClassVar[FunctionType]

    def launch(
        self, jobs: Sequence[Job], statuses: Mapping[Job, Status], should_stop: Callable[[], bool]
    ) -> Iterator[JobEvent]:
        blocked = blocked_kinds(statuses)
        started = []
        for job in jobs:
            if event := skip_event(job, read_status(job.folder).state, blocked.get(job.kind, "")):
                yield event
            else:
                started.append(job)
        with _interruptible():
            try:
                type(self).function([shlex.join(job.command()) for job in started])
            except (Exception, SystemExit) as error:
                file = type(self).function.__code__.co_filename
                lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
                where = f", in {Path(file).name} line {lines[-1]}" if lines else ""
                reason = f"{type(error).__name__}: {one_line(error)}{where}"
                raise UsageError(f"launcher {self.name!r} failed: {reason}") from error
        for job in started:
            status = read_status(job.folder)
            if status.state == JobState.PRUNED:
                yield pruned_event(job)
            elif status.state == JobState.DONE:
                yield done_event(job)
            elif status.state != JobState.NOT_LAUNCHED:
                yield JobEvent(job, status.state, reason=status.failure.reason if status.failure else "")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first signal to stop within a `with` block, in addition to what else handles it.

    The function does not know that the launch has been asked to stop, and would start the next command.
    """
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def interrupt(signum: int, frame: FrameType | None) -> None:
        handler = before[signal.Signals(signum)]
        if callable(handler):
            handler(signum, frame)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler not in (None, signal.SIG_IGN):
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: installed by other than Python code
                signal.signal(number, handler)


def accept_launcher(name: str, item: type[Launcher] | Callable[[list[str]], object]) -> type[Launcher]:
    """Return a launcher to register: a subclass of Launcher, or one that calls a function.

    Raises:
        UsageError: the object is neither, or the name is reserved.
    """
    if name == "dummy":
        raise UsageError("launcher 'dummy' prints the commands; choose another name")
    if isinstance(item, type) and issubclass(item, Launcher):
        return item
    if not isinstance(item, FunctionType):
        raise UsageError(f"launcher {name!r} must be a subclass of Launcher or a function of a list of command lines")
    return type("FunctionLauncher", (FunctionLauncher,), {"name": name, "function": staticmethod(item)})
