"""A lock per job, valid across machines that share its folder: a file with the owner's name and a heartbeat.

The system knows whether an owner on this machine is alive. An owner on another machine is judged by its heartbeat.
Because clocks differ between machines, its lock is broken only after this process has watched the heartbeat stop.
"""

import json
import math
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
from typing import Any

from tqdm import tqdm

from domainbed.errors import UsageError, printable
from domainbed.files import ABSENT, open_regular, read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock"
HEARTBEAT_INTERVAL = 15.0  # seconds
HEARTBEAT_TIMEOUT = 120.0  # seconds without a heartbeat after which an owner on another machine is presumed dead
TAKEOVER_DELAY = 3 * HEARTBEAT_INTERVAL  # seconds to watch for a heartbeat before breaking the lock of such an owner
LOCK_SIZE = 1024  # bytes; a heartbeat overwrites the previous one, which works on a full disk, too


class TakenError(UsageError):
    """Another process is training this job, or has finished it."""


@dataclass(frozen=True)
class LockOwner:
    """The process that trains a job, and its progress.

    Attributes:
        host: the host's name.
        machine: see `machine_id`; process numbers are unique within a machine.
        pid, started: the process and its start time (see `process_start`), because process numbers are reused.
        parent: the process number of its launcher, or 0 if it was not started by one.
        slurm_job: the SLURM job ("12", or "12_3" for a task of an array), or "".
        beat: the number of heartbeats.
        step: the number of updates done.
        first_step: the number of updates done when the process started or resumed the job.
        seconds: the time since then.
        inode: the lock file's inode number. If the file has another one, it is a copy that nothing owns.
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
        """Return the number of updates per second by this process, including loading and evaluations."""
        rate = (self.step - self.first_step) / self.seconds if self.seconds > 0 else 0.0
        return rate if 0 < rate < math.inf else 0.0

    def is_alive(self) -> bool | None:
        """Return whether the process is alive, or None if it is on another machine or hidden by the system."""
        if self.machine != machine_id():
            return None
        start = process_start(self.pid)
        if start is None:
            return False
        return start == self.started if start and self.started else None

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return printable(f"process {self.pid} on {self.host}{job}")


def this_process() -> LockOwner:
    """Return this process as an owner."""
    environ = os.environ
    job = environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    pid, launcher = os.getpid(), multiprocessing.parent_process()
    parent = (launcher.pid or 0) if launcher else 0
    return LockOwner(socket.gethostname(), machine_id(), pid, process_start(pid) or "", parent, job)


def machine_id() -> str:
    """Return an identifier of the running system and, within it, of the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{uuid.getnode()}"


def process_start(pid: int) -> str | None:
    """Return the start time of a process on this machine, "" if the system hides it, or None if it is not alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's
    if not (stat := _proc_stat(pid)):
        return ""
    return None if stat[0] == "Z" else stat[19]  # a zombie is dead


def parent_pid(pid: int) -> int | None:
    """Return the process number of a process's parent on this machine, or None if unknown."""
    stat = _proc_stat(pid)
    return int(stat[1]) if stat else None


def _proc_stat(pid: int) -> list[str]:
    """Return the fields of /proc/{pid}/stat (see proc(5)) from the third (state) on, or [] if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Lock:
    """The lock of a job's folder, held by this process.

    Attributes:
        step: the number of updates done; set by the training loop, and written with each heartbeat.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.step = 0
        self._path = folder / LOCK_FILE
        self._descriptor = descriptor
        self._owner = this_process()
        self._created_at = time.monotonic()
        self._first_step = 0
        self._beats = 0
        self._is_released = threading.Event()
        self._thread = threading.Thread(target=self._run_heartbeat, daemon=True)
        self._write()

    def start_heartbeat(self) -> None:
        """Start the heartbeat, once the file is in place."""
        self._thread.start()

    def start_from(self, step: int) -> None:
        """Note that training starts or resumes at this step."""
        self.step = self._first_step = step
        if step:  # otherwise the file says so already
            self._write()

    def check(self) -> None:
        """Check that this process still holds the lock. It loses it if it is presumed dead, as when suspended.

        Raises:
            TakenError: it does not. Nothing may be written to the folder any more.
            OSError: the file system has not been available for so long that others may presume this process dead.
        """
        if not self._is_in_place():
            time.sleep(1)  # a process that took it by mistake puts it back
            if not self._is_in_place():
                raise TakenError(
                    f"{self._path.parent} was deleted, or taken over by another process while this one was suspended"
                )

    def release(self) -> None:
        """Stop the heartbeat and remove the lock, unless another process has taken it over."""
        self._is_released.set()
        self._thread.join()
        is_in_place = False
        with suppress(OSError):
            is_in_place = self._is_in_place()
        if is_in_place:
            # Also remove what a killed process moved away while breaking a lock.
            for path in [self._path, *self._path.parent.glob(f"{LOCK_FILE}.*")]:
                with suppress(OSError):
                    path.unlink()
        os.close(self._descriptor)

    def _is_in_place(self) -> bool:
        """Return whether the file is this process's. Wait while the file system is not available (OSError)."""
        deadline = time.monotonic() + HEARTBEAT_TIMEOUT
        while True:
            try:
                return _is_same_file(self._path, self._descriptor)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def _run_heartbeat(self) -> None:
        while not self._is_released.wait(HEARTBEAT_INTERVAL):
            with suppress(OSError):  # the file system is unavailable; if for too long, `check` raises
                self._write()

    def _write(self) -> None:
        self._beats += 1
        content = asdict(self._owner) | {
            "beat": self._beats,
            "step": self.step,
            "first_step": self._first_step,
            "seconds": round(time.monotonic() - self._created_at, 3),
            "inode": os.fstat(self._descriptor).st_ino,
        }
        os.pwrite(self._descriptor, json.dumps(content).encode().ljust(LOCK_SIZE), 0)
        os.fsync(self._descriptor)


def _create_lock(path: Path) -> Lock:
    """Create a lock that names its owner from the start, so that one whose owner is killed at once can be broken.

    Raises:
        FileExistsError: there is a lock.
    """
    if path.exists():
        raise FileExistsError
    temporary = _temporary_path(path)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        lock = Lock(path.parent, descriptor)
        try:
            os.link(temporary, path)
        except FileExistsError:
            if not _is_same_file(path, descriptor):  # otherwise a file server's reply was lost
                raise
        except FileNotFoundError:  # another process released its lock in the meantime, and removed the temporary file
            raise FileExistsError from None
        except OSError:  # the file system does not support links
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
            os.replace(temporary, path)
        lock.start_heartbeat()
        return lock
    except BaseException:  # including a full disk
        os.close(descriptor)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")


def _is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether a path leads to an open file. Raises OSError if the file system does not say so."""
    own = os.fstat(descriptor)
    try:
        with open_regular(path) as file:  # opening it makes a network file system query its server
            return os.path.samestat(os.fstat(file.fileno()), own)
    except PermissionError:  # perhaps the file of another user
        if not os.path.samestat(os.stat(path), own):
            return False
        raise
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold the lock of a job's folder.

    Raises:
        TakenError: another process holds it.
    """
    path = folder / LOCK_FILE
    while True:
        try:
            lock = _create_lock(path)
            break
        except FileExistsError:
            break_stale_lock(path)
    try:
        yield lock
    finally:
        lock.release()


def lock_owner(folder: Path) -> LockOwner | None:
    """Return the owner that the folder's lock names, or None if there is no lock or it is not readable."""
    try:
        content = read_json(folder / LOCK_FILE)
        owner = LockOwner(**{f.name: content[f.name] for f in fields(LockOwner)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    types: dict[str, Any] = {f.name: (int, float) if f.type is float else f.type for f in fields(LockOwner)}
    are_valid = all(
        isinstance(value, types[name]) and (isinstance(value, str) or abs(value) < 2**63)  # not NaN either
        for name, value in vars(owner).items()
    )
    return owner if are_valid else None


def is_locked(folder: Path, now: float | None = None) -> bool:
    """Return whether the folder's lock has an owner that is alive or, if unknown, had a recent heartbeat.

    Args:
        folder: a job's folder.
        now: the current `file_system_time`, which is read if not given.
    """
    try:
        status = (folder / LOCK_FILE).stat()
    except OSError:
        return False
    owner = lock_owner(folder)
    if owner and (is_alive := owner.is_alive()) is not None:
        return is_alive and owner.inode in (0, status.st_ino)
    return abs((file_system_time(folder) if now is None else now) - status.st_mtime) <= HEARTBEAT_TIMEOUT


def file_system_time(folder: Path) -> float:
    """Return the current time by the clock that timestamps the folder's files, which may be a file server's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"now")
            file.flush()
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def break_stale_lock(path: Path) -> None:
    """Remove the lock of a dead owner.

    Raises:
        TakenError: the owner is alive, or another process has broken the lock.
    """
    owner = lock_owner(path.parent)
    before = _read_state(path)
    if before is None:
        return  # released in the meantime
    taken = TakenError(f"{path.parent} is being trained by another process" + (f" ({owner})" if owner else ""))
    if is_locked(path.parent):
        raise taken
    if not owner or owner.is_alive() is None:
        tqdm.write(f"{path} is old; waiting {TAKEOVER_DELAY:.0f} s to see whether its owner ({owner}) is alive")
        deadline = time.monotonic() + TAKEOVER_DELAY
        while time.monotonic() < deadline:
            time.sleep(min(1.0, TAKEOVER_DELAY / 10))
            if _read_state(path) != before:
                raise taken
    with _exclusive(path):
        if (now := _read_state(path)) != before:
            if now is None:
                return
            raise taken
        removed = _temporary_path(path)
        with suppress(FileNotFoundError):
            os.rename(path, removed)  # succeeds for one process only, also if the file system cannot lock files
            if _read_state(removed) != before:  # another process broke the lock and took the job just before
                with suppress(FileExistsError):
                    os.link(removed, path)
                removed.unlink()
                raise taken
            removed.unlink()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Exclude other processes that break the same lock, if the file system supports it."""
    with ExitStack() as stack:
        if fcntl:
            with suppress(OSError):
                file = stack.enter_context(open(path, "r+b"))  # NFS requires write access
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_state(path: Path) -> tuple[int, int, bytes] | None:
    """Return a state that changes with each heartbeat and each owner (an inode number alone may be reused)."""
    try:
        with open_regular(path) as file:  # opening it makes a network file system query its server
            status = os.fstat(file.fileno())
            return status.st_ino, status.st_mtime_ns, file.read(LOCK_SIZE)
    except FileNotFoundError:
        if path.is_symlink():  # whose target does not exist; no lock can be created in its place
            raise
        return None
