"""Libraries that are missing, damaged or of another version are refused with a reason."""

import importlib.machinery

import torch

from matattn.kernels import compiled

CPU = torch.device("cpu")


def test_a_folder_without_a_library(tmp_path):
    assert compiled.library(tmp_path) is None
    assert "not compiled" in compiled.refusal(None, 1, CPU, torch.float32)


def test_a_library_that_cannot_be_loaded(tmp_path):
    """As one whose OpenMP is missing: other backends serve."""
    name = f"_cpu{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
    (tmp_path / name).write_bytes(b"not a library")
    library = compiled.library(tmp_path)
    refusal = compiled.refusal(library, 1, CPU, torch.float32)
    assert refusal.startswith("its library cannot be loaded") and name in refusal
