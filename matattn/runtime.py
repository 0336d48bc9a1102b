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


def share_cores(workers: int) -> None:
    """Give PyTorch the cores that loader processes leave, unless OMP_NUM_THREADS is set.

    More threads than cores make every parallel loop wait for the thread that is not running: with
    two cores, two threads and one worker, steps took twice as long as with one thread.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores - workers))
