"""Compiled backends: finding the library of an operator, and why it may not take a call."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path

import torch

PRECISIONS = {torch.float64: "double", torch.float32: "float"}  # ends of the functions' names


def library(folder: Path) -> ctypes.CDLL | None:
    """The library ``_cpu`` of an operator's folder, or None where it was not built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (path := folder / f"_cpu{suffix}").is_file():
            return ctypes.CDLL(str(path))
    return None


def refusal(
    library: ctypes.CDLL | None, abi: int, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Why the library cannot take a call, or None. ``abi`` is what the Python side expects."""
    if device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {device}"
    if dtype not in PRECISIONS:
        return f"it computes in float32 and float64, not {dtype}"
    if library is None:
        return "it was not compiled when matattn was installed (no C compiler?)"
    if ctypes.c_int.in_dll(library, "abi").value != abi:
        return "it was compiled from other sources; install matattn again"
    return None
