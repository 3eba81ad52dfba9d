"""Locks: owners on this machine and on others, with wrong clocks; live and dead owners; races."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from domainbed.engine import checkpoint
from domainbed.engine import lock as lock_module
from domainbed.engine.lock import (
    LockOwner,
    TakenError,
    is_locked,
    lock_owner,
    locked,
    machine_id,
    process_start,
    this_process,
)

HOUR = 3600.0


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is watched for 0.3 s before it is broken."""
    monkeypatch.setattr(lock_module, "TAKEOVER_DELAY", 0.3)


def write_lock(folder: Path, age: float = 0.0, **changes) -> bytes:
    """Write the lock of an owner that differs from this process, `age` seconds ago; return its content."""
    content = json.dumps(asdict(this_process()) | changes).encode().ljust(lock_module.LOCK_SIZE)
    return write_lock_bytes(folder, content, age)


def write_lock_bytes(folder: Path, content: bytes, age: float) -> bytes:
    (folder / "lock").write_bytes(content)
    os.utime(folder / "lock", (time.time() - age,) * 2)
    return content


def can_lock(folder: Path) -> bool:
    """Return whether this process can hold the lock. If it cannot, check that the lock is left in place."""
    before = (folder / "lock").read_bytes()
    try:
        with locked(folder) as lock:
            lock.check()
            assert lock_owner(folder).pid == os.getpid()
            assert is_locked(folder)
    except TakenError:
        assert [path.name for path in folder.iterdir()] == ["lock"]
        assert len((folder / "lock").read_bytes()) == len(before)
        return False
    assert list(folder.iterdir()) == []
    return True


def test_lock_has_one_owner(tmp_path: Path):
    assert not is_locked(tmp_path)
    with locked(tmp_path) as lock:
        assert is_locked(tmp_path)
        assert not can_lock(tmp_path)
        with pytest.raises(TakenError, match=rf"is being trained by another process \(process {os.getpid()} on "):
            locked(tmp_path).__enter__()
        lock.check()
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_copy_of_a_lock_has_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The live owner of the original must not be mistaken for the owner of the copy, and stopped."""
    monkeypatch.setattr(lock_module, "TAKEOVER_DELAY", 1e6)
    for name in ("job", "copy"):
        (tmp_path / name).mkdir()
    with locked(tmp_path / "job") as lock:
        shutil.copy2(tmp_path / "job" / "lock", tmp_path / "copy" / "lock")
        assert is_locked(tmp_path / "job")
        assert not is_locked(tmp_path / "copy")
        assert can_lock(tmp_path / "copy")
        lock.check()
        os.rename(tmp_path / "job", tmp_path / "moved")
        assert is_locked(tmp_path / "moved")
        os.rename(tmp_path / "moved", tmp_path / "job")


def test_lock_is_released_if_the_job_fails(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_dead_local_process_is_broken_at_once(tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "TAKEOVER_DELAY", 1e6)
    write_lock(tmp_path, pid=dead_pid)
    assert not is_locked(tmp_path)
    assert can_lock(tmp_path)
    assert process_start(dead_pid) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="requires the start times of processes")
def test_lock_of_a_local_process_whose_pid_was_reused_is_broken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock_module, "TAKEOVER_DELAY", 1e6)
    write_lock(tmp_path, started="1")
    assert not is_locked(tmp_path)
    assert can_lock(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="requires the states of processes")
def test_lock_of_a_zombie_is_broken(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_start(process.pid)
    write_lock(tmp_path, pid=process.pid, started=started)
    assert is_locked(tmp_path)
    assert not can_lock(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(process.pid) is None
    assert can_lock(tmp_path)
    process.communicate()


def test_live_local_process_keeps_its_lock_without_a_heartbeat(tmp_path: Path, short_delay):
    """As after the machine was suspended."""
    write_lock(tmp_path, age=100 * HOUR)
    assert is_locked(tmp_path)
    assert not can_lock(tmp_path)


def test_times_are_those_that_the_readme_promises():
    """Other tests shorten them."""
    assert lock_module.HEARTBEAT_TIMEOUT == 120
    assert lock_module.TAKEOVER_DELAY == 45
    assert lock_module.HEARTBEAT_INTERVAL < lock_module.TAKEOVER_DELAY / 2  # a live owner's heartbeat is seen
    assert checkpoint.EVALUATION_INTERVAL == 10


ELSEWHERE = {"machine": "another", "host": "elsewhere", "pid": 1, "started": "1"}


def test_remote_owner_with_a_recent_heartbeat_keeps_its_lock(tmp_path: Path, short_delay):
    write_lock(tmp_path, age=lock_module.HEARTBEAT_TIMEOUT - 30, **ELSEWHERE, slurm_job="12_3")
    assert is_locked(tmp_path)
    with pytest.raises(TakenError, match=r"another process \(process 1 on elsewhere, SLURM job 12_3\)"):
        locked(tmp_path).__enter__()
    assert not can_lock(tmp_path)


@pytest.mark.parametrize("age", [HOUR, -HOUR], ids=["an hour old", "an hour ahead"])
def test_remote_owner_without_a_heartbeat_loses_its_lock(
    tmp_path: Path, short_delay, age: float, capsys: pytest.CaptureFixture
):
    write_lock(tmp_path, age, **ELSEWHERE)
    assert not is_locked(tmp_path)
    assert can_lock(tmp_path)
    assert f"{tmp_path}/lock is old; waiting 0 s to see whether its owner (process 1 on elsewhere) is alive" in (
        capsys.readouterr().out
    )


@contextmanager
def remote_heartbeat(folder: Path, age: float, write: Callable[[int], None]) -> Iterator[None]:
    """Repeatedly write to the lock, timestamped by a clock that is `age` seconds slow."""
    stop = threading.Event()

    def write_heartbeats() -> None:
        n = 0
        while not stop.wait(0.02):
            write(n := n + 1)
            os.utime(folder / "lock", (time.time() - age,) * 2)

    thread = threading.Thread(target=write_heartbeats)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("age", [HOUR, -HOUR], ids=["an hour behind", "an hour ahead"])
def test_remote_owner_with_a_wrong_clock_keeps_its_lock(tmp_path: Path, short_delay, age: float):
    write_lock(tmp_path, age, **ELSEWHERE)
    descriptor = os.open(tmp_path / "lock", os.O_RDWR)  # a heartbeat writes in place

    def write(n: int) -> None:
        os.pwrite(descriptor, json.dumps(asdict(this_process()) | ELSEWHERE | {"beat": n}).encode().ljust(1024), 0)

    with remote_heartbeat(tmp_path, age, write):
        for _ in range(3):
            assert not can_lock(tmp_path)
    os.close(descriptor)
    assert lock_owner(tmp_path).host == "elsewhere"
    assert can_lock(tmp_path), "the heartbeat has stopped"


@pytest.mark.parametrize("content", [b"", b'{"host": "elsewhere", "mach', b"[]", b"\0" * 1024, b'{"host": 1}'])
def test_unreadable_lock_is_valid_while_recent(tmp_path: Path, short_delay, content: bytes):
    """It has just been created, or its owner died while creating it."""
    write_lock_bytes(tmp_path, content, 0)
    assert lock_owner(tmp_path) is None
    assert is_locked(tmp_path)
    with pytest.raises(TakenError, match=r"is being trained by another process$"):
        locked(tmp_path).__enter__()
    write_lock_bytes(tmp_path, content, HOUR)
    assert not is_locked(tmp_path)
    assert can_lock(tmp_path)


def test_lock_can_be_released_while_it_is_watched(tmp_path: Path, short_delay, monkeypatch: pytest.MonkeyPatch):
    write_lock(tmp_path, HOUR, **ELSEWHERE)
    sleep = time.sleep

    def release(seconds: float) -> None:
        (tmp_path / "lock").unlink(missing_ok=True)
        sleep(seconds)

    monkeypatch.setattr(lock_module.time, "sleep", release)
    with pytest.raises(TakenError):  # the owner was alive
        locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with locked(tmp_path):
        pass


def test_lock_taken_by_another_process_in_the_meantime_is_put_back(tmp_path: Path, dead_pid: int, monkeypatch):
    """Another process breaks the stale lock and takes the job just before this one moves the lock away."""
    write_lock(tmp_path, pid=dead_pid)
    rename, contents = os.rename, []

    def too_late(source: Path, target: Path) -> None:
        (tmp_path / "lock").unlink()
        contents.append(write_lock(tmp_path, pid=os.getppid(), started=process_start(os.getppid())))
        rename(source, target)

    monkeypatch.setattr(os, "rename", too_late)
    with pytest.raises(TakenError):
        locked(tmp_path).__enter__()
    assert [(tmp_path / "lock").read_bytes()] == contents
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_processes_that_break_the_same_lock_exclude_each_other(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
):
    write_lock(tmp_path, pid=dead_pid)
    rename, is_waiting, stack, locks = os.rename, [], ExitStack(), []

    def hold() -> None:
        with suppress(TakenError):
            locks.append(stack.enter_context(locked(tmp_path)))

    thread = threading.Thread(target=hold)

    def slow_rename(source: Path, target: Path) -> None:
        if not is_waiting:
            thread.start()
            thread.join(0.3)
            is_waiting.append(thread.is_alive())
        rename(source, target)

    monkeypatch.setattr(os, "rename", slow_rename)
    hold()
    thread.join()
    assert is_waiting == [True]
    (lock,) = locks
    lock.check()
    stack.close()


def test_temporary_file_may_be_removed_by_another_process_before_it_is_linked(tmp_path: Path, monkeypatch):
    link, removed = os.link, []

    def too_late(source: Path, target: Path) -> None:
        if not removed:
            removed.append(source)
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", too_late)
    with locked(tmp_path) as lock:
        lock.check()
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert list(tmp_path.iterdir()) == []


STALE = {
    "dead process": lambda folder, pid: write_lock(folder, pid=pid),
    "remote owner": lambda folder, pid: write_lock(folder, HOUR, **ELSEWHERE),
    "no owner": lambda folder, pid: write_lock_bytes(folder, b"", HOUR),
}


@pytest.mark.parametrize("kind", STALE)
@pytest.mark.parametrize("racers", [2, 8])
def test_only_one_thread_breaks_a_stale_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_pid: int, kind: str, racers: int
):
    monkeypatch.setattr(lock_module, "TAKEOVER_DELAY", 0.01)
    with ThreadPoolExecutor(racers) as pool:
        for n in range(25):
            folder = tmp_path / str(n)
            folder.mkdir()
            STALE[kind](folder, dead_pid)
            barrier, stack = threading.Barrier(racers), ExitStack()

            def race(folder=folder, barrier=barrier, stack=stack) -> object:
                barrier.wait()
                try:
                    return stack.enter_context(locked(folder))
                except TakenError:
                    return None

            winners = [lock for lock in pool.map(lambda _, race=race: race(), range(racers)) if lock]
            assert len(winners) == 1
            winners[0].check()
            assert [path.name for path in folder.iterdir()] == ["lock"]
            stack.close()
            assert list(folder.iterdir()) == []


RACE = """
import multiprocessing, sys
from pathlib import Path
from domainbed.engine import lock

lock.TAKEOVER_DELAY = 0.01

def race(folder, barrier, winners, all_tried):
    barrier.wait()
    try:
        with lock.locked(folder) as own:
            own.check()
            with winners:
                winners.value += 1
            all_tried.wait()
            own.check()
    except lock.TakenError:
        all_tried.wait()

fork = multiprocessing.get_context("fork")
for folder in sorted(Path(sys.argv[1]).iterdir()):
    barrier, all_tried, winners = fork.Barrier(8), fork.Barrier(8), fork.Value("i", 0)
    racers = [fork.Process(target=race, args=(folder, barrier, winners, all_tried)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert all(racer.exitcode == 0 for racer in racers)
    assert winners.value == 1, f"{winners.value} processes locked {folder}"
    assert list(folder.iterdir()) == []
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires fork")
def test_only_one_process_breaks_a_stale_lock(tmp_path: Path, dead_pid: int):
    for n in range(40):
        (tmp_path / f"{n:02}").mkdir()
        STALE[list(STALE)[n % 3]](tmp_path / f"{n:02}", dead_pid)
    process = subprocess.run([sys.executable, "-c", RACE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr


def test_owner_presumed_dead_notices_the_takeover_and_keeps_the_new_lock(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: None)
    with locked(tmp_path) as lock:
        (tmp_path / "lock").unlink()
        content = write_lock(tmp_path, **ELSEWHERE)
        with pytest.raises(TakenError, match="was deleted, or taken over by another process while"):
            lock.check()
        lock.start_from(7)  # the heartbeat goes to the removed file
    assert (tmp_path / "lock").read_bytes() == content


def test_owner_whose_lock_is_put_back_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with locked(tmp_path) as lock:
        (tmp_path / "lock").rename(tmp_path / "moved")
        monkeypatch.setattr(lock_module.time, "sleep", lambda s: (tmp_path / "moved").rename(tmp_path / "lock"))
        lock.check()
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_killed_process_are_removed_with_the_lock(tmp_path: Path):
    with locked(tmp_path):
        (tmp_path / "lock.0123456789abcdef").write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_lock_on_a_full_disk_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="No space left on device"):
            locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_lock_names_its_owner_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Otherwise, an owner that is killed at once would exclude others until the file is old."""
    link, owners = os.link, []

    def record_owner(source: Path, target: Path) -> None:
        assert not (tmp_path / "lock").exists()
        link(source, target)
        owners.append(lock_owner(tmp_path).pid)

    monkeypatch.setattr(os, "link", record_owner)
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert owners == [os.getpid()]


def test_lock_works_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with locked(tmp_path) as lock:
        lock.check()
        assert lock_owner(tmp_path).pid == os.getpid()
        assert not can_lock(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_heartbeat_reports_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_INTERVAL", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "34")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")

    def wait_for(step: int) -> LockOwner:
        deadline = time.monotonic() + 60
        while not ((owner := lock_owner(tmp_path)) and owner.step == step):
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.005)
        return owner

    with locked(tmp_path) as lock:
        lock.start_from(7)
        first = wait_for(7)
        assert (first.first_step, first.pid, first.machine) == (7, os.getpid(), machine_id())
        assert first.slurm_job == "12_3"
        lock.step = 10**12
        second = wait_for(10**12)
        assert second.first_step == 7
        assert second.beat > first.beat
        assert second.seconds >= first.seconds
        lock.step = 9
        wait_for(9)  # shorter than before
        assert (tmp_path / "lock").stat().st_size == lock_module.LOCK_SIZE
    assert lock_owner(tmp_path) is None


def test_heartbeat_survives_a_temporarily_unavailable_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_INTERVAL", 0.01)
    failed, pwrite = threading.Event(), os.pwrite

    def fail_write(*args) -> None:
        failed.set()
        raise OSError(5, "Input/output error")

    with locked(tmp_path) as lock:
        monkeypatch.setattr(os, "pwrite", fail_write)
        assert failed.wait(60)
        monkeypatch.setattr(os, "pwrite", pwrite)
        beat = lock_owner(tmp_path).beat
        deadline = time.monotonic() + 60
        while lock_owner(tmp_path).beat == beat:
            assert time.monotonic() < deadline, "the heartbeat has stopped"
            time.sleep(0.005)
        lock.check()


def test_unavailable_file_system_is_not_a_takeover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    errors = [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        PermissionError(errno.EACCES, "an expired ticket"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
    ]
    open_regular = lock_module.open_regular

    def fail_first(path):
        if errors:
            raise errors.pop()
        return open_regular(path)

    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: None)
    with locked(tmp_path) as lock:
        monkeypatch.setattr(lock_module, "open_regular", fail_first)
        lock.check()
        assert errors == []
        errors += [OSError(errno.EIO, "Input/output error")] * 10**5
        monkeypatch.setattr(lock_module, "HEARTBEAT_TIMEOUT", 0.01)
        with pytest.raises(OSError, match="Input/output error"):
            lock.check()
        errors.clear()
    assert list(tmp_path.iterdir()) == []


def test_age_of_a_lock_is_measured_by_the_file_systems_clock(tmp_path: Path):
    write_lock(tmp_path, HOUR, **ELSEWHERE)
    assert not is_locked(tmp_path)
    assert is_locked(tmp_path, time.time() - HOUR)
    assert is_locked(tmp_path, time.time() - HOUR + lock_module.HEARTBEAT_TIMEOUT - 30)
    assert not is_locked(tmp_path, time.time() - HOUR + lock_module.HEARTBEAT_TIMEOUT + 30)
    assert abs(lock_module.file_system_time(tmp_path) - time.time()) < 60
    assert abs(lock_module.file_system_time(tmp_path / "missing") - time.time()) < 60


def test_hidden_local_process_is_judged_by_its_heartbeat(
    tmp_path: Path, short_delay: None, monkeypatch: pytest.MonkeyPatch
):
    """If /proc is mounted with hidepid, other users' processes are hidden."""
    write_lock(tmp_path, pid=1, started="1")  # process 1 exists, but started at another time
    assert not is_locked(tmp_path)
    monkeypatch.setattr(lock_module, "_proc_stat", lambda pid: [])
    assert is_locked(tmp_path)
    with pytest.raises(TakenError), locked(tmp_path):
        pass
    write_lock(tmp_path, age=HOUR, pid=1, started="1")
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_lost_reply_of_a_file_server_is_not_mistaken_for_another_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def link_and_fail(source, target):
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link_and_fail)
    with locked(tmp_path) as lock:
        lock.check()
        assert lock_owner(tmp_path).pid == os.getpid()
    assert list(tmp_path.iterdir()) == []
