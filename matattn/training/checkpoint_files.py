"""Checkpoints that are either whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from matattn.files import atomic_path


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the old file and then renames: a run that is killed at any moment leaves a
    checkpoint that can be read, and a full disk leaves the old one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        with atomic_path(path) as partial:
            torch.save(checkpoint, partial)
