"""Helpers to start real processes quickly, to inspect them, and to wait for them."""

import multiprocessing
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Processes forked from the fork server have imported these already.
multiprocessing.set_forkserver_preload(["domainbed.engine.train", "tests.sweep.misbehaving"])


@contextmanager
def start_quickly() -> Iterator[None]:
    """Make the local launcher of this process fork its workers from a process that has imported torch already."""
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("forkserver" if method == "spawn" else method)
    try:
        yield
    finally:
        multiprocessing.get_context = get_context


def children_of(pid: int) -> list[int]:
    finished = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in finished.stdout.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], describe: Callable[[], object] = str, seconds: float = 240) -> None:
    """Wait until a condition holds; after a timeout, fail with the result of `describe`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out; {describe()}"
        time.sleep(0.05)
