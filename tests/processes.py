"""Helpers to inspect real processes and to wait for them."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path


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
