"""Freed memory is kept by the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages cause few faults
from domainbed.engine.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def update():  # activations of a size that glibc takes from the kernel by default, and of a size from its heap
    activations = [torch.ones(n) for n in (12_000_000, 12_000_000, 2_000_000, 2_000_000)]
for _ in range(3):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    update()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is part of glibc")
def test_update_reuses_the_memory_of_the_previous_one():
    faults = {}
    for mode in ("default", "kept"):
        process = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        faults[mode] = float(process.stdout)
    pages = 28_000_000 * 4 / 4096
    assert faults["default"] > pages / 2
    assert faults["kept"] < pages / 3  # the heap may still grow a little, and a busy kernel reclaims pages
