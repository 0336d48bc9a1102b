"""Batches of a prepared training for any Trainer of Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import lightning as L
from torch.utils.data import DataLoader


class Loaders(L.LightningDataModule):
    """Training and validation batches, made once, when a Trainer first asks for them.

    Args:
        make: returns the loaders of the splits "train" and, where there are such rows, "val".
    """

    def __init__(self, make: Callable[[], Mapping[str, DataLoader]]) -> None:
        super().__init__()
        self._make = make

    @cached_property
    def _loaders(self) -> Mapping[str, DataLoader]:
        return self._make()

    def train_dataloader(self) -> DataLoader:
        """Return the training batches."""
        return self._loaders["train"]

    def val_dataloader(self) -> Any:
        """Return the validation batches; nothing where the data have no such rows."""
        return self._loaders.get("val", [])
