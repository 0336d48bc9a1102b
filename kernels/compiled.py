"""Compiled backends: the library of an operator, and the reasons why it cannot take a call."""

from __future__ import annotations

import ctypes
import importlib.machinery
from pathlib import Path

import torch

PRECISIONS = {torch.float64: "double", torch.float32: "float"}  # ends of the functions' names


Library = ctypes.CDLL | str | None  # or why it cannot be loaded, or None: it was not built


def library(folder: Path) -> Library:
    """Load the library ``_cpu`` from an operator's folder.

    A wheel holds no OpenMP of its own: with torch imported, the library finds torch's.
    """
    path = folder / f"_cpu{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
    if not path.is_file():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        return f"its library cannot be loaded: {error}"


def refusal(library: Library, abi: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the library cannot take a call, or None. Python expects it to have ``abi``."""
    if device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {device}"
    if dtype not in PRECISIONS:
        return f"it computes in float32 and float64, not {dtype}"
    if isinstance(library, str):
        return library
    if library is None:
        return "it was not compiled when matattn was installed (no C compiler?)"
    if ctypes.c_int.in_dll(library, "abi").value != abi:
        return "it was compiled from other sources; install matattn again"
    return None
