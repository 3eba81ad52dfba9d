"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: with huge pages there are few faults to count
from domainbed.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def update():  # activations of a size that glibc has from the kernel, and of one that it has from its heap
    kept = [torch.ones(n) for n in (12_000_000, 12_000_000, 2_000_000, 2_000_000)]
for _ in range(3):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    update()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_an_update_has_its_memory_from_the_one_before():
    faults = {}
    for how in ("given back", "kept"):
        told = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        faults[how] = float(told.stdout)
    pages = 28_000_000 * 4 / 4096
    assert faults["given back"] > pages / 2
    assert faults["kept"] < pages / 10  # the heap may still grow a little
