"""The machine and the process: memory, cores, threads, devices."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tune_malloc() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel.

    PyTorch on CPUs allocates and frees large buffers at every step; with glibc's defaults up to
    half of the time goes into page faults. Does nothing on other systems than Linux with glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of mallopt's parameters in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 * 2**20)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Give PyTorch its number of threads back, whatever the block sets."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one thread, for networks of many small steps.

    There a second thread gains a tenth on an idle machine. On a busy one it costs a factor of
    forty, because the threads wait for each other.
    """
    import torch

    with threads_as_before():
        torch.set_num_threads(1)
        yield


@contextmanager
def on_cpu() -> Iterator[None]:
    """Run with new tensors on the CPU and in full precision, whatever this process has set.

    Processes that are forked afterwards can predict, too.
    """
    import torch

    _survive_forks()
    with ExitStack() as blocks:
        if torch.get_default_device().type != "cpu":
            blocks.enter_context(torch.device("cpu"))  # which slows each operation
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            blocks.enter_context(torch.autocast(device, enabled=False))
        yield


@cache
def _survive_forks() -> None:
    """Let forked processes use one thread: OpenMP's do not survive, and would be waited for."""
    import torch

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run with PyTorch's own defaults, whatever this process has set.

    New tensors are float32 and on the CPU, and gradients are known. Other libraries, MACE among
    them, set float64 for the whole process. So does this block the opposite: threads share it.
    """
    import torch

    dtype = torch.get_default_dtype()
    with on_cpu(), torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def start_predicting() -> None:
    """Prepare this process for predictions: memory, waiting threads, warnings.

    OpenMP's threads spin while they wait, and so hold cores that other processes need: a parallel
    loop beside one busy process then takes several times as long. Unless ``OMP_WAIT_POLICY`` is
    set, they sleep after some microseconds instead: at once would make predictions a fifth slower
    on a quiet machine. That has an effect only before PyTorch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    tune_malloc()
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")


def memory() -> float:
    """Return the memory of this machine in bytes; infinity where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def peak_memory() -> int:
    """Return the peak memory of this process in bytes; 0 where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(accelerator: str) -> str:
    """Return the hardware of a training: processor, threads, and the GPU if it is used.

    ``accelerator`` is that of Lightning's Trainer.
    """
    import torch

    threads = torch.get_num_threads()
    text = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
    if accelerator != "cpu" and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def find_device(name: str | torch.device) -> torch.device:
    """Return the device called ``name``; "auto" is a GPU if there is one, else the CPU.

    Raises ConfigError when there is no such device.
    """
    import torch

    from matattn.errors import ConfigError

    name = str(name)
    gpus = torch.cuda.device_count()
    names = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if name not in names:
        raise ConfigError(f"no device {name!r}; this machine has {', '.join(names)}")
    return torch.device(name)
