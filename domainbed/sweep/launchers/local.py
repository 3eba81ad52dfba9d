"""Launchers that train jobs in worker processes on this machine."""

import contextlib
import multiprocessing
import os
import signal
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

from domainbed.errors import UsageError, printable
from domainbed.files import read_end
from domainbed.options import check_options, option
from domainbed.sweep.failures import Failure, record_failure
from domainbed.sweep.job import LOG_FILE, Job, Kind
from domainbed.sweep.launchers.base import Capacity, Launcher, skip_event
from domainbed.sweep.processes import describe_exit, start_process
from domainbed.sweep.run import JobEvent, done_event, pruned_event
from domainbed.sweep.status import JobState, Status, blocked_reason, read_status
from domainbed.sweep.torch_process import count_gpus
from domainbed.sweep.worker import serve

LOG_LINES = 8  # of a failed job's log that are printed
LOG_SIZE = 16 * 1024  # bytes at its end that are read for them
EXIT_TIMEOUT = 5  # seconds for a process to exit by itself

# A job whose process is killed by one of these did not fail, and can be resumed.
EXTERNAL_SIGNALS = {
    getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
}


@dataclass(frozen=True)
class LocalOptions:
    """The options of the launchers local and multi_gpu."""

    workers: int | None = option(
        None,
        help="number of jobs to run at once",
        metavar="N",
        if_unset="one per GPU or, without a GPU, one per CPU core",
        at_least=1,
    )
    threads: int | None = option(
        None,
        help="number of CPU threads per job",
        metavar="N",
        if_unset="the CPU cores divided by the number of workers",
        at_least=1,
    )

    def __post_init__(self) -> None:
        check_options(self)


class LocalLauncher(Launcher):
    """Trains jobs in worker processes on this machine, which share its GPUs or CPU cores."""

    Options = LocalOptions

    def __init__(self, options: LocalOptions) -> None:
        super().__init__(options)
        self._workers: list[_Worker] = []

    def capacity(self, n_jobs: int) -> Capacity:
        environments = worker_environments(self.options, n_jobs)
        n_gpus = len({environ["CUDA_VISIBLE_DEVICES"] for environ in environments if "CUDA_VISIBLE_DEVICES" in environ})
        n = len(environments)
        return Capacity(n, int(environments[0]["OMP_NUM_THREADS"]), n_gpus / n)

    def launch(
        self, jobs: Sequence[Job], statuses: Mapping[Job, Status], should_stop: Callable[[], bool]
    ) -> Iterator[JobEvent]:
        self._waiting = deque(jobs)
        self._statuses: dict[Kind, dict[Job, Status]] = defaultdict(dict)  # kept current, to know which are blocked
        for job, status in statuses.items():
            self._statuses[job.kind][job] = status
        is_stopping = False
        try:
            self._workers = [_Worker(environ) for environ in worker_environments(self.options, len(jobs))]
            for worker in list(self._workers):
                yield from self._start_next(worker)
            while self._workers:
                wait([w.connection for w in self._workers], timeout=1)
                if should_stop() and not is_stopping:
                    is_stopping = True
                    self._waiting.clear()
                    for worker in self._workers:
                        worker.stop()
                for worker in [w for w in self._workers if w.has_event()]:
                    event = worker.receive()
                    failure = Failure(event.reason) if event.state == JobState.FAILED else None
                    self._statuses[event.job.kind][event.job] = Status(event.state, failure=failure)
                    yield _with_log(event) if event.state in (JobState.FAILED, JobState.INCOMPLETE) else event
                    if not worker.is_busy:
                        yield from self._start_next(worker)
        finally:
            self.stop()

    def _start_next(self, worker: "_Worker") -> Iterator[JobEvent]:
        """Submit the next job to an idle worker, or to a new one if it is not usable. Yield events of skipped jobs."""
        job = None
        while self._waiting and job is None:
            job = self._waiting.popleft()
            status = read_status(job.folder)  # another launch may have started it
            same_kind = self._statuses[job.kind]
            same_kind[job] = status
            if event := skip_event(job, status.state, blocked_reason(same_kind.values())):
                yield event
                job = None
        if job is None or not worker.is_usable:
            worker.close()
            self._workers.remove(worker)
        if job is not None and not worker.is_usable:
            worker = _Worker(worker.environ)
            self._workers.append(worker)
        if job is not None:
            worker.submit(job)
            yield JobEvent(job, JobState.RUNNING)

    def stop(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.close()
        self._workers = []


class MultiGpuLauncher(LocalLauncher):
    """Like LocalLauncher, but refuses to run without a GPU."""

    def check(self) -> None:
        if not count_gpus():
            raise UsageError("the multi_gpu launcher found no GPU; use --command_launcher local to train on the CPU")


class _Worker:
    """The launcher's side of a worker process.

    Attributes:
        is_busy: whether it is training a job.
        is_usable: whether it can train another job; otherwise its process exits.
    """

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.is_busy = False
        self.is_usable = True
        self._is_stopping = False
        context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
        self.connection: Connection
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=serve, args=(other_end, environ))
        start_process(self.process)
        other_end.close()

    def submit(self, job: Job) -> None:
        self._job = job
        self.is_busy = True
        with contextlib.suppress(OSError):  # the process has died, which `receive` reports
            self.connection.send(job)

    def stop(self) -> None:
        """Make its job save its state and stop."""
        self._is_stopping = True
        self.process.terminate()

    def has_event(self) -> bool:
        """Return whether there is an event to receive; the death of the process is one.

        A child of a dead process may keep the connection open, so end-of-file is no sufficient sign of its death.
        """
        return self.connection.poll() or not self.process.is_alive()

    def receive(self) -> JobEvent:
        """Return the next event of its job."""
        try:
            if not self.connection.poll():
                raise EOFError
            event: JobEvent = self.connection.recv()
        except (EOFError, OSError):  # OSError: it died while sending
            self.process.join(EXIT_TIMEOUT)
            self.is_busy = self.is_usable = False
            return self._death(self.process.exitcode)
        self.is_busy = event.is_progress
        self.is_usable = event.state not in (JobState.FAILED, JobState.INCOMPLETE)
        return event

    def _death(self, exitcode: int | None) -> JobEvent:
        """Return the event of a job whose process died, and record a failure if the job is to blame."""
        was_asked = exitcode == 0 or (self._is_stopping and exitcode == -signal.SIGTERM)  # before the job started
        state = read_status(self._job.folder).state
        if state == JobState.PRUNED:
            return pruned_event(self._job)
        if state == JobState.DONE:
            return done_event(self._job)
        if was_asked:
            return JobEvent(self._job, state)
        reason = describe_exit(exitcode)
        if exitcode is not None and -exitcode in EXTERNAL_SIGNALS:
            return JobEvent(self._job, JobState.INCOMPLETE, reason=reason)
        record_failure(self._job.folder, reason)
        return JobEvent(self._job, JobState.FAILED, reason=reason)

    def close(self) -> None:
        """Make the process exit, and kill it if it does not."""
        self.connection.close()
        self.process.join(EXIT_TIMEOUT)
        if self.process.is_alive():  # because of a thread that a job left behind, or a device that does not respond
            self.process.kill()
            self.process.join(EXIT_TIMEOUT)


def worker_environments(options: LocalOptions, n_jobs: int) -> list[dict[str, str]]:
    """Return the environment variables of each worker: its number of threads and its GPU.

    Args:
        options: the launcher's options.
        n_jobs: number of jobs, and the maximum number of workers.
    """
    import joblib

    gpus = count_gpus()
    cores = joblib.cpu_count()  # respects CPU affinity and the limits of containers
    n = min(options.workers or gpus or cores, n_jobs)
    environments = [{"OMP_NUM_THREADS": str(options.threads or max(1, cores // n))} for _ in range(n)]
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        for i, environ in enumerate(environments):
            environ["CUDA_VISIBLE_DEVICES"] = visible[i % gpus]
    return environments


def _with_log(event: JobEvent) -> JobEvent:
    """Return an event with the end of the job's log added to its reason, if it has a reason."""
    if not event.reason:
        return event
    log = event.job.folder / LOG_FILE
    try:
        lines = read_end(log, LOG_SIZE).decode(errors="replace").splitlines()
    except OSError as error:
        return replace(event, reason=f"{event.reason}\n({log}: {error.strerror})")
    end = [f"  {printable(line)}" for line in lines[-LOG_LINES:]]
    return replace(event, reason="\n".join([event.reason, f"end of {log}:", *end]))
