"""Stopping on signals: a signal is noted, and the job stops at the next point at which it can be resumed."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

# A batch system sends SIGUSR2 shortly before the time limit, a closing terminal SIGHUP. Windows has neither.
TERMINATION_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR2", "SIGHUP") if hasattr(signal, name)]
STOP_SIGNALS = [signal.SIGINT, *TERMINATION_SIGNALS]


class Interrupted(Exception):
    """A job stopped because its caller requested it. Everything needed to resume is on disk.

    Attributes:
        updates: the number of updates since the job started or was resumed.
    """

    def __init__(self, message: str, updates: int) -> None:
        super().__init__(message)
        self.updates = updates


class Pruned(Interrupted):
    """A job stopped because it is behind (`JobControl.should_prune`)."""


class StopRequest:
    """A callable that returns whether this process has received a request to stop.

    Attributes:
        signals: the signals received, in order.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []

    def __call__(self) -> bool:
        return bool(self.signals)

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: note the request, or raise KeyboardInterrupt on a second Ctrl-C."""
        is_repeated = signum in self.signals
        self.signals.append(signum)  # first, because another signal may interrupt what follows
        if signum == signal.SIGINT:
            if is_repeated:
                raise KeyboardInterrupt
            with suppress(OSError):  # `| tee` may have been stopped, too
                # print is not reentrant.
                os.write(2, b"\nStopping after saving a checkpoint; press Ctrl-C again to stop immediately.\n")


@contextmanager
def stop_on_signals(signals: Sequence[int] = STOP_SIGNALS) -> Iterator[StopRequest]:
    """Treat these signals as requests to stop. Requires the main thread."""
    request = StopRequest()
    handled = [signum for signum in signals if signal.getsignal(signum) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {signum: signal.signal(signum, request.handle) for signum in handled}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
