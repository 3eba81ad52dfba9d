"""A process that trains job after job, so that Python, torch and CUDA start once."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TypeAlias

from tqdm import tqdm

from domainbed.engine.lock import TakenError
from domainbed.errors import UsageError
from domainbed.sweep.job import LOG_FILE, Job

# What a worker tells of its job: ("record", step), then one of ("done", ""), ("taken", "") where another process
# trains it or has finished it, and ("failed", why).
Word: TypeAlias = tuple[str, str]


def serve(connection: Connection, environ: Mapping[str, str]) -> None:
    """Train each job that comes through `connection` and tell of it, until the other end is closed.

    After a failed job the process ends: what the job left in it (a broken CUDA context, say) must harm no other.

    Args:
        environ: environment variables to set before torch is imported (threads, the GPU).
    """
    os.environ.update(environ)
    end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own lock spans processes, and would be left behind where this one is killed
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        try:
            with _output_to_log(job):
                last_word = _train(job, connection)
        except OSError as error:
            last_word = ("failed", f"{job.folder}: {error.strerror}")
        connection.send(last_word)
        if last_word[0] == "failed":
            return


def _train(job: Job, connection: Connection) -> Word:
    """Train one job. Returns the last word on it."""
    try:
        from domainbed.engine.train import train  # not before `environ` is set

        train(job.config, on_record=lambda step: connection.send(("record", step)))
    except TakenError:
        return "taken", ""
    except UsageError as error:
        print(f"error: {error}")
        return "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    return "done", ""


@contextmanager
def _output_to_log(job: Job) -> Iterator[None]:
    """Send all output, that of C code and of child processes too, to the end of the job's log."""
    job.folder.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(1), os.dup(2)]
    with open(job.folder / LOG_FILE, "ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started here never hear Ctrl-C: it reaches the whole process group, but is the launcher's to answer."""
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, answer)


def end_with_parent() -> None:
    """A launcher that is killed takes this process, its worker, with it: nobody would hear of what it does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
