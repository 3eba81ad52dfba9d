"""Who holds a job: on this machine and on others, whose clocks are wrong, and how the dead are told from the living."""

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

from domainbed.engine import lock as lock_module
from domainbed.engine.lock import (
    TakenError,
    is_locked,
    lock_owner,
    locked,
    seems_alive,
    start_of,
    this_machine,
    this_process,
)

HOUR = 3600.0


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is watched for a third of a second."""
    monkeypatch.setattr(lock_module, "WATCH", 0.3)


def leave(folder: Path, age: float = 0.0, **changes) -> bytes:
    """Leave a lock with changes against one of this process, written `age` seconds ago; returns what is in it."""
    told = json.dumps(asdict(this_process()) | changes).encode().ljust(lock_module.WIDTH)
    return leave_bytes(folder, told, age)


def leave_bytes(folder: Path, told: bytes, age: float) -> bytes:
    (folder / "lock").write_bytes(told)
    os.utime(folder / "lock", (time.time() - age,) * 2)
    return told


def is_taken_by_us(folder: Path) -> bool:
    """Try to hold the folder; where that fails, whatever is there must be left."""
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


def test_one_holder(tmp_path: Path):
    assert not is_locked(tmp_path)
    with locked(tmp_path) as lock:
        assert is_locked(tmp_path)
        assert not is_taken_by_us(tmp_path)
        with pytest.raises(TakenError, match=rf"is being trained by another process \(process {os.getpid()} on "):
            locked(tmp_path).__enter__()
        lock.check()
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nobody_holds_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a folder in which a live process trains: that one must not be taken for its holder, and stopped."""
    monkeypatch.setattr(lock_module, "WATCH", 1e6)
    for name in ("job", "copy"):
        (tmp_path / name).mkdir()
    with locked(tmp_path / "job") as lock:
        shutil.copy2(tmp_path / "job" / "lock", tmp_path / "copy" / "lock")
        assert is_locked(tmp_path / "job")
        assert not is_locked(tmp_path / "copy")
        assert is_taken_by_us(tmp_path / "copy")
        lock.check()
        os.rename(tmp_path / "job", tmp_path / "moved")
        assert is_locked(tmp_path / "moved")
        os.rename(tmp_path / "moved", tmp_path / "job")


def test_it_is_released_when_the_job_fails(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_machine_loses_it_at_once(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "WATCH", 1e6)
    leave(tmp_path, pid=dead)
    assert not is_locked(tmp_path)
    assert is_taken_by_us(tmp_path)
    assert start_of(dead) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process started")
def test_so_does_one_whose_number_another_process_has_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "WATCH", 1e6)
    leave(tmp_path, started="1")
    assert not is_locked(tmp_path)
    assert is_taken_by_us(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells what a zombie is")
def test_and_one_that_is_dead_but_not_waited_for(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = start_of(process.pid)
    leave(tmp_path, pid=process.pid, started=started)
    assert is_locked(tmp_path)
    assert not is_taken_by_us(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_of(process.pid) is None
    assert is_taken_by_us(tmp_path)
    process.communicate()


def test_a_living_process_of_this_machine_may_stand_still_as_long_as_it_likes(tmp_path: Path, watched):
    """Its heartbeat may be that of a suspended machine."""
    leave(tmp_path, age=100 * HOUR)
    assert is_locked(tmp_path)
    assert not is_taken_by_us(tmp_path)


ELSEWHERE = {"machine": "another", "host": "there", "pid": 1, "started": "1"}


def test_a_fresh_heartbeat_from_elsewhere_is_believed(tmp_path: Path, watched):
    leave(tmp_path, age=lock_module.EXPIRY - 30, **ELSEWHERE, slurm_job="12_3")
    assert is_locked(tmp_path)
    with pytest.raises(TakenError, match=r"another process \(process 1 on there, SLURM job 12_3\)"):
        locked(tmp_path).__enter__()
    assert not is_taken_by_us(tmp_path)


@pytest.mark.parametrize("age", [HOUR, -HOUR], ids=["old", "an hour ahead"])
def test_one_that_stands_still_is_watched_and_taken(tmp_path: Path, watched, age: float, capsys: pytest.CaptureFixture):
    leave(tmp_path, age, **ELSEWHERE)
    assert not is_locked(tmp_path)
    assert is_taken_by_us(tmp_path)
    assert f"{tmp_path}/lock is old: watching for 0 s whether its holder (process 1 on there) is alive" in (
        capsys.readouterr().out
    )


@contextmanager
def beating(folder: Path, age: float, what: Callable[[int], None]) -> Iterator[None]:
    """Somewhere, something is done to the lock again and again; the clock there is `age` behind."""
    stop = threading.Event()

    def beat() -> None:
        n = 0
        while not stop.wait(0.02):
            what(n := n + 1)
            os.utime(folder / "lock", (time.time() - age,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("age", [HOUR, -HOUR], ids=["an hour behind", "an hour ahead"])
def test_one_that_beats_by_a_wrong_clock_keeps_it(tmp_path: Path, watched, age: float):
    leave(tmp_path, age, **ELSEWHERE)
    descriptor = os.open(tmp_path / "lock", os.O_RDWR)  # as a holder beats: in place

    def beat(n: int) -> None:
        os.pwrite(descriptor, json.dumps(asdict(this_process()) | ELSEWHERE | {"beat": n}).encode().ljust(1024), 0)

    with beating(tmp_path, age, beat):
        for _ in range(3):
            assert not is_taken_by_us(tmp_path)
    os.close(descriptor)
    assert lock_owner(tmp_path).host == "there"
    assert is_taken_by_us(tmp_path), "now it is dead"


@pytest.mark.parametrize("told", [b"", b'{"host": "there", "mach', b"[]", b"\0" * 1024, b'{"host": 1}'])
def test_a_lock_without_a_name_is_believed_while_it_is_fresh(tmp_path: Path, watched, told: bytes):
    """It was made just now, or its holder died as it made it."""
    leave_bytes(tmp_path, told, 0)
    assert lock_owner(tmp_path) is None
    assert is_locked(tmp_path)
    with pytest.raises(TakenError, match=r"is being trained by another process$"):
        locked(tmp_path).__enter__()
    leave_bytes(tmp_path, told, HOUR)
    assert not is_locked(tmp_path)
    assert is_taken_by_us(tmp_path)


def test_a_lock_that_is_released_while_it_is_watched_is_free(tmp_path: Path, watched, monkeypatch: pytest.MonkeyPatch):
    leave(tmp_path, HOUR, **ELSEWHERE)
    sleep = time.sleep

    def release(seconds: float) -> None:
        (tmp_path / "lock").unlink(missing_ok=True)
        sleep(seconds)

    monkeypatch.setattr(lock_module.time, "sleep", release)
    with pytest.raises(TakenError):  # somebody was there
        locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with locked(tmp_path):
        pass


def test_who_finds_that_another_was_faster_puts_its_lock_back(tmp_path: Path, dead: int, monkeypatch):
    """Between looking and putting the dead one's lock away, another process did so and took the job on."""
    leave(tmp_path, pid=dead)
    rename, theirs = os.rename, []

    def too_late(source: Path, target: Path) -> None:
        (tmp_path / "lock").unlink()
        theirs.append(leave(tmp_path, pid=os.getppid(), started=start_of(os.getppid())))
        rename(source, target)

    monkeypatch.setattr(os, "rename", too_late)
    with pytest.raises(TakenError):
        locked(tmp_path).__enter__()
    assert [(tmp_path / "lock").read_bytes()] == theirs
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_takers_of_one_lock_wait_for_one_another(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch):
    leave(tmp_path, pid=dead)
    rename, waited, stack, locks = os.rename, [], ExitStack(), []

    def hold() -> None:
        with suppress(TakenError):
            locks.append(stack.enter_context(locked(tmp_path)))

    thread = threading.Thread(target=hold)

    def slowly(source: Path, target: Path) -> None:
        if not waited:
            thread.start()
            thread.join(0.3)
            waited.append(thread.is_alive())
        rename(source, target)

    monkeypatch.setattr(os, "rename", slowly)
    hold()
    thread.join()
    assert waited == [True]
    (lock,) = locks
    lock.check()
    stack.close()


def test_a_new_lock_may_be_tidied_up_by_another_before_it_has_its_place(tmp_path: Path, monkeypatch):
    link, tidied = os.link, []

    def too_late(source: Path, target: Path) -> None:
        if not tidied:
            tidied.append(source)
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", too_late)
    with locked(tmp_path) as lock:
        lock.check()
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert list(tmp_path.iterdir()) == []


STALE = {
    "a dead process": lambda folder, dead: leave(folder, pid=dead),
    "another machine": lambda folder, dead: leave(folder, HOUR, **ELSEWHERE),
    "nobody": lambda folder, dead: leave_bytes(folder, b"", HOUR),
}


@pytest.mark.parametrize("kind", STALE)
@pytest.mark.parametrize("racers", [2, 8])
def test_of_many_that_want_a_dead_ones_lock_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: int, kind: str, racers: int
):
    monkeypatch.setattr(lock_module, "WATCH", 0.01)
    with ThreadPoolExecutor(racers) as pool:
        for n in range(25):
            folder = tmp_path / str(n)
            folder.mkdir()
            STALE[kind](folder, dead)
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

lock.WATCH = 0.01

def race(folder, barrier, winners, all_tried):
    barrier.wait()
    try:
        with lock.locked(folder) as held:
            held.check()
            with winners:
                winners.value += 1
            all_tried.wait()
            held.check()
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
    assert winners.value == 1, f"{winners.value} hold {folder}"
    assert list(folder.iterdir()) == []
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies a process, which this system can't")
def test_nor_have_it_two_processes(tmp_path: Path, dead: int):
    for n in range(40):
        (tmp_path / f"{n:02}").mkdir()
        STALE[list(STALE)[n % 3]](tmp_path / f"{n:02}", dead)
    finished = subprocess.run([sys.executable, "-c", RACE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


def test_a_holder_that_was_taken_for_dead_notices_and_leaves_the_others_lock(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: None)
    with locked(tmp_path) as lock:
        (tmp_path / "lock").unlink()
        theirs = leave(tmp_path, **ELSEWHERE)
        with pytest.raises(TakenError, match="was taken over by another process while this one stood still"):
            lock.check()
        lock.begin(7)  # its heart still beats, into nothing
    assert (tmp_path / "lock").read_bytes() == theirs


def test_a_holder_whose_lock_is_put_back_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with locked(tmp_path) as lock:
        (tmp_path / "lock").rename(tmp_path / "away")
        monkeypatch.setattr(lock_module.time, "sleep", lambda s: (tmp_path / "away").rename(tmp_path / "lock"))
        lock.check()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_taker_put_away_goes_with_the_lock(tmp_path: Path):
    with locked(tmp_path):
        (tmp_path / "lock.0123456789abcdef").write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_finds_no_room_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left on device"):
            locked(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_a_lock_has_its_holders_name_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else one that is killed just then would keep others out until its file is old."""
    link, named = os.link, []

    def look(source: Path, target: Path) -> None:
        assert not (tmp_path / "lock").exists()
        link(source, target)
        named.append(lock_owner(tmp_path).pid)

    monkeypatch.setattr(os, "link", look)
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert named == [os.getpid()]


def test_a_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with locked(tmp_path) as lock:
        lock.check()
        assert lock_owner(tmp_path).pid == os.getpid()
        assert not is_taken_by_us(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_tells_how_far_the_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "34")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")

    def wait_for(step: int) -> lock_module.Holder:
        deadline = time.monotonic() + 60
        while not ((owner := lock_owner(tmp_path)) and owner.step == step):
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.005)
        return owner

    with locked(tmp_path) as lock:
        lock.begin(7)
        first = wait_for(7)
        assert (first.first_step, first.pid, first.machine) == (7, os.getpid(), this_machine())
        assert first.slurm_job == "12_3"
        lock.step = 10**12
        second = wait_for(10**12)
        assert second.first_step == 7
        assert second.beat > first.beat
        assert second.seconds >= first.seconds
        lock.step = 9
        wait_for(9)  # a shorter line over a longer one
        assert (tmp_path / "lock").stat().st_size == lock_module.WIDTH
    assert lock_owner(tmp_path) is None


def test_a_heart_outlives_a_file_system_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.01)
    failed, pwrite = threading.Event(), os.pwrite

    def away(*args) -> None:
        failed.set()
        raise OSError(5, "Input/output error")

    with locked(tmp_path) as lock:
        monkeypatch.setattr(os, "pwrite", away)
        assert failed.wait(60)
        monkeypatch.setattr(os, "pwrite", pwrite)
        beat = lock_owner(tmp_path).beat
        deadline = time.monotonic() + 60
        while lock_owner(tmp_path).beat == beat:
            assert time.monotonic() < deadline, "it stopped"
            time.sleep(0.005)
        lock.check()


def test_the_file_systems_clock_is_what_counts(tmp_path: Path):
    leave(tmp_path, HOUR, **ELSEWHERE)
    assert not seems_alive(tmp_path, None)
    assert seems_alive(tmp_path, time.time() - HOUR)
    assert seems_alive(tmp_path, time.time() - HOUR + lock_module.EXPIRY - 30)
    assert not seems_alive(tmp_path, time.time() - HOUR + lock_module.EXPIRY + 30)
    assert abs(lock_module.file_system_time(tmp_path) - time.time()) < 60
    assert abs(lock_module.file_system_time(tmp_path / "nowhere") - time.time()) < 60


def test_of_a_process_that_the_system_hides_only_the_heartbeat_tells(
    tmp_path: Path, watched: None, monkeypatch: pytest.MonkeyPatch
):
    """Where /proc is mounted with hidepid, nothing is told of another user's process."""
    leave(tmp_path, pid=1, started="1")  # there is such a process, but it started at another time
    assert not is_locked(tmp_path)
    monkeypatch.setattr(lock_module, "_proc_stat", lambda pid: [])
    assert is_locked(tmp_path)
    with pytest.raises(TakenError), locked(tmp_path):
        pass
    leave(tmp_path, age=HOUR, pid=1, started="1")
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_lost_answer_of_a_file_server_is_no_other_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def linked_but_denied(source, target):
        link(source, target)
        raise FileExistsError

    monkeypatch.setattr(os, "link", linked_but_denied)
    with locked(tmp_path) as lock:
        lock.check()
        assert lock_owner(tmp_path).pid == os.getpid()
    assert list(tmp_path.iterdir()) == []
