"""Processes that a launch starts: how they begin, react to Ctrl-C, and end."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

STOP_TIMEOUT = 30  # seconds for a job to save its state after its launcher has died


def start_process(process: BaseProcess) -> None:
    """Start a process that ignores SIGINT and does not import the program's main module. Requires the main thread.

    A spawned process would run a script that has no `if __name__ == "__main__"` from its start, and launch again.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    main.__spec__ = ModuleSpec("__main__", None)  # multiprocessing does not import a main module of this name
    try:
        with ignore_sigint():
            process.start()
    finally:
        main.__spec__ = spec


@contextmanager
def ignore_sigint() -> Iterator[None]:
    """Make processes that are started within a `with` block ignore SIGINT.

    Ctrl-C sends it to the whole process group, but only the launcher should react to it. The launcher receives a SIGINT
    of the meantime at the end of the block. Only the main thread of a process may enter it.
    """
    resource_tracker.ensure_running()  # multiprocessing unblocks the signal when it starts this process
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda signum, frame: received.append(signum))
    # New processes inherit the mask. It does not protect this process: threads of libraries may receive the signal.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def describe_exit(exitcode: int | None) -> str:
    """Return how a process ended, as the end of a sentence."""
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (possibly by the kernel, because memory ran out)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process exited with status {exitcode}"


def end_with_parent() -> None:
    """Make this process stop its job and exit when its parent, the launcher, dies."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT)
    os._exit(1)
