"""Compiled backends: the library of an operator, and the reasons why it cannot take a call."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path

import torch

PRECISIONS = {torch.float64: "double", torch.float32: "float"}  # ends of the functions' names


def library(folder: Path) -> ctypes.CDLL | None:
    """Load the library ``_cpu`` from an operator's folder; None if it was not built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (path := folder / f"_cpu{suffix}").is_file():
            return ctypes.CDLL(str(path))
    return None


def refusal(
    library: ctypes.CDLL | None, abi: int, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return why the library cannot take a call, or None. Python expects it to have ``abi``."""
    if device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {device}"
    if dtype not in PRECISIONS:
        return f"it computes in float32 and float64, not {dtype}"
    if library is None:
        return "it was not compiled when matattn was installed (no C compiler?)"
    if ctypes.c_int.in_dll(library, "abi").value != abi:
        return "it was compiled from other sources; install matattn again"
    return None
