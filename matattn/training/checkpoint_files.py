"""Checkpoints that are either whole or absent."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from matattn.errors import TrainingError
from matattn.files import read_sealed, write_sealed


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the old file and then renames: a run that is killed at any moment leaves a
    checkpoint that can be read, and a full disk leaves the old one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_sealed(path, content.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return read(path)


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, numbers and texts, never other objects.

    Raises TrainingError when the file is damaged. PyTorch alone does not look at checksums, so that
    one wrong bit would be a wrong weight.
    """
    try:
        content = io.BytesIO(read_sealed(path))
        return torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # PyTorch's text says how to open it anyway
            reason = "it holds other objects than tensors, numbers and texts"
        raise TrainingError(
            f"{path}: cannot be read: {reason}; restore it from a copy, or delete it: the same "
            "command trains again"
        ) from None
