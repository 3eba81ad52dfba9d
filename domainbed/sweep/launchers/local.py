"""Worker processes on this machine, each training job after job."""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import joblib

from domainbed.errors import UsageError
from domainbed.sweep.job import LOG_FILE, Job, JobState
from domainbed.sweep.launchers.base import Launcher, Update
from domainbed.sweep.worker import deaf_to_ctrl_c, serve

LOG_LINES = 8
PATIENCE = 5  # seconds for a process to end by itself


class LocalLauncher(Launcher):
    """N worker processes: by default one a GPU or, without a GPU, one a core. They share the cores out as threads."""

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"--workers must be at least 1, not {workers}")
        super().__init__(workers)
        self._running: list[_Worker] = []

    def launch(self, jobs: Sequence[Job]) -> Iterator[Update]:
        waiting = deque(jobs)
        try:
            self._running = [_Worker(environ) for environ in worker_environments(self.workers, len(jobs))]
            for worker in list(self._running):
                yield from self._go_on(worker, waiting)
            while self._running:
                wait([w.connection for w in self._running], timeout=1)
                for worker in [w for w in self._running if w.has_news()]:
                    yield worker.hear()
                    if not worker.busy:
                        yield from self._go_on(worker, waiting)
        finally:
            self.stop()

    def _go_on(self, worker: "_Worker", waiting: deque[Job]) -> Iterator[Update]:
        """Give a free worker the next job; a new process takes the place of one that is spent.

        Jobs that another launch has taken on since are passed over and told of.
        """
        while waiting and waiting[0].state() in (JobState.DONE, JobState.RUNNING):
            yield _taken(waiting.popleft())
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


class _Worker:
    """The launcher's end of a worker process."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, environ))
        with deaf_to_ctrl_c():
            self.process.start()
        theirs.close()
        self.usable = True
        self.busy = False

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
            what, detail = self.connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a word
            self.process.join(PATIENCE)
            return self._failed(_cause_of_death(self.process.exitcode))
        if what == "record":
            return Update(self.job, JobState.RUNNING, steps=detail + 1)
        if what == "failed":
            return self._failed(detail)
        self.busy = False
        return _taken(self.job) if what == "taken" else Update(self.job, JobState.DONE, steps=self.job.config.steps)

    def _failed(self, reason: str) -> Update:
        self.busy = self.usable = False
        return Update(self.job, JobState.FAILED, reason="\n".join([reason, *log_end(self.job.folder / LOG_FILE)]))

    def close(self) -> None:
        """Let the process end, and see that it does."""
        self.connection.close()
        self.process.join(PATIENCE)
        if self.process.is_alive():  # a thread that the job left, say, or a device that does not answer
            self.process.kill()
            self.process.join(PATIENCE)


def _taken(job: Job) -> Update:
    """What is told of a job that another launch trains or has finished."""
    state = job.state()
    return Update(job, state, steps=job.config.steps if state == JobState.DONE else 0)


def worker_environments(workers: int | None, n_jobs: int) -> list[dict[str, str]]:
    """The environment variables of each worker: which GPU it has, or how many threads.

    Args:
        workers: how many workers are asked for; None for one a GPU or, without GPU, one a core.
        n_jobs: more workers than jobs are of no use.
    """
    import torch  # only where jobs are about to run

    gpus = torch.cuda.device_count()
    cores = joblib.cpu_count()  # knows of CPU affinity and of containers' limits
    n = min(workers or gpus or cores, n_jobs)
    environments = [{"OMP_NUM_THREADS": str(max(1, cores // n))} for _ in range(n)]
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        for i, environ in enumerate(environments):
            environ["CUDA_VISIBLE_DEVICES"] = visible[i % gpus]
    return environments


def log_end(log: Path) -> list[str]:
    """Where a job's log is, and its last lines."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [f"(no log at {log})"]
    return [f"{log} ends with:", *(f"  {line}" for line in lines[-LOG_LINES:])]


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (the kernel does so when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {exitcode}"
