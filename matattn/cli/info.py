"""``matattn info``: what a bug report needs."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

_PACKAGES = ("torch", "lightning", "torch-geometric", "pymatgen", "numpy", "triton")
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "CUDA_VISIBLE_DEVICES",
    "MATATTN_",
)


def info() -> None:
    """Show versions, hardware, kernel backends and settings: paste this into a bug report."""
    for key, value in _lines():
        print(f"{key:<19}{value}")


def _lines() -> Iterator[tuple[str, str]]:
    import matattn
    from matattn import plugins, pretrained
    from matattn.runtime import cores, memory, processor

    yield "matattn", f"{matattn.__version__} in {Path(matattn.__file__).parent}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    for package in _PACKAGES:
        yield package, _version(package)
    yield "system", platform.platform()
    yield "processor", f"{processor()}, {cores()} cores for this process"
    size = memory()
    yield "memory", f"{size / 2**30:.1f} GB" if math.isfinite(size) else "unknown"
    try:
        yield from _backends()
    except Exception as error:  # a broken PyTorch is what a bug report may be about
        yield "kernels", f"cannot be loaded: {type(error).__name__}: {error}"
    for package, what in plugins.summary():
        yield "package", f"{package}: {what}"
    yield "models", ", ".join(pretrained.names()) or "none come with this version"
    folder = os.environ.get("MATATTN_DATA")
    missing = "" if folder is None or Path(folder).is_dir() else " (no such folder)"
    yield "data folder", f"{folder}{missing}" if folder else "MATATTN_DATA is not set"
    for name in sorted(os.environ):
        if name.startswith(_VARIABLES):
            yield name, os.environ[name]


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _backends() -> Iterator[tuple[str, str]]:
    """Yield the GPUs, and for every backend and device that it works, or why it does not."""
    import torch

    from matattn.kernels.periodic_attention import BACKENDS

    gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    names = (f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GB)" for gpu in gpus)
    yield "GPU", ", ".join(names) or f"none (CUDA of this PyTorch: {torch.version.cuda})"
    for device in ("cpu", "cuda") if gpus else ("cpu",):
        for name, backend in BACKENDS.items():
            reason = backend.refuses(torch.device(device), torch.float32)
            works = f"works on {device}{'' if backend.automatic else ', on request'}"
            yield f"backend {name}", f"not on {device}: {reason}" if reason else works
