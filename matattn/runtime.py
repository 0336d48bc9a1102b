"""What a program of ours does once, when it starts."""

from __future__ import annotations

import ctypes
import os
import platform


def tune_malloc() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel.

    PyTorch on CPUs allocates and frees large buffers at every step; with glibc's defaults up to
    half of the time goes into page faults. Does nothing elsewhere than on Linux with glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of mallopt's parameters in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 * 2**20)


def cores() -> int:
    """Processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
