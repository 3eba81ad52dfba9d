"""Worker processes on this machine, each training job after job."""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import joblib

from domainbed.errors import UsageError
from domainbed.records import is_done
from domainbed.sweep.failures import note_outcome, record_failure
from domainbed.sweep.job import LOG_FILE, Job
from domainbed.sweep.launchers.base import Launcher, Update, passed_over
from domainbed.sweep.run import End
from domainbed.sweep.status import JobState, status_of
from domainbed.sweep.worker import Word, ignore_sigint, serve

LOG_LINES = 8
PATIENCE = 5  # seconds for a process to end by itself

# A job that these end is not to blame, and can go on.
BLAMELESS = {getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)}


class LocalLauncher(Launcher):
    """N worker processes: by default one a GPU or, without a GPU, one a core.

    They share the cores out as threads, unless the option `threads` says how many each has.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._wanted: int | None = options.get("workers")
        if self._wanted is not None and self._wanted < 1:
            raise UsageError(f"--workers must be at least 1, not {self._wanted}")
        self._threads: int | None = options.get("threads")
        if self._threads is not None and self._threads < 1:
            raise UsageError(f"--threads must be at least 1, not {self._threads}")
        self._running: list[_Worker] = []

    def launch(self, jobs: Sequence[Job], should_stop: Callable[[], bool] = lambda: False) -> Iterator[Update]:
        waiting = deque(jobs)
        is_stopping = False
        try:
            self._running = [_Worker(e) for e in worker_environments(self._wanted, len(jobs), self._threads)]
            for worker in list(self._running):
                yield from self._go_on(worker, waiting)
            while self._running:
                wait([w.connection for w in self._running], timeout=1)
                if should_stop() and not is_stopping:
                    is_stopping = True
                    waiting.clear()
                    for worker in self._running:
                        worker.is_stopping = True
                        worker.process.terminate()
                for worker in [w for w in self._running if w.has_news()]:
                    yield worker.hear()
                    if not worker.busy:
                        yield from self._go_on(worker, waiting)
        finally:
            self.stop()

    def _go_on(self, worker: "_Worker", waiting: deque[Job]) -> Iterator[Update]:
        """Give a free worker the next job; a new process takes the place of one that is spent.

        Jobs that another launch has taken on since are passed over and told of, and so are those of a kind that fails.
        """
        while waiting and (update := passed_over(waiting[0], status_of(waiting[0]).state)):
            waiting.popleft()
            yield update
        if not waiting or not worker.usable:
            worker.close()
            self._running.remove(worker)
        if waiting and not worker.usable:
            worker = _Worker(worker.environ)
            self._running.append(worker)
        if waiting:
            worker.give(waiting.popleft())

    def stop(self) -> None:
        for worker in self._running:
            worker.process.kill()
        for worker in self._running:
            worker.close()
        self._running = []


class MultiGpuLauncher(LocalLauncher):
    """One worker a GPU, or as many as --workers says, shared out over the GPUs. Without a GPU it launches nothing."""

    def check(self) -> None:
        import torch

        if not torch.cuda.device_count():
            raise UsageError("launcher multi_gpu finds no GPU here; --command_launcher local trains on the CPU")


class _Worker:
    """The launcher's end of a worker process."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, environ))
        with ignore_sigint():
            self.process.start()
        theirs.close()
        self.usable = True
        self.busy = False
        self.is_stopping = False

    def give(self, job: Job) -> None:
        self.job = job
        self.busy = True
        with contextlib.suppress(OSError):  # a process that is dead already is heard of next
            self.connection.send(job)

    def has_news(self) -> bool:
        """Whether it has something to tell, or is dead (which a child of its own, that lives on, can hide)."""
        return self.connection.poll() or not self.process.is_alive()

    def hear(self) -> Update:
        """The next thing that the worker tells of its job; its death is the last."""
        try:
            if not self.connection.poll():
                raise EOFError
            word: Word = self.connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a word
            self.process.join(PATIENCE)
            self.busy = self.usable = False
            return self._died(self.process.exitcode)
        if isinstance(word, int):
            return Update(self.job, JobState.RUNNING, steps=word + 1)
        self.busy = False
        self.usable = word.end not in (End.FAILED, End.STOPPED)  # after which it ends
        if word.end == End.FAILED:
            return Update(self.job, JobState.FAILED, reason=_with_log(self.job, word.reason))
        state = status_of(self.job).state
        return passed_over(self.job, state) or Update(self.job, state)

    def _died(self, exitcode: int | None) -> Update:
        """What is told of a job whose process ended without a word."""
        reason = _cause_of_death(exitcode)
        as_asked = exitcode == 0 or (self.is_stopping and exitcode == -signal.SIGTERM)  # before it had begun the job
        if as_asked or is_done(self.job.folder):
            return Update(self.job, status_of(self.job).state)
        if exitcode is not None and -exitcode in BLAMELESS:
            return Update(self.job, JobState.INCOMPLETE, reason=_with_log(self.job, reason))
        record_failure(self.job.folder, reason)
        note_outcome(self.job, reason)
        return Update(self.job, JobState.FAILED, reason=_with_log(self.job, reason))

    def close(self) -> None:
        """Let the process end, and see that it does."""
        self.connection.close()
        self.process.join(PATIENCE)
        if self.process.is_alive():  # a thread that the job left, say, or a device that does not answer
            self.process.kill()
            self.process.join(PATIENCE)


def worker_environments(workers: int | None, n_jobs: int, threads: int | None = None) -> list[dict[str, str]]:
    """The environment variables of each worker: which GPU it has, or how many threads.

    Args:
        workers: how many workers are asked for; None for one a GPU or, without GPU, one a core.
        n_jobs: more workers than jobs are of no use.
        threads: of each worker; None for its share of the cores.
    """
    import torch  # only where jobs are about to run

    gpus = torch.cuda.device_count()
    cores = joblib.cpu_count()  # knows of CPU affinity and of containers' limits
    n = min(workers or gpus or cores, n_jobs)
    environments = [{"OMP_NUM_THREADS": str(threads or max(1, cores // n))} for _ in range(n)]
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        for i, environ in enumerate(environments):
            environ["CUDA_VISIBLE_DEVICES"] = visible[i % gpus]
    return environments


def _with_log(job: Job, reason: str) -> str:
    """The reason, where the job's log is, and its last lines."""
    log = job.folder / LOG_FILE
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{reason}\n(no log at {log})"
    return "\n".join([reason, f"{log} ends with:", *(f"  {line}" for line in lines[-LOG_LINES:])])


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (the kernel does so when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {exitcode}"
