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
    """Checkpoints that are written beside the old file and then renamed.

    A run that is killed at any moment leaves a readable one, and a full disk leaves the old one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint and its checksum."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_sealed(path, content.getbuffer())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Return the content of a checkpoint; raise TrainingError when it is damaged."""
        return read(path)


def read(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint: tensors, numbers and texts, never other objects.

    Raises TrainingError when the file is damaged. PyTorch itself does not verify checksums: a wrong
    bit would become a wrong weight.
    """
    try:
        content = io.BytesIO(read_sealed(path))
        return torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # PyTorch's says how to open it anyway
            reason = "it holds other objects than tensors, numbers and texts"
        raise TrainingError(
            f"{path}: cannot be read: {reason}; restore it from a copy, or delete it: the same "
            "command trains again"
        ) from None
