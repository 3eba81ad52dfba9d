"""Being asked to stop: signals are noted, and the job ends by itself at the next safe point."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGUSR2 comes from a batch system shortly before the time is over. (Windows has none.)
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)]


class Interrupted(Exception):
    """A job stopped because it was asked to. What it needs to go on is on disk."""


class StopRequest:
    """Whether this process was asked to stop: call it.

    Attributes:
        signum: the first signal that asked, or None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self) -> bool:
        return self.signum is not None

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The handler. The first signal is noted; a second Ctrl-C ends the process where it stands."""
        if signum == signal.SIGINT:
            if self.signum == signal.SIGINT:
                raise KeyboardInterrupt
            # print could meet itself half-way through a line
            os.write(2, b"\nStopping as soon as all is saved; Ctrl-C again stops at once.\n")
        self.signum = self.signum or signum


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within it, Ctrl-C, SIGTERM and SIGUSR2 are requests to stop. Only a process's main thread may enter it."""
    request = StopRequest()
    before = {signum: signal.signal(signum, request.note) for signum in STOPPING}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
