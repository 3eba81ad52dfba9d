"""Being asked to stop: signals are noted, and the job ends by itself at the next safe point."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

# SIGUSR2 comes from a batch system shortly before the time is over, SIGHUP when a terminal closes. (Not on Windows.)
FROM_OUTSIDE = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR2", "SIGHUP") if hasattr(signal, name)]
FROM_ANYONE = [signal.SIGINT, *FROM_OUTSIDE]


class Interrupted(Exception):
    """A job stopped because it was asked to. What it needs to go on is on disk.

    Attributes:
        updates: how many it had done since it began or went on.
    """

    def __init__(self, message: str, updates: int) -> None:
        super().__init__(message)
        self.updates = updates


class StopRequest:
    """Whether this process was asked to stop: call it.

    Attributes:
        signals: those that asked, the first one first.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __call__(self) -> bool:
        return bool(self.signals)

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The handler. The first signal is noted; a second Ctrl-C ends the process where it stands."""
        is_second = signum in self.signals
        self.signals.append(signum)  # before anything that a second signal could come into
        if signum == signal.SIGINT:
            if is_second:
                raise KeyboardInterrupt
            # print could meet itself half-way through a line
            os.write(2, b"\nStopping as soon as all is saved; Ctrl-C again stops at once.\n")


@contextmanager
def stop_on_signals(signals: Sequence[int] = FROM_ANYONE) -> Iterator[StopRequest]:
    """Within it, these signals are requests to stop. Only a process's main thread may enter it."""
    request = StopRequest()
    heard = [signum for signum in signals if signal.getsignal(signum) != signal.SIG_IGN]  # nohup's to decide
    before = {signum: signal.signal(signum, request.note) for signum in heard}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
