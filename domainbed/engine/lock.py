"""One process a job, on whatever machines share the folder: a file that tells who trains it, and a heartbeat.

Of a process on this machine the system tells whether it lives. Of one elsewhere only its heartbeat tells, and clocks of
machines differ, so a lock is taken from its holder only after this process has itself watched it stand still.
"""

import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from domainbed.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock"
HEARTBEAT = 15.0  # seconds between two beats
EXPIRY = 120.0  # seconds without a beat after which a holder on another machine looks dead
WATCH = 3 * HEARTBEAT  # seconds that it is then watched before its lock is taken
WIDTH = 1024  # bytes: a beat overwrites the one before in place, which needs no room on a full disk


class TakenError(UsageError):
    """Another process trains this job, or has finished it."""


@dataclass(frozen=True)
class LockOwner:
    """Who trains a job, and how far it is.

    Attributes:
        host: its name.
        machine: what tells one machine's (or container's) process numbers from another's.
        pid, started: the process, and when it started in the machine's own count, for numbers are used again.
        parent: the launcher that started it, or 0 where nobody but a shell did.
        slurm_job: SLURM's number of the job ("12" or "12_3", of an array's task), or "".
        beat: how many heartbeats there were.
        step: how many updates are done.
        first_step: how many were done when this process took the job on.
        seconds: how long ago that was.
        inode: the number of the lock's file. Where the file has another, it is a copy, in which nobody trains.
    """

    host: str
    machine: str
    pid: int
    started: str
    parent: int
    slurm_job: str
    beat: int = 0
    step: int = 0
    first_step: int = 0
    seconds: float = 0.0
    inode: int = 0

    def rate(self) -> float:
        """Updates a second since it took the job on, evaluations and loading included."""
        return (self.step - self.first_step) / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f", SLURM job {self.slurm_job}" if self.slurm_job else "")


def this_process() -> LockOwner:
    environ = os.environ
    job = environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    pid, launcher = os.getpid(), multiprocessing.parent_process()
    parent = (launcher.pid or 0) if launcher else 0
    return LockOwner(socket.gethostname(), this_machine(), pid, start_of(pid) or "", parent, job)


def this_machine() -> str:
    """The running system, and within it the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{uuid.getnode()}"


def start_of(pid: int) -> str | None:
    """When a process of this machine started ("" where the system does not tell), or None if there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's
    if not (fields := _proc_stat(pid)):
        return ""
    return None if fields[0] == "Z" else fields[19]  # a zombie is dead


def parent_of(pid: int) -> int | None:
    """The process that has started a process of this machine; None where the system does not tell."""
    fields = _proc_stat(pid)
    return int(fields[1]) if fields else None


def _proc_stat(pid: int) -> list[str]:
    """What proc(5) tells of a process, from its third field (the state) on; nothing where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Lock:
    """A job's lock, held by this process.

    Attributes:
        step: set by the training loop; told with each heartbeat.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.step = 0
        self._path = folder / LOCK_FILE
        self._descriptor = descriptor
        self._holder = this_process()
        self._began = time.monotonic()
        self._first_step = 0
        self._beats = 0
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._write()

    def start(self) -> None:
        """The lock has its place: beat."""
        self._heart.start()

    def begin(self, step: int) -> None:
        """Say that training goes on from here."""
        self.step = self._first_step = step
        self._write()

    def check(self) -> None:
        """See that this process still holds the lock. It may have been thought dead (its machine was suspended, say).

        Raises:
            TakenError: it does not. Nothing must be written to the folder any more.
        """
        if not self._is_mine():
            time.sleep(1)  # one that took it by mistake puts it back
            if not self._is_mine():
                raise TakenError(f"{self._path.parent} was taken over by another process while this one stood still")

    def release(self) -> None:
        self._released.set()
        self._heart.join()
        if self._is_mine():
            # What takers put away, too: one that was killed has left it.
            for path in [self._path, *self._path.parent.glob(f"{LOCK_FILE}.*")]:
                with suppress(OSError):
                    path.unlink()
        os.close(self._descriptor)

    def _is_mine(self) -> bool:
        return _is_at(self._path, self._descriptor)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with suppress(OSError):  # a file system that is away for a while; if for long, `check` will tell
                self._write()

    def _write(self) -> None:
        self._beats += 1
        told = asdict(self._holder) | {
            "beat": self._beats,
            "step": self.step,
            "first_step": self._first_step,
            "seconds": round(time.monotonic() - self._began, 3),
            "inode": os.fstat(self._descriptor).st_ino,
        }
        os.pwrite(self._descriptor, json.dumps(told).encode().ljust(WIDTH), 0)
        os.fsync(self._descriptor)


def _made(path: Path) -> Lock:
    """A new lock. It names this process from its first moment on, so that one that is killed then keeps nobody out.

    Raises:
        FileExistsError: there is one.
    """
    if path.exists():
        raise FileExistsError
    aside = path.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")
    descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        lock = Lock(path.parent, descriptor)
        try:
            os.link(aside, path)
        except FileExistsError:
            if not _is_at(path, descriptor):  # else only a server's answer was lost
                raise
        except FileNotFoundError:  # another came and went meanwhile, and tidied up
            raise FileExistsError from None
        except OSError:  # a file system without links
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
            os.replace(aside, path)
        lock.start()
        return lock
    except BaseException:  # a full disk, say
        os.close(descriptor)
        raise
    finally:
        aside.unlink(missing_ok=True)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that stands at `path`."""
    try:
        with open(path, "rb") as file:  # opened anew: a network file system then asks its server
            return os.path.samestat(os.fstat(file.fileno()), os.fstat(descriptor))
    except OSError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold a job's folder.

    Raises:
        TakenError: another process holds it.
    """
    path = folder / LOCK_FILE
    while True:
        try:
            lock = _made(path)
            break
        except FileExistsError:
            break_stale_lock(path)
    try:
        yield lock
    finally:
        lock.release()


def lock_owner(folder: Path) -> LockOwner | None:
    """Who the folder's lock names; None if there is no lock, or nothing to be read in it."""
    try:
        told = json.loads((folder / LOCK_FILE).read_bytes())
        return LockOwner(**{f.name: told[f.name] for f in fields(LockOwner)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_locked(folder: Path) -> bool:
    """Whether a process seems to train there. One on another machine whose heartbeat is old is taken for dead."""
    return seems_alive(folder, None)


def lives_here(owner: LockOwner) -> bool | None:
    """Whether it is a live process of this machine; None where that can't be known (it is elsewhere, or hidden)."""
    if owner.machine != this_machine():
        return None
    start = start_of(owner.pid)
    if start is None:
        return False
    return start == owner.started if start and owner.started else None


def seems_alive(folder: Path, now: float | None) -> bool:
    """As `is_locked`; `now` is the time by the clock of the folder's file system (None: look)."""
    try:
        lock = (folder / LOCK_FILE).stat()
    except OSError:
        return False
    owner = lock_owner(folder)
    if owner and (lives := lives_here(owner)) is not None:
        return lives and owner.inode in (0, lock.st_ino)
    return abs((file_system_time(folder) if now is None else now) - lock.st_mtime) <= EXPIRY


def file_system_time(folder: Path) -> float:
    """The time by the clock that dates the folder's files, which on a network may not be this machine's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"now")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def break_stale_lock(path: Path) -> None:
    """Put a dead process's lock away. Raises TakenError if its holder lives."""
    owner = lock_owner(path.parent)
    before = _look(path)
    if before is None:
        return  # released just now
    taken = TakenError(f"{path.parent} is being trained by another process" + (f" ({owner})" if owner else ""))
    if seems_alive(path.parent, None):
        raise taken
    if not owner or lives_here(owner) is None:
        tqdm.write(f"{path} is old: watching for {WATCH:.0f} s whether its owner ({owner}) is alive")
        deadline = time.monotonic() + WATCH
        while time.monotonic() < deadline:
            time.sleep(min(1.0, WATCH / 10))
            if _look(path) != before:
                raise taken
    with _one_at_a_time(path):
        if (now := _look(path)) != before:
            if now is None:
                return
            raise taken
        mine = path.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            os.rename(path, mine)  # where takers can't exclude one another, one succeeds
            if _look(mine) != before:  # ... but another had it put away and took the job on, just now
                with suppress(FileExistsError):
                    os.link(mine, path)
                mine.unlink()
                raise taken
            mine.unlink()


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Exclude others that take the same lock, where the file system can."""
    with ExitStack() as stack:
        if fcntl:
            with suppress(OSError):
                file = stack.enter_context(open(path, "r+b"))  # NFS wants it open for writing
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _look(path: Path) -> tuple[int, int, bytes] | None:
    """What changes with a heartbeat or a new holder (who may come by the number of the file that was put away)."""
    try:
        with open(path, "rb") as file:  # opened anew: a network file system then asks its server
            status = os.fstat(file.fileno())
            return status.st_ino, status.st_mtime_ns, file.read()
    except FileNotFoundError:
        return None
