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
    activations = [torch.ones(n) for n in map(int, sys.argv[2:])]
for _ in range(8):  # the heap grows at first
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    update()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 3)
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mallopt is part of glibc")


def faults_per_update(mode: str, sizes: tuple[int, ...]) -> float:
    command = [sys.executable, "-c", PROGRAM, mode, *map(str, sizes)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_update_reuses_the_memory_of_the_previous_one():
    sizes = (12_000_000, 12_000_000, 2_000_000, 2_000_000)
    pages = sum(sizes) * 4 / 4096
    assert faults_per_update("default", sizes) > pages / 2
    assert faults_per_update("kept", sizes) < pages / 3  # a busy kernel reclaims pages


def test_more_than_two_gigabytes_are_kept():
    sizes = (25_000_000,) * 24
    assert faults_per_update("kept", sizes) < sum(sizes) * 4 / 4096 / 3
