"""What a program of ours does once, when it starts."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: for networks of many small steps, where a second one gains a tenth on
    an idle machine, and costs a factor of forty on a busy one, where threads wait for each other.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def start_predicting() -> None:
    """``tune_malloc``, patient threads, and no remarks of pymatgen that tell a user nothing.

    OpenMP's threads spin while they wait, and so hold the cores that other processes want: a
    parallel loop beside one busy process then takes several times as long. They sleep instead,
    unless ``OMP_WAIT_POLICY`` is set. That has an effect only before PyTorch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    tune_malloc()
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")


def memory() -> float:
    """Memory of this machine, bytes; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def peak_memory() -> int:
    """Largest memory of this process so far, bytes; 0 where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def machine(accelerator: str) -> str:
    """What a network is trained on: processor, threads, and the GPU if Lightning's ``accelerator``
    lets it be used."""
    import torch

    threads = torch.get_num_threads()
    text = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
    if accelerator != "cpu" and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" is a GPU if there is one, else the CPU.

    Raises ConfigError when there is no such device.
    """
    import torch

    from matattn.errors import ConfigError

    gpus = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if name not in known:
        raise ConfigError(f"no device {name!r}; this machine has {', '.join(known)}")
    return torch.device(name)
