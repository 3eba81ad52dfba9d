"""A worker: a process of the local launcher that trains job after job, so Python, torch and CUDA start only once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from domainbed.engine.interrupts import TERMINATION_SIGNALS, stop_on_signals
from domainbed.sweep.job import Job
from domainbed.sweep.run import JobEvent, run_job
from domainbed.sweep.status import JobState

STOP_TIMEOUT = 30  # seconds for a job to save its state after its launcher has died


def serve(connection: Connection, environ: Mapping[str, str]) -> None:
    """Train each job received through `connection` and send its events back, until the other end is closed.

    SIGTERM stops the job at the next safe point. The process exits after a failed job, which may have left it in a bad
    state (such as a broken CUDA context).

    Args:
        connection: receives jobs and sends events.
        environ: environment variables to set before torch is imported (threads, the GPU).
    """
    os.environ.update(environ)
    end_with_parent()
    tqdm.set_lock(threading.RLock())  # the default lock spans processes, and would stay locked if this one is killed

    def send(event: JobEvent) -> None:
        with suppress(BrokenPipeError):  # the launcher has died
            connection.send(event)

    with stop_on_signals(TERMINATION_SIGNALS) as stop_request:
        while not stop_request():
            try:
                job: Job = connection.recv()
            except EOFError:
                return
            event = run_job(job, send, stop_request)
            send(event)
            if event.state == JobState.FAILED:
                return


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
