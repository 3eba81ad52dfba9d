"""The memory of a process that trains on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
MOST = 2**31 - 1  # that mallopt takes, in bytes


def keep_freed_memory() -> None:
    """Let what an update frees stay with this process, for the next one needs as much. No result depends on it.

    By default glibc gives large blocks, and the end of the heap, back to the kernel, which hands them out again page by
    page, filled with zeros. On RotatedDigits these were 4,900 page faults in each update of ERM (5 x 395 images), and
    without them an update took 57 instead of 68 ms. Other allocators are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # blocks of any size come from the heap …
        mallopt(M_TRIM_THRESHOLD, MOST)  # … which does not shrink …
        mallopt(M_TOP_PAD, 64 << 20)  # … and seldom has to grow
