"""Training from Python: what ``matattn.train`` and ``matattn.prepare`` do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L

import matattn
from matattn.composition import composed, overrides_of
from matattn.config import RunConfig
from matattn.errors import ConfigError
from matattn.kernels.dispatch import BackendError
from matattn.runtime import plain_torch
from matattn.training.data import Loaders
from matattn.workflows.run import read, run
from matattn.workflows.task import Task

Given = str | Mapping[str, Any]  # an override of the command line, or a dictionary of them


@dataclass(frozen=True)
class FinishedRun:
    """A finished training: its folder, and what ``metrics.json`` there says."""

    folder: Path
    metrics: Mapping[str, Any]

    def load(self, device: str = "cpu") -> Any:
        """Return the trained model, as ``matattn.load`` does."""
        return matattn.load(self.folder / "model", device)


@dataclass(frozen=True)
class PreparedRun:
    """A training with its data read and its network built: for a Trainer of one's own."""

    config: RunConfig
    task: Task

    @cached_property
    def module(self) -> L.LightningModule:
        """Return network, loss and optimiser as a LightningModule; of an ensemble, the first.

        Batches whose loss is not finite are told in the current folder. Of an encoder of text it
        is the training on spans, without masked words before it.

        Raises ConfigError for a wave function.
        """
        return self._fitted.module(Path())

    @cached_property
    def data(self) -> Loaders:
        """Return the training and validation batches as a LightningDataModule.

        Raises ConfigError for a wave function.
        """
        return self._fitted.data()

    @property
    def _fitted(self) -> Any:
        """Return the task, which Lightning can train; raises ConfigError for a wave function."""
        if not hasattr(self.task, "module"):
            raise ConfigError(
                f"model={self.config.model_name}: a wave function is optimised by steps of its own "
                "and has no Lightning module and no data; matattn.train trains it"
            )
        return self.task


def train(*overrides: Given) -> FinishedRun:
    """Run the command ``python train.py`` with these overrides; see ``matattn.train``."""
    with composed("train", _listed(overrides)) as config, _errors_of_matattn():
        folder = read(config)[0].folder()
        metrics = run(config)
    return FinishedRun(folder, metrics)


@plain_torch()
def prepare(*overrides: Given) -> PreparedRun:
    """Read the data and build the network of a training; see ``matattn.prepare``."""
    with composed("train", _listed(overrides)) as config, _errors_of_matattn():
        settings, task_class = read(config)
        return PreparedRun(settings, task_class.prepare(settings))


def _listed(given: tuple[Given, ...]) -> list[str]:
    return [
        override
        for one in given
        for override in ([one] if isinstance(one, str) else overrides_of(one))
    ]


@contextmanager
def _errors_of_matattn() -> Iterator[None]:
    """Raise a kernel's refusal as the ConfigError that it is for who trains."""
    try:
        yield
    except BackendError as error:
        raise ConfigError(str(error)) from error
