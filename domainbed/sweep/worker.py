"""A process of the local launcher that trains job after job, so that Python, torch and CUDA start once."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TypeAlias

from tqdm import tqdm

from domainbed.engine.interrupts import FROM_OUTSIDE, stop_on_signals
from domainbed.sweep.job import Job
from domainbed.sweep.run import End, Outcome, run_job

# What a worker tells of its job: the step of each record, and in the end how it left.
Word: TypeAlias = int | Outcome

PATIENCE = 30  # seconds for a job to save what it has, when its launcher is gone


def serve(connection: Connection, environ: Mapping[str, str]) -> None:
    """Train each job that comes through `connection` and tell of it, until the other end is closed.

    SIGTERM stops the job at the next safe point. After a failed job the process ends: what the job left in it (a broken
    CUDA context, say) must harm no other.

    Args:
        environ: environment variables to set before torch is imported (threads, the GPU).
    """
    os.environ.update(environ)
    end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own lock spans processes, and would be left behind where this one is killed

    def tell(word: Word) -> None:
        with suppress(BrokenPipeError):  # a launcher that is gone
            connection.send(word)

    with stop_on_signals(FROM_OUTSIDE) as asked_to_stop:
        while not asked_to_stop():
            try:
                job: Job = connection.recv()
            except EOFError:
                return
            outcome = run_job(job, tell, asked_to_stop)
            tell(outcome)
            if outcome.end == End.FAILED:
                return


@contextmanager
def ignore_sigint() -> Iterator[None]:
    """Processes started here never hear Ctrl-C: it reaches the whole process group, but is the launcher's to answer.

    Which it does as soon as they are started: the signal is noted, and raised again then. Only a process's main thread
    may enter this.
    """
    resource_tracker.ensure_running()  # where multiprocessing starts that, it unblocks the signal
    came: list[int] = []
    answer = signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))
    # The processes inherit the mask. To this one it is no help: a thread of a library's may hear the signal, too.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, answer)
        if came:
            signal.raise_signal(signal.SIGINT)


def end_with_parent() -> None:
    """A launcher that is killed takes this process, its worker, with it: nobody would hear of what it does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)
