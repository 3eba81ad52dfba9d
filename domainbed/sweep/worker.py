"""A worker: a process of the local launcher that trains job after job, so Python, torch and CUDA start only once."""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection

from tqdm import tqdm

from domainbed.engine.interrupts import TERMINATION_SIGNALS, stop_on_signals
from domainbed.sweep.job import Job
from domainbed.sweep.processes import end_with_parent
from domainbed.sweep.run import JobEvent, run_job
from domainbed.sweep.status import JobState


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
